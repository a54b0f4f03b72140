"""The tables beside a tree of DICOM files: texts and labels, found by a path or a header field of the image."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from hybridclip_jax.data.formats.columns import ROLES, SECTIONS, holds_labels, label, listing
from hybridclip_jax.data.formats.table import Table
from hybridclip_jax.data.sectioning import split_report
from hybridclip_jax.data.study import RecordError
from hybridclip_jax.errors import UserError

PATH = "path"
KEYS = (PATH, "SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID")

Names = Mapping[str, str]  # of one image: what it is called by each of KEYS, "" where it has no such name
Text = tuple[str, dict[str, str]]  # the whole text, and its sections
Labels = dict[str, float | None]


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Flags that name columns; each is optional."""
    parser.add_argument(
        "--dicom-key",
        metavar="COLUMN[=FIELD]",
        help=f"column of --reports and --labels that names the image, and what it holds: one of {', '.join(KEYS)}"
        " (default: the column called so)",
    )
    parser.add_argument(
        "--dicom-text",
        metavar="COLUMN",
        help=f"column of --reports with the text; found when called {', '.join(ROLES['text'])}",
    )


def texts_in(table: Table, args: argparse.Namespace, notes: dict[str, str]) -> Callable[[Names], Text]:
    """What finds an image's text; RecordError where the table has none for it. Says in `notes` which columns.

    Raises:
        UserError: columns that are missing or could each play a part, a blank key, or two rows for one key that
            say different things.
    """
    column, field = _key_column(table, args)
    found = {name.lower(): i for i, name in enumerate(table.columns) if name.lower() in SECTIONS}
    sections = {name: found[name] for name in SECTIONS if name in found}
    whole = _text_column(table, args.dicom_text, column, sections)
    texts = [whole] if whole is not None else list(sections.values())
    rows = _by_key(table, column, field, {*texts, *sections.values()})
    notes["text"] = f"{' and '.join(f'column {table.columns[i]!r}' for i in texts)} of --reports, by {field}"
    unused = [i for i in range(len(table.columns)) if i != column and i not in texts and i not in sections.values()]
    notes["columns not used"] = ", ".join(table.columns[i] or "(no name)" for i in unused) or "none"

    def find(names: Names) -> Text:
        if not names[field]:
            raise RecordError(f"no {field} in the header", unreadable=False)
        cells = rows.get(names[field])
        if cells is None:
            raise RecordError("no row for the image in the table of texts", unreadable=False)
        parts = {name: cells[i] for name, i in sections.items()}
        if whole is not None:
            return cells[whole], parts or split_report(cells[whole])
        return "\n\n".join(part.strip() for part in parts.values() if part.strip()), parts

    return find


def labels_in(
    table: Table, args: argparse.Namespace, notes: dict[str, str]
) -> tuple[tuple[str, ...], Callable[[Names], Labels]]:
    """The columns that hold nothing but labels, and what finds an image's; all blank where the table has no row.

    Raises:
        UserError: as `texts_in`, or no column of labels.
    """
    key, field = _key_column(table, args)
    columns = [i for i, name in enumerate(table.columns) if name and i != key and holds_labels(table, i)]
    if not columns:
        raise UserError(f"{table.path} has no column of labels (1, 0, -1 or blank). It has {listing(table)}")
    labels = tuple(table.columns[i] for i in columns)
    rows = _by_key(table, key, field, set(columns))
    notes["labels"] = f"columns {', '.join(map(repr, labels))} of --labels, by {field}"

    def find(names: Names) -> Labels:
        cells = rows.get(names[field]) if names[field] else None
        return {table.columns[i]: label(cells[i]) if cells is not None else None for i in columns}

    return labels, find


def _key_column(table: Table, args: argparse.Namespace) -> tuple[int, str]:
    """The column that names the image, and which of KEYS it holds."""
    fields = {_folded(key): key for key in KEYS}
    if args.dicom_key is not None:
        named, _, field = args.dicom_key.partition("=")
        if field and field not in KEYS:
            raise UserError(f"--dicom-key {args.dicom_key}: behind '=' goes one of {', '.join(KEYS)}")
        if named not in table.columns:
            raise UserError(f"{table.path} has no column {named!r} (--dicom-key). It has {listing(table)}")
        field = field or fields.get(_folded(named), "")
        if not field:
            raise UserError(
                f"--dicom-key {named}: say what the column holds, as in --dicom-key {named}=StudyInstanceUID"
                f" (one of {', '.join(KEYS)})"
            )
        return table.columns.index(named), field
    found = [i for i, name in enumerate(table.columns) if _folded(name) in fields]
    if len(found) > 1:
        columns = ", ".join(repr(table.columns[i]) for i in found)
        raise UserError(f"{table.path}: columns {columns} could each name the image: choose one with --dicom-key")
    if not found:
        raise UserError(
            f"{table.path}: no column is called {', '.join(KEYS[:-1])} or {KEYS[-1]}: name the one that tells the"
            f" image with --dicom-key COLUMN=FIELD. It has {listing(table)}"
        )
    return found[0], fields[_folded(table.columns[found[0]])]


def _folded(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")


def _text_column(table: Table, named: str | None, key: int, sections: dict[str, int]) -> int | None:
    """The column of the whole text; None: there are sections alone."""
    if named is not None:
        if named not in table.columns or table.columns.index(named) == key:
            raise UserError(f"{table.path} has no text column {named!r} (--dicom-text). It has {listing(table)}")
        return table.columns.index(named)
    taken = {key, *sections.values()}
    found = [i for i, name in enumerate(table.columns) if name.lower() in ROLES["text"] and i not in taken]
    if len(found) > 1:
        columns = ", ".join(repr(table.columns[i]) for i in found)
        raise UserError(f"{table.path}: columns {columns} could each be the text: name one with --dicom-text")
    if not found and not sections:
        raise UserError(
            f"{table.path}: no column found for the text: name it with --dicom-text. It has {listing(table)}"
        )
    return found[0] if found else None


def _by_key(table: Table, column: int, field: str, said: set[int]) -> dict[str, list[str]]:
    """Rows by the image they name; several for one image must agree in the columns `said`."""
    rows: dict[str, tuple[int, list[str]]] = {}
    name = table.columns[column]
    for row, cells in enumerate(table.rows, start=1):
        key = cells[column].strip()
        if not key:
            raise UserError(f"{table.path} row {row}: column {name!r} is blank: fill it, or delete the row")
        first, others = rows.setdefault(str(PurePosixPath(key)) if field == PATH else key, (row, cells))
        if any(others[i].strip() != cells[i].strip() for i in said):
            raise UserError(
                f"{table.path}: rows {first} and {row} have the same {name!r} and say different things:"
                " keep one of them, or name a finer column with --dicom-key"
            )
    return {key: cells for key, (_, cells) in rows.items()}
