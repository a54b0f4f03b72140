"""Format `csv`: a folder of images and one CSV, TSV or JSON-lines table with a row for each image.

Columns are named by flags or found by the usual names in ROLES (upper and lower case are one). Two columns
that could both play a role, or a label column with other values than 1, 0, -1 and blank, are an error:
nothing is guessed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.base import Format, Skip, Source, Study
from hybridclip_jax.data.formats.table import Table, find_table, read_table
from hybridclip_jax.errors import UserError

ROLES: dict[str, tuple[str, ...]] = {
    "image": (
        "image",
        "images",
        "image_path",
        "path",
        "filepath",
        "file_path",
        "filename",
        "file_name",
        "file",
        "img",
    ),
    "text": ("text", "report", "impression", "caption", "captions", "title"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "subjectid"),
    "study": ("study", "study_id", "studyid"),
    "split": ("split",),
    "view": ("view", "view_position", "viewposition", "projection", "ap_pa"),
}
SECTIONS = ("findings", "impression")
LABEL_VALUES = (1.0, 0.0, -1.0)
_BLANK_LABELS = ("", "nan")
_REQUIRED = ("image", "text")


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Flags that name columns; each is optional."""
    for role, names in ROLES.items():
        parser.add_argument(
            f"--{role}-column",
            metavar="NAME",
            help=f"column of the {role}; found when called {', '.join(names)}",
        )
    parser.add_argument(
        "--label-columns",
        metavar="A,B,C",
        help="label columns (1, 0, -1 uncertain, blank); without this, every other column that holds only"
        " such values; '' takes none",
    )
    parser.add_argument(
        "--namespace",
        metavar="NAME",
        help="patients of two stores compare only under one name (default: the name of the table's folder)",
    )


def read(args: argparse.Namespace) -> Source:
    """Reads the table named by `args.source`; images lie relative to `args.images` or else to the table's
    folder.

    Raises:
        UserError: for the table (`read_table`), a named column that is missing, a role with no column or
            several, a row whose image cell is blank, or a label value outside 1, 0, -1 and blank.
    """
    if args.source is None:
        raise UserError("--format csv needs --source TABLE: a CSV, TSV or JSONL file, or a folder that holds one")
    table = read_table(find_table(Path(args.source)))
    folder = Path(args.images) if args.images is not None else table.path.parent
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder for --images")
    sections = {name.lower(): i for i, name in enumerate(table.columns) if name.lower() in SECTIONS}
    roles = {
        role: _text_column(table, sections, args)
        if role == "text"
        else _find_column(table, role, getattr(args, f"{role}_column"))
        for role in ROLES
    }
    for role, column in roles.items():
        twin = next((other for other in roles if other != role and roles[other] == column), None)
        if column is not None and twin is not None:
            name = table.columns[column]
            raise UserError(f"{table.path}: column {name!r} cannot be both the {role} and the {twin}")
    image_column = roles["image"]
    assert image_column is not None
    blank = [row for row, cells in enumerate(table.rows, start=1) if not cells[image_column].strip()]
    if blank:
        raise UserError(
            f"{table.path} row {blank[0]}: no image named in column {table.columns[image_column]!r}"
            f" ({len(blank)} such rows): fill it, or delete the rows"
        )
    taken = {column for column in roles.values() if column is not None}
    taken |= set(sections.values())
    labels, named = _label_columns(table, taken, args.label_columns)
    unused = [name or "(no name)" for i, name in enumerate(table.columns) if i not in taken and i not in labels]

    notes = {role: f"column {table.columns[i]!r}" if i is not None else "no column" for role, i in roles.items()}
    if roles["patient"] is None:
        notes["patient"] = "no column: each image counts as its own patient"
    elif alone := sum(not cells[roles["patient"]].strip() for cells in table.rows):
        notes["patient"] += f" ({alone} blank: each such image counts as its own patient)"
    if roles["study"] is None:
        notes["study"] = "no column: each image counts as its own study"
    notes["sections"] = ", ".join(sections) or "none"
    notes["labels"] = ("named: " if named else "found: ") + (", ".join(table.columns[i] for i in labels) or "none")
    notes["columns not used"] = ", ".join(unused) or "none"
    layout = _Layout(folder, roles, sections, {table.columns[i]: i for i in labels})
    return Source(
        studies=_Studies(table, layout),
        total=len(table.rows),
        labels=tuple(table.columns[i] for i in labels),
        namespace=f"csv:{args.namespace or table.path.parent.resolve().name}",
        public_ids=False,
        synthetic=False,
        notes=notes,
    )


FORMAT = Format("csv", add_arguments, read)


