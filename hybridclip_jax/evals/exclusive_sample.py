"""The images of CheXpert 5x200: as many frontal ones of each of five classes that show nothing else.

GLoRIA (Huang et al., ICCV 2021) drew its 200 a class without a seed (its `preprocess_datasets.py`), so nobody can draw
them again. Here the draw has a seed, and the list can be saved, published and read back.
"""

# N records of a store, K labels

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hybridclip_jax.data.store import TABLE, Store
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import json_file
from hybridclip_jax.evals.pairs import seeded_order
from hybridclip_jax.evals.prompt_file import label_key
from hybridclip_jax.evals.zero_shot import COMPETITION

FORMAT = 1
# First word of a view: PadChest has AP_horizontal, MIMIC-CXR AP AXIAL. LL and RL are lateral in DICOM, and the few
# decubitus films that CheXpert calls so are left out.
FRONTAL = ("AP", "PA", "FRONTAL")

Candidates = dict[str, dict[int, int]]  # by class: record by source row


@dataclasses.dataclass(frozen=True)
class Sample:
    """Source rows by class, in rising order; how they were drawn, where they were drawn here."""

    rows: Mapping[str, tuple[int, ...]]
    drawn: Mapping[str, int]

    def describe(self) -> dict[str, Any]:
        """What a list file holds. `sha256` is of the rows by class in lower case, as compact JSON with sorted keys."""
        canonical = {label_key(label): rows for label, rows in self.rows.items()}
        text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
        rows = {label: list(rows) for label, rows in self.rows.items()}
        return {"format": FORMAT, **self.drawn, "sha256": hashlib.sha256(text.encode()).hexdigest(), "rows": rows}


def candidates(store: Store) -> Candidates:
    """Every record that may stand for a class: frontal, with that label positive and every other 0 or blank.

    The others are as many of CheXpert's 14 labels as the store has. Labels count as their source gives them, whatever
    the store's policy: an uncertain one (-1) is not 0, as in GLoRIA. Of several records of one source row the first.
    UserError where the store lacks one of the five classes or has no frontal record.
    """
    from hybridclip_jax.data.formats.label_tables import CHEXPERT_LABELS  # here, as it brings every format with it

    by_key = {label_key(name): name for name in store.label_names}
    if missing := [key for key in COMPETITION if key not in by_key]:
        raise UserError(f"{store.spec} has no label {missing[0]!r}: the five classes are {', '.join(COMPETITION)}")
    frontal = np.array([re.split("[^A-Z]", view.upper())[0] in FRONTAL for view in store.views])
    if not frontal.any():
        raise UserError(
            f"{store.spec}: no record has a frontal view ({', '.join(FRONTAL)}); prepare it with a column of views"
        )
    names = [by_key[key] for key in map(label_key, CHEXPERT_LABELS) if key in by_key]
    raw_NxK = _as_in_source(store, names)
    found: Candidates = {}
    for key in COMPETITION:
        alone_K = np.array([label_key(name) == key for name in names], float)
        rows = np.flatnonzero(frontal & (raw_NxK == alone_K).all(axis=1))
        # Backwards, so that the first record of a source row stays.
        found[by_key[key]] = {int(store.source_rows[row]): int(row) for row in rows[::-1]}
    return found


def draw(where: str, store: Store, found: Candidates, per_class: int, seed: int) -> Sample:
    """`per_class` candidates of each class, by a seeded order of all source rows; UserError where there are fewer.

    A row's place in that order depends on the seed and its number alone, so a record that could not be prepared
    changes only itself.
    """
    if per_class < 1:
        raise UserError(f"{where}.per_class = {per_class}: must be at least 1")
    if not 0 <= seed < 2**64:
        raise UserError(f"{where}.seed = {seed}: must be at least 0 and below 2**64")
    if short := [f"{len(rows):,} {label}" for label, rows in found.items() if len(rows) < per_class]:
        raise UserError(
            f"{store.spec} has only {', '.join(short)} (frontal, no other finding), and {where}.per_class = "
            f"{per_class}: lower it, or name another store"
        )
    order = seeded_order(1 + int(store.source_rows.max()), seed)
    rows = {label: order[np.isin(order, list(there))][:per_class] for label, there in found.items()}
    return Sample(
        {label: tuple(sorted(chosen.tolist())) for label, chosen in rows.items()},
        {"seed": seed, "per_class": per_class},
    )


def read(path: Path, store: Store, found: Candidates) -> Sample:
    """The list at `path`: what `describe` gives, alone or inside a `metrics.json` that `evaluate` wrote.

    UserError names the file, and the class or source row that does not fit the store.
    """
    try:
        _, content = json_file.read(path)
    except OSError as error:
        raise UserError(f"{path}: no such list of source rows by class") from error
    if isinstance(content, dict) and isinstance(content.get("evaluation"), dict):
        content = content["evaluation"].get("sample")
    rows = content.get("rows") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(rows, dict):
        raise UserError(f'{path}: a list is a JSON object with "format": {FORMAT} and "rows": {{CLASS: [source rows]}}')
    by_key = {label_key(label): chosen for label, chosen in rows.items()}
    if sorted(by_key) != sorted(COMPETITION) or len(by_key) < len(rows):
        raise UserError(f"{path}: 'rows' must name the five classes {', '.join(found)}, each once")
    return Sample(
        {label: _checked(path, label, by_key[label_key(label)], store, there) for label, there in found.items()}, {}
    )


def _checked(path: Path, label: str, chosen: object, store: Store, there: Mapping[int, int]) -> tuple[int, ...]:
    if not isinstance(chosen, list) or not chosen or not all(type(row) is int for row in chosen):
        raise UserError(f"{path}: rows.{label} must be a list of one or more source rows")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"{path}: rows.{label} names a source row twice")
    for row in chosen:
        if row not in there:
            raise UserError(
                f"{path}: source row {row} is no frontal record of {store.spec} with {label} and no other finding; "
                "the list is of another source or split"
            )
    return tuple(sorted(chosen))


def _as_in_source(store: Store, names: Sequence[str]) -> np.ndarray:
    """Labels [N, K] before the store's policy: 1, 0, -1, and 0 where blank."""
    with (store.path / TABLE).open("rb") as file:
        table = pq.read_table(file, columns=["split", *names], use_threads=False)
    there = table["split"].to_numpy() == store.split
    raw_NxK = np.stack([table[name].to_numpy().astype(np.float64) for name in names], axis=1)[there]
    return np.nan_to_num(raw_NxK, nan=0.0)
