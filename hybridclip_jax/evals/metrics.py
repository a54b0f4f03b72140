"""Scores from arrays, in numpy alone. An undefined value is None with a sentence that says why, or NaN in an array.

What takes `weight_RxN` gives the value of each of R resamples, in which row n counts weight[r, n] times: the same as
of rows that are literally repeated, without repeating them.
"""

# N rows, R resamples, K classes, F rows of the smaller class, M rows of the larger

from __future__ import annotations

import numpy as np

# A label with fewer patients of either class than this is warned of; see `small_class`.
SMALL = 30


def auroc(scores: np.ndarray, labels: np.ndarray) -> tuple[float | None, str | None]:
    """Area under the ROC curve: the chance that a positive row outscores a negative one, ties counting half.

    `scores` [N], any real unit; `labels` [N] of 1.0, 0.0 or NaN (not known, left out). Computed in float64
    from the rank sum of the positives, tied ranks averaged (Mann and Whitney 1947; Hanley and McNeil 1982).
    Returns (value, None), or (None, why) when no value exists. Raises ValueError for shapes that differ or a
    label outside {0, 1, NaN}: the store's label policy settles uncertain labels before they come here.
    """
    scores, labels, why = _known(scores, labels)
    if why:
        return None, why
    return float(weighted_auroc(scores, labels, np.ones((1, len(scores))))[0]), None