@dataclasses.dataclass(frozen=True)
class _Layout:
    folder: Path
    roles: dict[str, int | None]
    sections: dict[str, int]
    labels: dict[str, int]


@dataclasses.dataclass(frozen=True)
class _Studies:
    table: Table
    layout: _Layout

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, cells in enumerate(self.table.rows, start=1):
            yield _study(row, cells, self.layout)


def _study(row: int, cells: list[str], layout: _Layout) -> Study:
    def cell(role: str) -> str:
        column = layout.roles[role]
        return cells[column].strip() if column is not None else ""

    image = cell("image")
    # A blank patient or study cell says as little as a missing column: the image stands for itself.
    patient = cell("patient") or f"image {image}"
    study = cell("study")
    text_column = layout.roles["text"]
    assert text_column is not None
    return Study(
        source_row=row,
        id=image,
        study=f"{patient}\0{study}" if study else f"image {image}",  # many datasets number studies within a patient
        patient=patient,
        split=cell("split"),
        view=cell("view"),
        text=cells[text_column],
        sections={name: cells[column] for name, column in layout.sections.items()},
        labels={name: _label(cells[column]) for name, column in layout.labels.items()},
        load_image=pixels.lazy(layout.folder / image),
    )


def _find_column(table: Table, role: str, named: str | None) -> int | None:
    if named is not None:
        if named not in table.columns:
            raise UserError(f"{table.path} has no column {named!r} (--{role}-column). It has {_listing(table)}")
        return table.columns.index(named)
    found = [i for i, name in enumerate(table.columns) if name.lower() in ROLES[role]]
    if len(found) > 1:
        names = ", ".join(repr(table.columns[i]) for i in found)
        raise UserError(f"{table.path}: columns {names} could each be the {role}: name one with --{role}-column")
    if not found and role in _REQUIRED:
        raise UserError(
            f"{table.path}: no column found for the {role}: name it with --{role}-column. It has {_listing(table)}"
        )
    return found[0] if found else None


def _text_column(table: Table, sections: dict[str, int], args: argparse.Namespace) -> int | None:
    """The column of the whole text; with --text SECTION that section's, which has to be there."""
    section = getattr(args, "text", "report")
    if section != "report":
        if args.text_column is not None:
            raise UserError(f"--text {section} and --text-column {args.text_column}: give one of them")
        if section not in sections:
            raise UserError(f"{table.path} has no column {section!r} (--text {section}). It has {_listing(table)}")
        return sections[section]
    whole = [i for i, name in enumerate(table.columns) if name.lower() in ROLES["text"] and i not in sections.values()]
    if args.text_column is None and not whole and len(sections) > 1:
        raise UserError(
            f"{table.path}: columns {', '.join(map(repr, sections))} are parts of a report, and no column has all "
            "of it: choose one with --text, or name a column with --text-column"
        )
    if args.text_column is None and len(whole) == 1:
        return whole[0]
    return _find_column(table, "text", args.text_column)


def _label_columns(table: Table, taken: set[int], named: str | None) -> tuple[list[int], bool]:
    if named is None:
        free = (i for i, name in enumerate(table.columns) if i not in taken and name)
        return [i for i in free if _holds_labels(table, i)], False
    columns: list[int] = []
    for name in (part.strip() for part in named.split(",")):
        if not name:
            continue
        if name not in table.columns:
            raise UserError(f"{table.path} has no column {name!r} (--label-columns). It has {_listing(table)}")
        column = table.columns.index(name)
        if column in columns:
            raise UserError(f"--label-columns names {name!r} twice")
        if column in taken:
            raise UserError(f"--label-columns: column {name!r} already serves as something else")
        bad = [row for row, cells in enumerate(table.rows, start=1) if not _is_label(cells[column])]
        if bad:
            raise UserError(
                f"{table.path} row {bad[0]}: label column {name!r} holds something other than 1, 0, -1 or"
                f" blank ({len(bad)} such rows): mend it, or leave the column out"
            )
        columns.append(column)
    return columns, True


def _holds_labels(table: Table, column: int) -> bool:
    known = False
    for cells in table.rows:
        if not _is_label(cells[column]):
            return False
        known = known or _label(cells[column]) is not None
    return known  # a column of blanks says nothing


def _is_label(cell: str) -> bool:
    try:
        return _label(cell) in (None, *LABEL_VALUES)
    except ValueError:
        return False


def _label(cell: str) -> float | None:
    if cell.strip().lower() in _BLANK_LABELS:
        return None
    value = float(cell)
    if math.isnan(value):
        raise ValueError("not a label")
    return value


def _listing(table: Table) -> str:
    return ", ".join(repr(name) for name in table.columns)
