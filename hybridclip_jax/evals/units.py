"""What is scored: the images of a store, or its studies."""

# M rows of the store, N units, E embedding

from __future__ import annotations

import dataclasses

import numpy as np

from hybridclip_jax.data.store import Store

UNITS = ("image", "study")


@dataclasses.dataclass(frozen=True)
class Units:
    """N units made of M rows of a store, in the order in which the store first names them.

    kind: one of UNITS. row_M: the store's rows that are read. unit_M: the unit of each. row_N: the first row of each
    unit. patient_N: whose it is, as the store's keyed hash.
    """

    kind: str
    row_M: np.ndarray
    unit_M: np.ndarray
    row_N: np.ndarray
    patient_N: np.ndarray

    @classmethod
    def of(cls, store: Store, kind: str, rows: np.ndarray | None = None) -> Units:
        """The units of all rows of the store, or of those in `rows` [M]."""
        row_M = np.arange(len(store)) if rows is None else np.asarray(rows, np.int64)
        patients = np.array(store.patients, object)
        if kind == "image":
            return cls(kind, row_M, np.arange(len(row_M)), row_M, patients[row_M])
        # With the patient: some sources number each patient's studies anew.
        name_M = [(store.patients[row], store.studies[row]) for row in row_M]
        place = {name: n for n, name in enumerate(dict.fromkeys(name_M))}
        unit_M = np.array([place[name] for name in name_M], np.int64)
        row_N = row_M[np.unique(unit_M, return_index=True)[1]]
        return cls(kind, row_M, unit_M, row_N, patients[row_N])

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def independent(self) -> bool:
        """Whether no patient has two units, so that units may be taken for independent draws."""
        return len(set(self.patient_N)) == len(self)

    def embeddings(self, image_MxE: np.ndarray) -> np.ndarray:
        """Unit vectors of the units, float64 [N, E]: the embeddings of a unit's images, averaged, normalised again."""
        total_NxE = np.zeros((len(self), image_MxE.shape[1]))
        np.add.at(total_NxE, self.unit_M, image_MxE.astype(np.float64))
        return total_NxE / np.linalg.norm(total_NxE, axis=1, keepdims=True)

    def labels(self, value: np.ndarray) -> np.ndarray:
        """A label of the units, float64 [N], from one [rows of the store] of 1, 0 or NaN for not known.

        A unit has a finding that any of its images is labelled with, lacks one that all labelled images lack.
        """
        out = np.full(len(self), -np.inf)
        value_M = value[self.row_M].astype(np.float64)
        known = ~np.isnan(value_M)
        np.maximum.at(out, self.unit_M[known], value_M[known])
        return np.where(np.isneginf(out), np.nan, out)
