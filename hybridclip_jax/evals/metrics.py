"""Scores from arrays, in numpy alone. An undefined value is None with a sentence that says why."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def auroc(scores: np.ndarray, labels: np.ndarray) -> tuple[float | None, str | None]:
    """Area under the ROC curve: the chance that a positive row outscores a negative one, ties counting half.

    `scores` [n], any real unit; `labels` [n] of 1.0, 0.0 or NaN (not known, left out). Computed in float64
    from the rank sum of the positives, tied ranks averaged (Mann and Whitney 1947; Hanley and McNeil 1982).
    Returns (value, None), or (None, why) when no value exists. Raises ValueError for shapes that differ or a
    label outside {0, 1, NaN}: the store's label policy settles uncertain labels before they come here.
    """
    scores = np.asarray(scores, np.float64)
    labels = np.asarray(labels, np.float64)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be two vectors of one length")
    known = ~np.isnan(labels)
    scores, labels = scores[known], labels[known]
    if not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError("labels hold values other than 0, 1 and NaN")
    n = labels.size
    positives = int(labels.sum())
    if n == 0:
        return None, "no row has a known label"
    if positives in (0, n):
        return None, f"all {n} known labels are {'positive' if positives else 'negative'}"
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        return None, f"{bad} of {n} scores are not finite"
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank_of_value = np.cumsum(count) - (count - 1) / 2  # mean 1-based rank of each group of ties
    rank_sum = rank_of_value[place][labels == 1].sum()
    pairs_won = rank_sum - positives * (positives + 1) / 2
    return float(pairs_won / (positives * (n - positives))), None


def mean_of_defined(values: Iterable[float | None]) -> tuple[float | None, int]:
    """Mean of the values that are defined (None when there is none), and how many they are."""
    defined = [value for value in values if value is not None]
    return (float(np.mean(defined)) if defined else None), len(defined)


def weighted_auroc(scores: np.ndarray, labels: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
    """`auroc` [R] where row n counts weight[r, n] times; NaN where it has no value."""
    known = ~np.isnan(labels)
    scores, positive, weight = scores[known], labels[known] == 1, weight_RxN[:, known]
    if not known.any() or not np.isfinite(scores).all():
        return np.full(len(weight_RxN), np.nan)
    order = np.argsort(scores, kind="stable")
    weight, positive = weight[:, order], positive[order]
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    pos = np.add.reduceat(weight * positive, starts, axis=1)
    neg = np.add.reduceat(weight * ~positive, starts, axis=1)
    won = (pos * (np.cumsum(neg, axis=1) - neg / 2)).sum(axis=1)
    pairs = pos.sum(axis=1) * neg.sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)
