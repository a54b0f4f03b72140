"""Format `csv`: a folder of images and one CSV, TSV or JSON-lines table with a row for each image.

Columns are named by flags or found by their usual names (`columns.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.columns import Columns, add_flags, find_columns
from hybridclip_jax.data.formats.paths import image_folder
from hybridclip_jax.data.formats.table import Table, find_table, read_table
from hybridclip_jax.data.study import Format, Skip, Source, Study
from hybridclip_jax.errors import UserError


def read(args: argparse.Namespace) -> Source:
    """Reads the table named by `args.source`; images lie relative to `args.images` or else to the table's
    folder.

    Raises:
        UserError: for the table (`read_table`), its columns (`find_columns`), or a row whose image cell is blank.
    """
    table = read_table(find_table(Path(args.source)))
    folder = image_folder(args.images, table.path.parent)
    columns = find_columns(table, args)
    blank = [row for row, cells in enumerate(table.rows, start=1) if not columns.cell("image", cells)]
    if blank:
        image_column = columns.roles["image"]
        assert image_column is not None
        raise UserError(
            f"{table.path} row {blank[0]}: no image named in column {table.columns[image_column]!r}"
            f" ({len(blank)} such rows): fill it, or delete the rows"
        )
    return Source(
        studies=_Studies(table, columns, folder),
        total=len(table.rows),
        labels=tuple(columns.labels),
        text_optional=columns.text_optional,
        namespace=f"csv:{table.path.parent.resolve().name}",
        public_ids=False,
        synthetic=False,
        notes=columns.notes,
    )


FORMAT = Format(
    "csv",
    add_flags,
    read,
    describe="a folder of images and one CSV, TSV or JSON-lines table with a row for each",
    example="--source data/train.csv --images data/images",
    paths=frozenset({"source", "images"}),
)


@dataclasses.dataclass(frozen=True)
class _Studies:
    table: Table
    columns: Columns
    folder: Path

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, cells in enumerate(self.table.rows, start=1):
            image = self.columns.cell("image", cells)
            yield self.columns.study(row, cells, image, pixels.lazy(self.folder / image))
