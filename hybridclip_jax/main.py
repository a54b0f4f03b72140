"""python -m hybridclip_jax.main --config=FILE --workdir=DIR [--config.a.b=V]: trains, or resumes what DIR holds."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from hybridclip_jax.errors import UserError, run_or_exit

USAGE = """usage: python -m hybridclip_jax.main --config=FILE --workdir=DIR [--config.a.b=VALUE ...]

Trains the config of FILE in DIR. The same command goes on where an earlier attempt ended.

  --config=FILE          a Python file with get_config(), such as configs/demo.py
  --workdir=DIR          the run's folder: metrics, checkpoints, best model, report
  --config.a.b=VALUE     overrides one field, e.g. --config.data.train=stores/mine:train
  --noconfig.a.b         sets a yes-or-no field to no, e.g. --noconfig.data.flip

example: python -m hybridclip_jax.main --config=configs/demo.py --workdir=runs/demo"""


def parse(arguments: list[str]) -> tuple[str, Path, list[str]]:
    """(config file, workdir, overrides). Raises UserError for anything else on the command line."""
    plain: dict[str, str] = {}
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--config", "--workdir"):
            plain[name] = value if equals else next(rest, "")
        elif name.startswith(("--config.", "--noconfig.")):
            overrides.append(argument)
        else:
            raise UserError(f"{argument}: not an option of main; see --help")
    for name in ("--config", "--workdir"):
        if not plain.get(name):
            raise UserError(f"{name} is missing; see --help")
    return plain["--config"], Path(plain["--workdir"]), overrides


def main(arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    file, workdir, overrides = parse(arguments)
    # Imported here so that --help and a wrong flag answer at once.
    from hybridclip_jax import config, train

    command = shlex.join(["python", "-m", "hybridclip_jax.main", *arguments])
    train.run(config.load(file, overrides), workdir, command)


if __name__ == "__main__":
    sys.exit(run_or_exit(lambda: main(sys.argv[1:])))
