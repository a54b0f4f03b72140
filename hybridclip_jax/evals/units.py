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
    unit. patient_N: whose it is, as the store's keyed hash. patients_unknown: how many records of the whole store name
    no patient; each of those counts as a patient of its own.
    """

    kind: str
    row_M: np.ndarray
    unit_M: np.ndarray
    row_N: np.ndarray
    patient_N: np.ndarray
    patients_unknown: int = 0

    @classmethod
    def of(cls, store: Store, kind: str, rows: np.ndarray | None = None) -> Units:
        """The units of all rows of the store, or of those in `rows` [M]."""
        row_M = np.arange(len(store)) if rows is None else np.asarray(rows, np.int64)
        patients = np.array(store.patients, object)
        unknown = int(store.manifest.get("ids", {}).get("patients_unknown", 0))
        if kind == "image":
            return cls(kind, row_M, np.arange(len(row_M)), row_M, patients[row_M], unknown)
        # With the patient: some sources number each patient's studies anew.
        name_M = [(store.patients[row], store.studies[row]) for row in row_M]
        place = {name: n for n, name in enumerate(dict.fromkeys(name_M))}
        unit_M = np.array([place[name] for name in name_M], np.int64)
        row_N = row_M[np.unique(unit_M, return_index=True)[1]]
        return cls(kind, row_M, unit_M, row_N, patients[row_N], unknown)

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def independent(self) -> bool:
        """Whether it is known that no patient has two units, so that units may be taken for independent draws."""
        return not self.patients_unknown and self.patients == len(self)

    @property
    def patients(self) -> int:
        """How many patients there are; those without a name count one by one."""
        return len(set(self.patient_N))

    @property
    def named_patients(self) -> int | None:
        """How many patients there are; None where some have no name, so that nobody knows."""
        return None if self.patients_unknown else self.patients

    def embeddings(self, image_MxE: np.ndarray) -> np.ndarray:
        """Unit vectors of the units, float64 [N, E]: the embeddings of a unit's images, averaged, normalised again."""
        total_NxE = np.zeros((len(self), image_MxE.shape[1]))
        with np.errstate(invalid="ignore"):  # infinities of either sign
            np.add.at(total_NxE, self.unit_M, image_MxE.astype(np.float64))
        return normalised(total_NxE)

    def labels(self, value: np.ndarray) -> np.ndarray:
        """A label of the units, float64 [N], from one [rows of the store] of 1, 0 or NaN for not known.

        A unit has a finding that any of its images is labelled with, lacks one that all labelled images lack.
        """
        out = np.full(len(self), -np.inf)
        value_M = value[self.row_M].astype(np.float64)
        known = ~np.isnan(value_M)
        np.maximum.at(out, self.unit_M[known], value_M[known])
        return np.where(np.isneginf(out), np.nan, out)


def normalised(x: np.ndarray) -> np.ndarray:
    """Vectors [..., E] over their lengths; NaN, without a warning, where a length is 0 or not finite.

    Such a value is told of where it is measured, as undefined and with its reason.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))
