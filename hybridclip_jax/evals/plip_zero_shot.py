"""PLIP's zero-shot classification of histology images (Huang et al., Nature Medicine 2023).

One caption a class, the class with the highest cosine, weighted F1. Their script makes the lists of classes and of
captions each by itself, so that they line up only where each class has one caption and both come in one order; here a
caption is made from the name of its class.
"""

# N rows of the store, M of them evaluated

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals.multi_class import MultiClass, exclusive_rows


class PlipZeroShot(MultiClass):
    """Each label of the store is a class; rows with no or several positive labels are left out, and counted.

    Several captions of a class, where a prompt file has them, count by their mean similarity. UserError for a store
    of fewer than two classes or without a row of exactly one.
    """

    def _choose(self) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
        classes, row_M, class_M = exclusive_rows(self.store)
        if len(classes) < 2:
            raise UserError(
                f"{self.entry['data']} has {len(classes)} label columns: classes need two or more; prepare it from a "
                "table with a column of classes"
            )
        if not len(row_M):
            raise UserError(f"{self.entry['data']}: no row has exactly one positive label, so none has a class")
        return classes, row_M, class_M

    def _score(self, cosine_NxP: np.ndarray) -> np.ndarray:
        return np.asarray(cosine_NxP.mean(axis=1))

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        if left_out := len(self.store) - len(self.units):
            described["notes"].append(
                f"{left_out:,} of {len(self.store):,} images are left out: they have no positive label, or several"
            )
        return described
