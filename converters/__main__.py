"""python -m converters: published weights to model folders, trained models back to PyTorch's libraries."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybridclip_jax.errors import run_or_exit


def _list(args: argparse.Namespace) -> None:
    from converters import listing

    print(listing.render())


def _to_jax(args: argparse.Namespace) -> None:
    from converters import outputs, to_jax

    out = Path(args.out)
    outputs.check(out, Path(args.src))
    options = to_jax.Options(
        layout=args.layout,
        activation=args.activation,
        statistics=args.statistics,
        input_norm=args.input_norm,
        context=args.context,
        colour=args.colour,
    )
    converted = to_jax.convert(args.src, options)
    fingerprint = to_jax.write(converted, out)
    print("\n".join(converted.notes))
    print(f"{args.out}: {converted.card.kind} model folder, fingerprint {fingerprint}")
    architecture = converted.card.architecture
    for which in ("image", "text"):
        if which in architecture:
            context = f" --config.model.text.context={architecture['context']}" if which == "text" else ""
            tower = f"--config.model.{which}"
            print(f"train from it: {tower}.arch={architecture[which]} {tower}.weights={args.out}{context}")


def _to_hf(args: argparse.Namespace) -> None:
    from converters import to_hf

    name = to_hf.export(Path(args.dir), Path(args.out))
    print(f"{args.out}: transformers.{name}.from_pretrained({args.out!r}) loads it")


def _verify(args: argparse.Namespace) -> None:
    from converters import verify

    print("\n".join(verify.verify(Path(args.dir), source=args.source, image=args.image)))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m converters", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, what: str, example: str, run: Callable[[argparse.Namespace], None]) -> Any:
        sub = commands.add_parser(
            name,
            help=what,
            description=what,
            epilog=f"example: python -m converters {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run)
        return sub

    command("list", "what can be converted, where it comes from, its licence, and a command for each", "list", _list)

    # Here and not above: the tables of names are light, what reads weights is not.
    from converters.layouts import LAYOUTS
    from converters.positions import LONGEST
    from converters.statistics import STATISTICS

    what = "a published file, folder or hub id becomes a model folder"
    example = "to-jax facebook/dinov3-vitb16-pretrain-lvd1689m --input-norm clip --out weights/dinov3"
    sub = command("to-jax", what, example, _to_jax)
    sub.add_argument("src", metavar="SRC", help="a .safetensors, .pt or .pth file, a folder of the hub's, or a hub id")
    sub.add_argument("--out", required=True, metavar="DIR", help="model folder to make; must not exist")
    sub.add_argument("--layout", choices=LAYOUTS, help="whose names the source has (default: found)")
    sub.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="of a CLIP whose files do not say it; never guessed. gelu is refused: these towers compute quick_gelu",
    )
    sub.add_argument(
        "--context",
        type=int,
        metavar="N",
        help=f"stretch a text tower's positions to N, at most {LONGEST}: the first 20 are kept, so texts of up to 20 "
        "tokens embed as before; the others are interpolated and want training (default: the source's own context)",
    )
    sub.add_argument(
        "--statistics",
        choices=STATISTICS,
        help="pixel mean and std the source was trained with (default: as its files say, else its layout's usual)",
    )
    sub.add_argument(
        "--input-norm",
        choices=STATISTICS,
        help="fold the difference into the patch embedding, so that images of this mean and std fit (exact)",
    )
    sub.add_argument("--colour", action="store_true", help="its images are in colour (PLIP); default: grey films")

    what, example = "a model folder becomes a folder that transformers loads", "to-hf runs/mine/best --out mine-hf"
    sub = command("to-hf", what, example, _to_hf)
    sub.add_argument("dir", metavar="DIR", help="a model folder, such as the best/ of a run")
    sub.add_argument("--out", required=True, metavar="DIR2", help="folder to make; must not exist")

    what = "reads a model folder again and checks all that can be checked"
    sub = command("verify", what, "verify weights/mine --source SRC", _verify)
    sub.add_argument("dir", metavar="DIR", help="a model folder")
    sub.add_argument("--source", metavar="SRC", help="the file it was converted from: converts it again and compares")
    sub.add_argument("--image", metavar="FILE", help="COCO val2017 000000039769.jpg: DINOv3 B/16's published values")
    return parser


def main(words: list[str]) -> int:
    """Runs one command; returns its exit code."""
    args = build_parser().parse_args(words)
    return run_or_exit(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
