"""`hybridclip bench`: measured ratios, A-B-A-B, with their spread.

Also `python -m hybridclip_jax.commands.bench`, which needs little more than the benchmark itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hybridclip_jax.bench import BENCHES, runner
from hybridclip_jax.errors import StorageError, UserError, run_or_exit

HELP = "measure this machine: ratios of two arms run in turn, with their spread"
EXAMPLE = "hybridclip bench host --rounds 5 --out host.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = "; ".join(f"{name}: {bench.help}" for name, bench in BENCHES.items())
    parser.add_argument("name", help=known)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="A-B pairs (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="of one measurement, about (default: 3)"
    )
    parser.add_argument("--out", metavar="FILE", help="write everything measured as JSON")


def run(args: argparse.Namespace) -> None:
    """Measures and prints. Raises UserError for an unknown name, RunStopped when an arm fails."""
    if args.name not in BENCHES:
        raise UserError(f"bench {args.name}: there is no such benchmark; available: {', '.join(BENCHES)}")
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds}: must be at least 1")
    if not 0 < args.seconds < float("inf"):
        raise UserError(f"--seconds {args.seconds:g}: must be above 0")
    out = Path(args.out) if args.out else None
    if out and not out.parent.is_dir():
        raise UserError(f"--out {out}: no such folder as {out.parent}; make it first")
    result = runner.run(
        BENCHES[args.name],
        rounds=args.rounds,
        seconds=args.seconds,
        note=lambda text: print(text, file=sys.stderr),
    )
    print(runner.render(result))
    if out:
        try:
            out.write_text(json.dumps(result, indent=2) + "\n")
        except OSError as error:
            raise StorageError(f"--out {out}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=HELP, epilog=f"example: {EXAMPLE}")
    add_arguments(parser)
    arguments = parser.parse_args()
    sys.exit(run_or_exit(lambda: run(arguments)))
