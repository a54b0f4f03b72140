"""How many units have each label: printed beside every value of it."""

# N units, K labels

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybridclip_jax.evals import metrics

Counts = dict[str, dict[str, int]]


def of(labels: Sequence[str], truth_NxK: np.ndarray) -> Counts:
    """Positives, negatives and unknown of each label, from columns of 1, 0 and NaN."""
    return {
        label: {
            "positives": int((truth_N == 1).sum()),
            "negatives": int((truth_N == 0).sum()),
            "unknown": int(np.isnan(truth_N).sum()),
        }
        for label, truth_N in zip(labels, truth_NxK.T, strict=True)
    }


def warnings(labels: Sequence[str], truth_NxK: np.ndarray, patient_N: np.ndarray) -> list[str]:
    """One sentence on the labels with too few patients of either class to say much; see `metrics.small_class`."""
    said = list[str]()
    for label, truth_N in zip(labels, truth_NxK.T, strict=True):
        positive, negative = (patient_N[truth_N == value] for value in (1, 0))
        rows, patients = (len(positive), len(negative)), (len(set(positive)), len(set(negative)))
        if little := metrics.small_class(rows, patients):
            said.append(f"{label}: {little}")
    if not said:
        return []
    then = f"with fewer than {metrics.SMALL} the value is uncertain, and an interval, where it has one, too narrow"
    return [f"{'; '.join(said)}: {then}"]
