"""`hybridclip prepare`: an on-disk dataset becomes a store, and a table says what became of every row."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridclip_jax.data import stage
from hybridclip_jax.data.encoding import ENCODINGS, JPEG_QUALITY
from hybridclip_jax.data.formats import FORMATS
from hybridclip_jax.data.manifest import BLANK, UNCERTAIN
from hybridclip_jax.data.pixels import RESIZE
from hybridclip_jax.data.plan import TEXTS, Options, Outcome
from hybridclip_jax.data.prepare import CAP_FROM_ROWS, prepare
from hybridclip_jax.data.splits import parse_shares
from hybridclip_jax.data.store import MANIFEST, SKIPPED, Store, read_manifest
from hybridclip_jax.data.store_writer import refuse_existing
from hybridclip_jax.errors import UserError
from hybridclip_jax.logs import Bars, table

HELP = "turn a dataset on disk into a store that training and evaluation read"
EXAMPLE = "hybridclip prepare --format csv --source data/train.csv --out stores/train"

PATHS = ("source", "images", "reports", "labels")
_SHOWN_ROWS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of every format, then each format's own under its name; --help shows those of the one named before."""
    chosen = parser.add_argument(
        "--format",
        required=True,
        choices=sorted(FORMATS),
        metavar="NAME",
        action=_Choose,
        help="how the dataset lies on disk",
    )
    assert isinstance(chosen, _Choose)
    parser.add_argument("--source", metavar="PATH", help="the dataset: a table, a file or a folder")
    parser.add_argument("--images", metavar="PATH", help="its images, where they lie elsewhere")
    parser.add_argument("--reports", metavar="PATH", help="its texts, where they lie elsewhere")
    parser.add_argument("--labels", metavar="PATH", help="its labels, where they lie elsewhere")
    parser.add_argument(
        "--namespace",
        metavar="NAME",
        help="patients of two stores compare only under one name (default: the dataset's, or for a table its folder's)",
    )
    parser.add_argument("--out", required=True, metavar="STORE", help="folder to make; must not exist")
    splits = parser.add_mutually_exclusive_group()
    splits.add_argument("--split", metavar="NAME", help="put every record in this split, whatever the source says")
    splits.add_argument(
        "--split-by-patient",
        metavar="NAME=SHARE,...",
        help="split by patient, such as train=0.8,val=0.1,test=0.1",
    )
    parser.add_argument(
        "--text",
        choices=TEXTS,
        help="what is paired with the image: all of the text, or sections of it (default: what the format says)",
    )
    parser.add_argument(
        "--resize",
        choices=RESIZE,
        default="pad",
        help="to 320 x 320: zeros around the whole picture (pad, the default), its largest centred square,"
        " or stretched",
    )
    parser.add_argument(
        "--colour",
        action=argparse.BooleanOptionalAction,
        help="three channels, or one (default: what the format says; grey for radiographs)",
    )
    parser.add_argument(
        "--encoding",
        choices=sorted(ENCODINGS),
        default="raw",
        help=f"raw pixels, quickest to read (default), or JPEG of quality {JPEG_QUALITY}, about three times smaller",
    )
    parser.add_argument(
        "--uncertain",
        choices=UNCERTAIN,
        default="ignore",
        help="what a label of -1 counts as (default: ignore)",
    )
    parser.add_argument(
        "--blank",
        choices=BLANK,
        default="missing",
        help="what a blank label counts as (default: missing); where all of an image's several labels are blank,"
        " they stay missing",
    )
    parser.add_argument(
        "--max-skipped",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="most images that may be unreadable, as a share of the rows"
        f" (default: 0.01; from {CAP_FROM_ROWS} rows on)",
    )
    parser.add_argument(
        "--stage",
        metavar="DIR",
        help="then copy the store to this folder, on a disk of this computer; of a STORE that is there already,"
        " only that is done",
    )
    formats = table(("format", "reads"), [(name, reader.describe) for name, reader in FORMATS.items()])
    example = f"\n\n{parser.epilog}" if parser.epilog else ""
    parser.epilog = f"{formats}\n\nThe flags of one of them: hybridclip prepare --format NAME --help{example}"
    for name, reader in FORMATS.items():
        group = parser.add_argument_group(f"--format {name}")
        reader.add_arguments(group)
        chosen.hide(name, group._group_actions)


