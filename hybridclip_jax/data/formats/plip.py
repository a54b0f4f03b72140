"""Format `plip`: histology tables in the layouts of PLIP (OpenPath).

Training: `image,caption`. Retrieval (tab separated): `images,captions`. Evaluation: `image,label` with
`label_text` and prompts in `text_style_0` to `text_style_4`, as its scripts write them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.paths import OUTSIDE, image_folder, inside
from hybridclip_jax.data.formats.shards import split_of
from hybridclip_jax.data.formats.table import Table, find_table, is_name, read_table
from hybridclip_jax.data.study import Format, Skip, Source, Study
from hybridclip_jax.errors import UserError

IMAGE = ("image", "images")
CAPTION = ("caption", "captions")
# PLIP's own evaluation takes style 4, a sentence; style 0 is the bare name of the class.
STYLES = ("text_style_4", "text_style_3", "text_style_2", "text_style_1", "text_style_0")
CLASS = ("label_text", "label")
_MOST_CLASSES = 200


def _add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--plip-text",
        metavar="COLUMN",
        help=f"column of the text (default: {CAPTION[0]} or {CAPTION[1]}, else the first there is of"
        f" {', '.join(STYLES)})",
    )


def _read(args: argparse.Namespace) -> Source:
    table = read_table(find_table(Path(args.source)))
    folder = image_folder(args.images, table.path.parent)
    layout = _layout(table, args.plip_text)
    classes = _classes(table, layout.kind)
    return Source(
        studies=_Studies(table, folder, layout, classes),
        total=len(table.rows),
        labels=classes,
        namespace=f"plip:{table.path.parent.resolve().name}",
        public_ids=False,
        synthetic=False,
        notes=_notes(table, layout, classes),
        colour=True,
        text_optional=layout.text is None,
    )


FORMAT = Format(
    "plip",
    _add_arguments,
    _read,
    describe="PLIP (OpenPath): tables of histology images with captions, or with classes for evaluation",
    example="--source Kather_test.csv --images data_validation_images",
    paths=frozenset({"source", "images"}),
)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Positions of the columns, and the split."""

    image: int
    text: int | None
    kind: int | None
    split: str


def _layout(table: Table, named: str | None) -> _Layout:
    there = set(table.columns)
    (image,) = table.positions(next((name for name in IMAGE if name in there), IMAGE[0]))
    text_name = named or next((name for name in (*CAPTION, *STYLES) if name in there), None)
    text = table.positions(text_name)[0] if text_name is not None else None
    kind = table.position(next((name for name in CLASS if name in there), CLASS[0]))
    if text is None and kind is None:
        raise UserError(
            f"{table.path} has neither a caption nor a label: name the column of the text with --plip-text."
            f" It has {', '.join(map(repr, table.columns))}"
        )
    return _Layout(image, text, kind, split_of(table.path.stem))


def _classes(table: Table, kind: int | None) -> tuple[str, ...]:
    if kind is None:
        return ()
    classes = {cells[kind].strip() for cells in table.rows} - {""}
    if len(classes) > _MOST_CLASSES:
        raise UserError(
            f"{table.path}: column {table.columns[kind]!r} has {len(classes)} different values, more than"
            f" {_MOST_CLASSES}: is it the class? Remove or rename the column"
        )
    if not all(map(is_name, classes)):
        raise UserError(
            f"{table.path}: column {table.columns[kind]!r} holds texts or file names, not the names of classes:"
            " remove or rename the column"
        )
    return tuple(sorted(classes))


@dataclasses.dataclass(frozen=True)
class _Studies:
    table: Table
    folder: Path
    layout: _Layout
    classes: tuple[str, ...]

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, cells in enumerate(self.table.rows, start=1):
            yield self._study(row, cells)

    def _study(self, row: int, cells: list[str]) -> Study | Skip:
        layout = self.layout
        image = cells[layout.image].strip()
        path = inside(self.folder, image)
        if not image:
            return Skip(row, "no image named")
        if path is None:
            return Skip(row, OUTSIDE)
        kind = cells[layout.kind].strip() if layout.kind is not None else ""
        return Study(
            source_row=row,
            id=image,
            study=image,
            patient=image,
            patient_known=False,
            split=layout.split,
            view="",
            text=cells[layout.text].strip() if layout.text is not None else "",
            sections={},
            labels={name: float(name == kind) if kind else None for name in self.classes},
            load_image=pixels.lazy(path),
        )


def _notes(table: Table, layout: _Layout, classes: tuple[str, ...]) -> dict[str, str]:
    used = (layout.image, layout.text, layout.kind)
    unused = [name or "(no name)" for i, name in enumerate(table.columns) if i not in used]
    labels = "none"
    if layout.kind is not None:
        labels = f"one for each value of column {table.columns[layout.kind]!r}: {', '.join(classes)}"
    return {
        "image": f"column {table.columns[layout.image]!r}",
        "text": f"column {table.columns[layout.text]!r}" if layout.text is not None else "none in this table",
        "labels": labels,
        "split": f"{layout.split}, from the table's name" if layout.split else "not in the table's name",
        "patient": "not known: each image counts as its own patient",
        "columns not used": ", ".join(unused) or "none",
    }
