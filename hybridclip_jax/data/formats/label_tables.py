"""Labels of datasets whose tables name them in columns of their own: 1, 0, -1 (uncertain) or blank, by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from hybridclip_jax.data.formats.columns import LABEL_VALUES, holds_labels, label
from hybridclip_jax.data.formats.table import Table
from hybridclip_jax.errors import UserError

# CheXpert's fourteen, in its order; MIMIC-CXR and CheXpert-Plus have the same names in other orders.
CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)


def named(table: Table, names: tuple[str, ...] = CHEXPERT_LABELS) -> dict[str, int]:
    """Where the labels `names` are; UserError when one has no column."""
    return dict(zip(names, table.positions(*names), strict=True))


def all_labels(table: Table, *keys: int) -> dict[str, int]:
    """Every column but `keys` that holds only label values, at least one of them; UserError when there is none."""
    found = {name: i for i, name in enumerate(table.columns) if name and i not in keys and holds_labels(table, i)}
    if not found:
        raise UserError(f"{table.path} has no column of labels (1, 0, -1 or blank): give another table to --labels")
    return found


def values(table: Table, row: int, columns: Mapping[str, int]) -> dict[str, float | None]:
    """The labels of one row, counted from 1; UserError where a cell is no label."""
    cells = table.rows[row - 1]
    found: dict[str, float | None] = {}
    for name, column in columns.items():
        try:
            found[name] = _value(cells[column])
        except ValueError as error:
            raise UserError(
                f"{table.path} row {row}: label {name!r} is something other than 1, 0, -1 or blank: mend it"
            ) from error
    return found


def unused(table: Table, *taken: int | None) -> str:
    """The columns that nothing was read from, for the notes."""
    return ", ".join(name or "(no name)" for i, name in enumerate(table.columns) if i not in taken) or "none"


def rows_by_key(table: Table, keys: Iterator[str], columns: Mapping[str, int]) -> dict[str, int]:
    """Row (from 1) by key, one key a row, in order.

    Raises:
        UserError: two rows have one key and different labels.
    """
    found: dict[str, int] = {}
    for row, key in enumerate(keys, start=1):
        first = found.setdefault(key, row)
        if first != row and values(table, first, columns) != values(table, row, columns):
            raise UserError(f"{table.path}: rows {first} and {row} give different labels to one key: keep one of them")
    return found


@functools.lru_cache(maxsize=256)
def _value(cell: str) -> float | None:
    value = label(cell)
    if value is not None and value not in LABEL_VALUES:
        raise ValueError("not a label")
    return value
