"""Labels of 1, 0 and unknown: what an AUROC, a probe and a balanced accuracy are of."""

# N units, K labels

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals.units import Units

# What follows the kind in the names of values that are no label's.
_TAKEN = ("mean", "mean5", "n_labels")


def of(store: Store, units: Units, labels: Sequence[str]) -> np.ndarray:
    """Labels of the units, float64 [N, K] with NaN for unknown; UserError for a label that holds anything else.

    UserError, too, for a label that has the name of a value over all labels.
    """
    for label in labels:
        if label in _TAKEN:
            raise UserError(
                f"{store.spec}: a label cannot be called {label!r}, which is the name of a value over all labels; run "
                "prepare again with another name for it, or measure other labels alone"
            )
        values = store.labels[label]
        if not np.isin(values[~np.isnan(values)], (0.0, 1.0)).all():
            raise UserError(f"{store.spec}: label {label!r} holds values other than 0, 1 and unknown")
    columns = [units.labels(store.labels[label]) for label in labels]
    return np.stack(columns, axis=1) if columns else np.zeros((len(units), 0))
