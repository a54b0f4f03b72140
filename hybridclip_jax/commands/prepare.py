"""`hybridclip prepare`: an on-disk dataset becomes a store, and a table says what became of every row."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hybridclip_jax.data.formats import FORMATS
from hybridclip_jax.data.pixels import RESIZE
from hybridclip_jax.data.prepare import CAP_FROM_ROWS, TEXTS, Options, Outcome, prepare
from hybridclip_jax.data.splits import parse_shares
from hybridclip_jax.data.store import BLANK, SKIPPED, UNCERTAIN, Store, read_manifest
from hybridclip_jax.errors import UserError
from hybridclip_jax.logs import Progress, table

HELP = "turn a dataset on disk into a store that training and evaluation read"
EXAMPLE = "hybridclip prepare --format csv --source data/train.csv --out stores/train"

_SHOWN_ROWS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of every format, then each format's own under its name."""
    parser.add_argument("--format", required=True, choices=sorted(FORMATS), help="how the dataset lies on disk")
    parser.add_argument("--source", metavar="PATH", help="the dataset: a table or a folder")
    parser.add_argument("--images", metavar="DIR", help="folder of the images, where it is not the table's own")
    parser.add_argument("--out", required=True, metavar="STORE", help="folder to make; must not exist")
    splits = parser.add_mutually_exclusive_group()
    splits.add_argument("--split", metavar="NAME", help="put every record in this split, whatever the source says")
    splits.add_argument(
        "--split-by-patient",
        metavar="NAME=SHARE,...",
        help="split by patient, such as train=0.8,val=0.1,test=0.1",
    )
    parser.add_argument(
        "--text", choices=TEXTS, default="report", help="what is paired with the image: all of the text, or one section"
    )
    parser.add_argument(
        "--resize",
        choices=RESIZE,
        default="pad",
        help="to 320 x 320: zeros around the whole picture (pad, the default), its largest centred square,"
        " or stretched",
    )
    parser.add_argument("--colour", action="store_true", help="keep three channels (histology, figures); default grey")
    parser.add_argument(
        "--uncertain",
        choices=UNCERTAIN,
        default="ignore",
        help="what a label of -1 counts as (default: ignore)",
    )
    parser.add_argument(
        "--blank", choices=BLANK, default="missing", help="what a blank label counts as (default: missing)"
    )
    parser.add_argument(
        "--max-skipped",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="most images that may be unreadable, as a share of the rows"
        f" (default: 0.01; from {CAP_FROM_ROWS} rows on)",
    )
    for name, reader in FORMATS.items():
        reader.add_arguments(parser.add_argument_group(f"--format {name}"))


def run(args: argparse.Namespace) -> None:
    """Prepares and prints; raises UserError, StorageError or RunStopped as `prepare` does."""
    _refuse_foreign_flags(args)
    if not 0 <= args.max_skipped <= 1:
        raise UserError(f"--max-skipped {args.max_skipped:g} is not a share between 0 and 1")
    options = Options(
        split=args.split,
        split_by_patient=parse_shares(args.split_by_patient) if args.split_by_patient is not None else None,
        text=args.text,
        resize=args.resize,
        colour=args.colour,
        uncertain=args.uncertain,
        blank=args.blank,
        max_skipped=args.max_skipped,
    )
    source = FORMATS[args.format].read(args)
    if source.synthetic:
        for flag in ("source", "images"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag}: --format {args.format} makes its own data and reads none; leave it out")
        print("synthetic data: no image, text or label here is of a patient")
    print("\n".join(f"{name}: {note}" for name, note in source.notes.items()))
    out = Path(args.out)
    bar: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = Progress(total, "prepare", "image")
        bar.update(done)

    try:
        outcome = prepare(source, out, options, format_name=args.format, progress=show)
    finally:
        if bar is not None:
            bar.close()
    print(describe(out, outcome))


def describe(out: Path, outcome: Outcome) -> str:
    """What became of the rows and what the store holds, read back from the store, as plain text."""
    fates: list[tuple[object, ...]] = [("read", outcome.read, ""), ("kept", outcome.kept, "")]
    for reason, rows in outcome.skipped_rows.items():
        shown = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", ..." if len(rows) > _SHOWN_ROWS else "")
        fates.append((f"skipped: {reason}", len(rows), shown))
    blocks = [table(("rows", "count", "row numbers"), fates)]

    splits = read_manifest(out)[0]["splits"]
    stores = {name: Store.open(f"{out}:{name}") for name in splits}
    any_store = next(iter(stores.values()))
    blocks.append(
        table(
            ("split", "images", "studies", "patients", "tokens: median", "95 %", "longest"),
            [
                (name, len(store), counts["studies"], counts["patients"], *_token_lengths(store))
                for (name, counts), store in zip(splits.items(), stores.values(), strict=True)
            ],
        )
    )
    if any_store.label_names:
        headers = ["label", *(f"{name}: positive / known" for name in stores)]
        blocks.append(
            table(
                headers,
                [(label, *(_prevalence(store, label) for store in stores.values())) for label in any_store.label_names],
            )
        )
    kind = "synthetic store" if any_store.synthetic else "store"
    listed = f"; the rows left out are listed in {SKIPPED} there" if outcome.skipped else ""
    blocks.append(f"{kind}: {out}{listed}")
    return "\n\n".join(blocks)


def _token_lengths(store: Store) -> list[str]:
    return [f"{np.percentile(store.n_tokens, at):.0f}" for at in (50, 95, 100)]


def _prevalence(store: Store, label: str) -> str:
    known = store.labels[label][~np.isnan(store.labels[label])]
    share = f" ({known.mean():.3f})" if len(known) else ""
    return f"{int(known.sum())} / {len(known)}{share}"


def _refuse_foreign_flags(args: argparse.Namespace) -> None:
    # A flag of another format would be ignored in silence.
    own = _defaults(args.format)
    for name in FORMATS:
        for flag, default in _defaults(name).items():
            if flag not in own and getattr(args, flag) != default:
                raise UserError(f"--{flag.replace('_', '-')} belongs to --format {name}, not to --format {args.format}")


def _defaults(name: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    FORMATS[name].add_arguments(parser)
    return vars(parser.parse_args([]))
