"""Finds what each column of a table is: named by a flag, or by the usual names in ROLES (upper and lower case
are one).

Two columns that could both play a role, or a label column with other values than 1, 0, -1 and blank, are an
error: nothing is guessed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable

import PIL.Image

from hybridclip_jax.data.formats.table import Table
from hybridclip_jax.data.sectioning import split_report
from hybridclip_jax.data.study import Study
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
    "licence": ("licence", "license"),
}
ALL_ROLES = tuple(ROLES)
ROLES_BESIDE_IMAGES = tuple(role for role in ROLES if role != "image")  # where the pictures are not in the table
SECTIONS = ("findings", "impression")
LABEL_VALUES = (1.0, 0.0, -1.0)
_BLANK_LABELS = ("", "nan")
_WHOLE_FLOAT = re.compile(r"([0-9]+)\.0")
_REQUIRED = ("image", "text")
_IDS = ("patient", "study")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column of a table (by position) is what. `notes` say it in words."""

    roles: dict[str, int | None]
    sections: dict[str, int]
    labels: dict[str, int]
    notes: dict[str, str]
    split_text: bool = False  # sections are asked for and have no columns: they come from the headers in the text

    def cell(self, role: str, cells: list[str]) -> str:
        """The stripped cell of a role, "" where the table has no such column."""
        column = self.roles.get(role)
        if column is None:
            return ""
        return plain_id(cells[column]) if role in _IDS else cells[column].strip()

    @property
    def text_optional(self) -> bool:
        """Whether there is no text at all: an evaluation set."""
        return self.roles["text"] is None and not self.sections

    def study(self, row: int, cells: list[str], image: str, load_image: Callable[[], PIL.Image.Image]) -> Study:
        """The study of one row; `image` names its picture within the dataset."""
        # A blank patient or study cell says as little as a missing column: the study stands for its patient, so that
        # no split tears it, and the image for itself.
        study = self.cell("study", cells)
        named = self.cell("patient", cells)
        patient = named or (f"study {study}" if study else f"image {image}")
        text_column = self.roles["text"]
        text = cells[text_column] if text_column is not None else ""
        sections = {name: cells[column] for name, column in self.sections.items()}
        return Study(
            source_row=row,
            id=image,
            study=f"{patient}\0{study}" if study else f"image {image}",  # many number studies within a patient
            patient=patient,
            patient_known=named != "",
            split=self.cell("split", cells),
            view=self.cell("view", cells),
            text=text,
            sections=split_report(text) if self.split_text else sections,
            labels={name: label(cells[column]) for name, column in self.labels.items()},
            load_image=load_image,
            licence=self.cell("licence", cells),
        )


def add_flags(parser: argparse._ActionsContainer, roles: tuple[str, ...] = ALL_ROLES, prefix: str = "") -> None:
    """Flags --[PREFIX]ROLE-column and --[PREFIX]label-columns; each is optional."""
    for role in roles:
        parser.add_argument(
            f"--{prefix}{role}-column",
            metavar="NAME",
            help=f"column of the {role}; found when called {', '.join(ROLES[role])}",
        )
    parser.add_argument(
        f"--{prefix}label-columns",
        metavar="A,B,C",
        help="label columns (1, 0, -1 uncertain, blank); without this, every other column that holds only"
        " such values; '' takes none",
    )


def find_columns(
    table: Table, args: argparse.Namespace, roles: tuple[str, ...] = ALL_ROLES, prefix: str = ""
) -> Columns:
    """The columns of `table`, by the flags that `add_flags` made with the same roles and prefix.

    A table of labels needs no text unless `args.text` or the flag of its column asks for it.

    Raises:
        UserError: a named column that is missing, a role with no column or several, or a label value outside
            1, 0, -1 and blank.
    """
    sections = {name.lower(): i for i, name in enumerate(table.columns) if name.lower() in SECTIONS}
    found = {
        role: _text_column(table, sections, args, prefix)
        if role == "text"
        else _find_column(table, role, _named(args, prefix, role), prefix)
        for role in roles
    }
    _refuse_twins(table, found)
    taken = {column for column in found.values() if column is not None} | set(sections.values())
    labels, are_named = _label_columns(table, taken, args, prefix)
    without_texts = found["text"] is None and not sections
    if without_texts and not labels:
        raise _none_found(table, "text", prefix)
    unused = [name or "(no name)" for i, name in enumerate(table.columns) if i not in taken and i not in labels]

    notes = {role: f"column {table.columns[i]!r}" if i is not None else "no column" for role, i in found.items()}
    stands = "image" if found["study"] is None else "study"
    if found["patient"] is None:
        notes["patient"] = f"no column: each {stands} counts as its own patient"
    elif alone := sum(not cells[found["patient"]].strip() for cells in table.rows):
        notes["patient"] += f" ({alone} blank: each such {stands} counts as its own patient)"
    if found["study"] is None:
        notes["study"] = "no column: each image counts as its own study"
    if without_texts:
        notes["text"] = "no column: an evaluation set without texts"
    split_text = not sections and getattr(args, "text", "report") != "report"
    notes["sections"] = "by the headers in the text" if split_text else ", ".join(sections) or "none"
    notes["labels"] = ("named: " if are_named else "found: ") + (", ".join(table.columns[i] for i in labels) or "none")
    notes["columns not used"] = ", ".join(unused) or "none"
    return Columns(found, sections, {table.columns[i]: i for i in labels}, notes, split_text)