def weighted_auroc(scores: np.ndarray, labels: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
    """`auroc` [R] where row n counts weight[r, n] times; NaN where it has no value."""
    undefined = np.full(len(weight_RxN), np.nan)
    known = np.flatnonzero(~np.isnan(labels))
    if not np.isfinite(scores[known]).all():
        return undefined
    order = known[np.argsort(scores[known], kind="stable")]
    positive, negative = order[labels[order] == 1], order[labels[order] == 0]
    few, many = (positive, negative) if len(positive) <= len(negative) else (negative, positive)
    if not len(few):
        return undefined
    # Sums over the larger class are needed only where a row of the smaller one stands: everything between is added
    # up once. Rows are gathered with all their resamples, which lie side by side in what `resamples` makes.
    below_F, upto_F = (np.searchsorted(scores[many], scores[few], side) for side in ("left", "right"))
    edges = np.unique(np.r_[0, below_F, upto_F])
    sums_xR = np.add.reduceat(weight_RxN.T[many], edges[edges < len(many)], axis=0)
    before_xR = np.concatenate([np.zeros((1, len(weight_RxN))), np.cumsum(sums_xR, axis=0)])
    twice_below_FxR = before_xR[np.searchsorted(edges, below_F)] + before_xR[np.searchsorted(edges, upto_F)]
    few_FxR = weight_RxN.T[few]
    won = np.einsum("fr,fr->r", few_FxR, twice_below_FxR) / 2
    pairs = few_FxR.sum(axis=0) * before_xR[-1]
    if few is negative:
        won = pairs - won
    return np.divide(won, pairs, out=undefined, where=pairs > 0)


def small_class(rows: tuple[int, int], patients: tuple[int, int]) -> str | None:
    """What is too little, where a class has rows of under SMALL patients; None where not, or where it has none.

    rows, patients: of the positives and of the negatives. Patients count, as they are what an interval draws.

    The error of an AUROC goes with the square root of the smaller class (Hanley and McNeil 1982): at 0.8 its 95 %
    interval is about +-0.17 with 5 rows, 0.10 with 20, 0.065 with 50. The interval itself is made from those few rows
    and too narrow: of 1,000 simulated sets (normal scores, true AUROC 0.8 and 0.9, one row a patient, 300 rows in the
    other class) it held the truth in 84 and 76 % with 5 rows, 89 and 84 % with 10, 91 and 89 % with 20, 94 and 92 %
    with 30, and 94 % with 50 (`python tests/test_intervals.py` prints them).
    """
    fewest = min(patients)
    if not 0 < fewest < SMALL:
        return None
    which = patients.index(fewest)
    kind, count = ("positive", "negative")[which], rows[which]
    if count != fewest:
        return f"{count} {kind}s are of only {fewest} patient{'s' if fewest > 1 else ''}"
    return f"only {count} {kind}{'s' if count > 1 else ''}"


def roc_curve(scores: np.ndarray, labels: np.ndarray, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate, from (0, 0) to (1, 1), one point a threshold; NaN labels are left out.

    Points on a straight line between their neighbours are left out. Of more than `points` corners those next to
    equal steps along the curve stay, so that every point is one of the curve. Raises ValueError where `auroc` is
    undefined.
    """
    _, tp, fp = _above(scores, labels)
    tp, fp = np.r_[0, tp], np.r_[0, fp]
    step_tp, step_fp = np.diff(tp), np.diff(fp)
    corner = np.r_[True, step_fp[:-1] * step_tp[1:] != step_tp[:-1] * step_fp[1:], True]
    fpr, tpr = fp[corner] / fp[-1], tp[corner] / tp[-1]
    if len(fpr) > points:
        keep = np.unique(np.searchsorted((fpr + tpr)[:-1], np.linspace(0, 2, points)))
        fpr, tpr = fpr[keep], tpr[keep]
    return fpr, tpr


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> tuple[float | None, str | None]:
    """The score from which on a row is best called positive: the arg max of MCC over all thresholds of the ROC curve.

    Of equals the lowest, as in CheXzero's `metrics.py`. Meant for a validation set; (None, why) as of `auroc`.
    """
    _, _, why = _known(scores, labels)
    if why:
        return None, why
    threshold, tp, fp = (row[::-1] for row in _above(scores, labels))
    positives, negatives = tp.max(), fp.max()
    return float(threshold[np.argmax(_mcc(tp, fp, positives - tp, negatives - fp))]), None


def mcc(predicted: np.ndarray, labels: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
    """Matthews correlation [R] of yes-or-no predictions [N] with labels [N] of 1, 0 or NaN (left out).

    0 where all are predicted alike, as in scikit-learn; NaN where the labels are all alike, as nothing could
    correlate with them.
    """
    tp, fp, fn, tn = _counts(predicted, labels, weight_RxN)
    return np.where((tp + fn > 0) & (fp + tn > 0), _mcc(tp, fp, fn, tn), np.nan)


def f1(predicted: np.ndarray, labels: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
    """F1 [R] of the positives, inputs as of `mcc`; NaN where no row is positive and none is predicted to be."""
    tp, fp, fn, _ = _counts(predicted, labels, weight_RxN)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def confusion(truth_NxK: np.ndarray, chosen: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
    """Weight of each true class (rows) that went to each chosen one (columns), [R, K, K].

    truth: one-hot; a row of NaN is left out. chosen: [N, K], or [R, N, K] where the choice differs by resample;
    each row sums to 1, and is one-hot but for ties, which are shared out evenly.
    """
    rows_of_class = [np.flatnonzero(truth_N == 1) for truth_N in truth_NxK.T]
    if chosen.ndim == 2:
        return np.stack([weight_RxN[:, rows] @ chosen[rows] for rows in rows_of_class], axis=1)
    return np.stack([np.einsum("rn,rnk->rk", weight_RxN[:, rows], chosen[:, rows]) for rows in rows_of_class], axis=1)


def accuracy(confusion_RxKxK: np.ndarray) -> np.ndarray:
    """Share [R] of the weight that went to its own class; NaN without any weight."""
    return _ratio(np.trace(confusion_RxKxK, axis1=1, axis2=2), confusion_RxKxK.sum(axis=(1, 2)))


def recall_per_class(confusion_RxKxK: np.ndarray) -> np.ndarray:
    """Share [R, K] of each true class that went to it; NaN for a class without rows."""
    return _ratio(np.diagonal(confusion_RxKxK, axis1=1, axis2=2), confusion_RxKxK.sum(axis=2))


def macro_f1(confusion_RxKxK: np.ndarray) -> np.ndarray:
    """Mean F1 [R] over the classes that a row has or is predicted to have, as scikit-learn's without `labels`."""
    value_RxK = _f1_per_class(confusion_RxKxK)
    present_RxK = ~np.isnan(value_RxK)
    return _ratio(np.where(present_RxK, value_RxK, 0).sum(axis=1), present_RxK.sum(axis=1))


def weighted_f1(confusion_RxKxK: np.ndarray) -> np.ndarray:
    """Mean F1 [R] over the true classes, each by its share of the rows."""
    support_RxK = confusion_RxKxK.sum(axis=2)
    value_RxK = np.where(support_RxK > 0, _f1_per_class(confusion_RxKxK), 0)
    return _ratio((support_RxK * value_RxK).sum(axis=1), support_RxK.sum(axis=1))


def weighted_median(value_N: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
    """Median [R] where value n counts weight[r, n] times, NaN values left out: the mean of the two middle ones."""
    order = np.argsort(value_N, kind="stable")[: int((~np.isnan(value_N)).sum())]
    upto_RxN = np.cumsum(weight_RxN[:, order], axis=1)
    if not len(order):
        return np.full(len(weight_RxN), np.nan)
    half_Rx1 = upto_RxN[:, -1:] / 2
    lower, upper = ((value_N[order])[np.argmax(at, axis=1)] for at in (upto_RxN >= half_Rx1, upto_RxN > half_Rx1))
    return np.where(half_Rx1[:, 0] > 0, (lower + upper) / 2, np.nan)


def _known(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, str | None]:
    """The rows of known label, and why no ROC curve can be drawn of them."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be two vectors of one length")
    known = ~np.isnan(labels)
    scores, labels = scores[known], labels[known]
    if not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError("labels hold values other than 0, 1 and NaN")
    n, positives, bad = labels.size, int(labels.sum()), int((~np.isfinite(scores)).sum())
    if n == 0:
        return scores, labels, "no row has a known label"
    if positives in (0, n):
        return scores, labels, f"all {n} known labels are {'positive' if positives else 'negative'}"
    return scores, labels, f"{bad} of {n} scores are not finite" if bad else None


def _above(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each distinct score in falling order, and how many positives and negatives score that or more."""
    scores, labels, why = _known(scores, labels)
    if why:
        raise ValueError(why)
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    tp = np.cumsum(labels[order] == 1)[last]
    return scores[order][last], tp, last + 1 - tp


def _counts(predicted: np.ndarray, labels: np.ndarray, weight_RxN: np.ndarray) -> tuple[np.ndarray, ...]:
    """True positives, false positives, false negatives and true negatives, each [R]."""
    predicted = np.asarray(predicted, bool)
    cells = ((predicted, 1), (predicted, 0), (~predicted, 1), (~predicted, 0))
    return tuple(weight_RxN[:, chosen & (labels == truth)].sum(axis=1) for chosen, truth in cells)


def _mcc(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    """Matthews 1975; 0 where a margin is empty, its limit."""
    margins = np.sqrt((tp + fp) * 1.0 * (tp + fn)) * np.sqrt((tn + fp) * 1.0 * (tn + fn))
    return np.where(margins > 0, (tp * 1.0 * tn - fp * 1.0 * fn) / np.where(margins > 0, margins, 1), 0)


def _f1_per_class(confusion_RxKxK: np.ndarray) -> np.ndarray:
    """[R, K]; NaN for a class that no row has and none is predicted to have."""
    hits_RxK = np.diagonal(confusion_RxKxK, axis1=1, axis2=2)
    return _ratio(2 * hits_RxK, confusion_RxKxK.sum(axis=1) + confusion_RxKxK.sum(axis=2))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
