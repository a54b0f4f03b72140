"""`hybridclip report`: the page of each run or evaluation, and of several runs side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hybridclip_jax.errors import UserError
from hybridclip_jax.report import evaluation, render, side_by_side

HELP = "write report.html, one self-contained page, into each run's folder; of several runs also one side by side"
EXAMPLE = "hybridclip report runs/a runs/b --out a-and-b.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdir", nargs="+", type=Path, metavar="WORKDIR", help="the --workdir of a run, or the --out of an evaluation"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the page of several runs side by side goes (report.html here)",
    )
    parser.add_argument("--unverified", action="store_true", help="show published results that nobody has checked too")


def run(args: argparse.Namespace) -> None:
    """Prints the path of each page. Raises UserError at the first folder that holds no logged run or evaluation."""
    runs = [folder for folder in args.workdir if not is_evaluation(folder)]
    out = args.out or Path("report.html")
    if len(runs) > 1:
        _refuse_out(out, args.workdir)
    elif args.out:
        raise UserError(
            f"--out {args.out}: is for the page of several runs side by side; the page of a run or an evaluation goes "
            "into its own folder: leave --out away"
        )
    for folder in args.workdir:
        write = render if folder in runs else evaluation.render
        _say(write(folder, unverified=args.unverified))
    if len(runs) > 1:
        _say(side_by_side.render(runs, out))


def _say(path: Path) -> None:
    print(str(path).encode(errors="backslashreplace").decode(), flush=True)


def is_evaluation(folder: Path) -> bool:
    return (folder / "metrics.json").is_file() and not (folder / "config.json").is_file()


def _refuse_out(out: Path, folders: Sequence[Path]) -> None:
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out}: name a file in a folder that exists")
    if out.suffix != ".html":
        raise UserError(f"--out {out}: must end in .html")
    if out.resolve() in [(folder / "report.html").resolve() for folder in folders]:
        raise UserError(f"--out {out}: is the page of one of them; name another file for all side by side")