def listing(table: Table) -> str:
    """The names of the columns, quoted, for messages."""
    return ", ".join(repr(name) for name in table.columns) or "no others"


def _named(args: argparse.Namespace, prefix: str, role: str) -> str | None:
    named: str | None = getattr(args, f"{prefix}{role}_column".replace("-", "_"))
    return named


def _refuse_twins(table: Table, roles: dict[str, int | None]) -> None:
    for role, column in roles.items():
        twin = next((other for other in roles if other != role and roles[other] == column), None)
        if column is not None and twin is not None:
            name = table.columns[column]
            raise UserError(f"{table.path}: column {name!r} cannot be both the {role} and the {twin}")


def _find_column(table: Table, role: str, named: str | None, prefix: str) -> int | None:
    flag = f"--{prefix}{role}-column"
    if named is not None:
        if named not in table.columns:
            raise UserError(f"{table.path} has no column {named!r} ({flag}). It has {listing(table)}")
        return table.columns.index(named)
    found = [i for i, name in enumerate(table.columns) if name.lower() in ROLES[role]]
    if len(found) > 1:
        names = ", ".join(repr(table.columns[i]) for i in found)
        raise UserError(f"{table.path}: columns {names} could each be the {role}: name one with {flag}")
    if not found and role in _REQUIRED:
        raise _none_found(table, role, prefix)
    return found[0] if found else None


def _none_found(table: Table, role: str, prefix: str) -> UserError:
    flag = f"--{prefix}{role}-column"
    return UserError(f"{table.path}: no column found for the {role}: name it with {flag}. It has {listing(table)}")


def _text_column(table: Table, sections: dict[str, int], args: argparse.Namespace, prefix: str) -> int | None:
    """The column of the whole text. None where --text asks for sections that have columns and no column has all, or
    where the table has no text at all and none is asked for.
    """
    named = _named(args, prefix, "text")
    policy = getattr(args, "text", "report")
    whole = [i for i, name in enumerate(table.columns) if name.lower() in ROLES["text"] and i not in sections.values()]
    if policy != "report" and sections:
        if named is not None:
            raise UserError(f"--text {policy} and --{prefix}text-column {named}: give one of them")
        if not any(name in sections for name in policy.split("+")):
            missing = " or ".join(map(repr, policy.split("+")))
            raise UserError(f"{table.path} has no column {missing} (--text {policy}). It has {listing(table)}")
        return whole[0] if len(whole) == 1 else None
    if named is None and not whole and len(sections) > 1:
        raise UserError(
            f"{table.path}: columns {', '.join(map(repr, sections))} are parts of a report, and no column has all "
            f"of it: choose one with --text, or name a column with --{prefix}text-column"
        )
    if named is None and policy == "report" and not whole and not sections:
        return None
    if named is None and len(whole) == 1:
        return whole[0]
    return _find_column(table, "text", named, prefix)


def _label_columns(table: Table, taken: set[int], args: argparse.Namespace, prefix: str) -> tuple[list[int], bool]:
    flag = f"--{prefix}label-columns"
    named = getattr(args, f"{prefix}label_columns".replace("-", "_"))
    if named is None:
        free = (i for i, name in enumerate(table.columns) if i not in taken and name)
        return [i for i in free if holds_labels(table, i)], False
    columns: list[int] = []
    for name in (part.strip() for part in named.split(",")):
        if not name:
            continue
        if name not in table.columns:
            raise UserError(f"{table.path} has no column {name!r} ({flag}). It has {listing(table)}")
        column = table.columns.index(name)
        if column in columns:
            raise UserError(f"{flag} names {name!r} twice")
        if column in taken:
            raise UserError(f"{flag}: column {name!r} already serves as something else")
        bad = [row for row, cells in enumerate(table.rows, start=1) if not is_label(cells[column])]
        if bad:
            raise UserError(
                f"{table.path} row {bad[0]}: label column {name!r} holds something other than 1, 0, -1 or"
                f" blank ({len(bad)} such rows): mend it, or leave the column out"
            )
        columns.append(column)
    return columns, True


def plain_id(cell: str) -> str:
    """An id without the spaces around it, and 10001 for 10001.0."""
    # pandas writes whole numbers of a column with gaps as 12.0, and one person must have one id.
    stripped = cell.strip()
    whole = _WHOLE_FLOAT.fullmatch(stripped)
    return whole[1] if whole else stripped


def holds_labels(table: Table, column: int) -> bool:
    """Whether every cell of the column is a label, and not all are blank."""
    known = False
    for cells in table.rows:
        if not is_label(cells[column]):
            return False
        known = known or label(cells[column]) is not None
    return known


def is_label(cell: str) -> bool:
    """Whether a cell is 1, 0, -1 or blank."""
    try:
        return label(cell) in (None, *LABEL_VALUES)
    except ValueError:
        return False


def label(cell: str) -> float | None:
    """The number in a cell, None where it is blank; ValueError when it holds anything else."""
    if cell.strip().lower() in _BLANK_LABELS:
        return None
    value = float(cell)
    if math.isnan(value):
        raise ValueError("not a label")
    return value