class _Choose(argparse.Action):
    """Takes the format's name. Only then are that format's flags shown by --help: all at once would bury them."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, **settings)
        self._hidden: dict[str, list[tuple[argparse.Action, str | None]]] = {}

    def hide(self, name: str, actions: Sequence[argparse.Action]) -> None:
        self._hidden[name] = [(action, action.help) for action in actions]
        for action in actions:
            action.help = argparse.SUPPRESS

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        for action, text in self._hidden[values]:
            action.help = text
        reader = FORMATS[values]
        text = f". Default of --text: {reader.text}" if reader.text else ""
        parser.description = f"{HELP}\n\n{values}: {reader.describe}{text}"
        parser.epilog = f"example: hybridclip prepare --format {values} {reader.example} --out stores/train"


def run(args: argparse.Namespace) -> None:
    """Prepares and prints; raises UserError, StorageError or RunStopped as `prepare` does."""
    out = Path(args.out)
    if args.stage is not None and (out / MANIFEST).is_file():
        print(f"{out} is a store already: it is staged as it is, and nothing is prepared")
    else:
        _prepare(args, out)
    if args.stage is not None:
        with contextlib.closing(Bars("megabyte")) as bars:
            folder = stage.expanded(args.stage, "--stage")
            stage.stage(out, folder, progress=functools.partial(bars, "stage"), say=print)


def _prepare(args: argparse.Namespace, out: Path) -> None:
    _refuse_foreign_flags(args)
    if not 0 <= args.max_skipped <= 1:
        raise UserError(f"--max-skipped {args.max_skipped:g} is not a share between 0 and 1")
    refuse_existing(out)  # asked now, as reading may take its time
    reader = FORMATS[args.format]
    if args.text is None:
        args.text = reader.text
    source = reader.read(args)
    if args.namespace is not None:
        if source.public_ids:
            raise UserError(f"--namespace {args.namespace}: --format {args.format} has its own; leave it out")
        source = dataclasses.replace(source, namespace=args.namespace)
    options = Options(
        split=args.split,
        split_by_patient=parse_shares(args.split_by_patient) if args.split_by_patient is not None else None,
        text=args.text,
        resize=args.resize,
        colour=source.colour if args.colour is None else args.colour,
        encoding=args.encoding,
        uncertain=args.uncertain,
        blank=args.blank,
        max_skipped=args.max_skipped,
    )
    if source.synthetic:
        print("synthetic data: no image, text or label here is of a patient")
    print("\n".join(f"{name}: {note}" for name, note in source.notes.items()))
    # Read once, and then let go of: the tables of a large dataset take as much memory as all that is made of them.
    source = dataclasses.replace(source, studies=iter(source.studies))
    try:
        with contextlib.closing(Bars("image")) as bars:
            outcome = prepare(source, out, options, format_name=args.format, progress=bars, say=print)
    except KeyboardInterrupt:
        if Path(f"{out}.partial").exists():
            print(f"what is done is kept in {out}.partial, and the same command goes on from there")
        raise
    print(describe(out, outcome))


def describe(out: Path, outcome: Outcome) -> str:
    """What became of the rows and what the store holds, read back from the store, as plain text."""
    fates: list[tuple[object, ...]] = [("read", outcome.read, ""), ("kept", outcome.kept, "")]
    for reason, rows in outcome.skipped_rows.items():
        shown = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", ..." if len(rows) > _SHOWN_ROWS else "")
        fates.append((f"skipped: {reason}", len(rows), shown))
    if outcome.without_text:
        fates.insert(2, ("of these without a text: for evaluation only", outcome.without_text, ""))
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
    takes = FORMATS[args.format].paths
    for flag in PATHS:
        if getattr(args, flag) is not None and flag not in takes:
            raise UserError(f"--{flag}: --format {args.format} reads nothing there; leave it out")
    if "source" in takes and args.source is None:
        raise UserError(f"--format {args.format} needs --source PATH: {FORMATS[args.format].describe}")
    own = _defaults(args.format)
    for name in FORMATS:
        for flag, default in _defaults(name).items():
            if flag not in own and getattr(args, flag) != default:
                raise UserError(f"--{flag.replace('_', '-')} belongs to --format {name}, not to --format {args.format}")


def _defaults(name: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    FORMATS[name].add_arguments(parser)
    return vars(parser.parse_args([]))
