"""`hybridclip report`: the page of each run."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridclip_jax.report import render

HELP = "write report.html, one self-contained page, into each run's folder"
EXAMPLE = "hybridclip report runs/demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", nargs="+", type=Path, metavar="WORKDIR", help="the --workdir of a run")


def run(args: argparse.Namespace) -> None:
    """Prints the path of each page. Raises UserError at the first folder that holds no logged run."""
    for workdir in args.workdir:
        print(render(workdir), flush=True)
