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


def warnings(counts: Counts) -> list[str]:
    """A sentence for each label with too few units of either class to say much; see `metrics.small_class`."""
    said = {label: metrics.small_class(n["positives"], n["negatives"]) for label, n in counts.items()}
    return [f"{label}: {sentence}" for label, sentence in said.items() if sentence]
