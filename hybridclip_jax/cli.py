"""hybridclip <command>: the table of commands. Training has its own door, python -m hybridclip_jax.main."""

from __future__ import annotations

import argparse
import shlex
import sys

from hybridclip_jax.commands import bench, budget, doctor, embed, evaluate, prepare, report
from hybridclip_jax.errors import run_or_exit

COMMANDS = {
    "prepare": prepare,
    "doctor": doctor,
    "evaluate": evaluate,
    "embed": embed,
    "report": report,
    "budget": budget,
    "bench": bench,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hybridclip", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example: {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def parse(words: list[str]) -> argparse.Namespace:
    """The command and its flags. A command that reads a config takes `--config.a.b=V` overrides, as main does."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    arguments.command_line = shlex.join(["hybridclip", *words])
    arguments.overrides = [word for word in rest if word.startswith(("--config.", "--noconfig."))]
    unknown = [word for word in rest if word not in arguments.overrides]
    if unknown or (arguments.overrides and "config" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(unknown or arguments.overrides)}")
    return arguments


def main() -> int:
    arguments = parse(sys.argv[1:])
    return run_or_exit(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
