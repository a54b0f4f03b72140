"""hybridclip <command>: the table of commands. Training has its own door, python -m hybridclip_jax.main."""

from __future__ import annotations

import argparse
import sys

from hybridclip_jax.commands import bench, budget, prepare, report
from hybridclip_jax.errors import run_or_exit

COMMANDS = {"prepare": prepare, "report": report, "budget": budget, "bench": bench}


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


def main() -> int:
    arguments = build_parser().parse_args()
    return run_or_exit(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
