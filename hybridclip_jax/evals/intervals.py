"""How sure a value is: the bootstrap over patients, and DeLong's comparison of two AUROCs."""

# N units, P patients, R resamples

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator

import numpy as np

from hybridclip_jax.evals import metrics

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
# The share of resamples that must have a value for an interval to be given; see `percentile`.
VALID = 0.9
ONE_PATIENT = "all units are of one patient, so that nothing can be drawn again"
# With fewer patients than this an interval is warned of; see `few_patients`.
FEW = 30
_BLOCK = 2_500_000  # weights at a time, 20 MB in float64


@dataclasses.dataclass(frozen=True)
class Interval:
    """Both ends, or None with `why` for an end that is not given; `valid` says how many resamples had a value."""

    low: float | None
    high: float | None
    valid: int
    why: str | None = None


@dataclasses.dataclass(frozen=True)
class Paired:
    """The AUROC of one model less that of another, its 95 % interval and two-sided p; None where undefined: `why`."""

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    why: str | None = None


def resamples(patient_N: np.ndarray, count: int = RESAMPLES, seed: int = SEED) -> Iterator[np.ndarray]:
    """How often each unit counts in each of `count` resamples, as blocks float64 [R, N].

    Patients are drawn with replacement, as many as there are; a patient's units come together. Resample r is a
    function of (seed, r) and of which units share a patient, not of the patients' names.
    """
    group_N, n = _groups(patient_N)
    block = max(1, _BLOCK // len(group_N))
    for start in range(0, count, block):
        times_RxP = np.stack([_times(seed, r, n) for r in range(start, min(start + block, count))])
        # A unit's resamples lie side by side: metrics pick and sort units.
        yield times_RxP.T[group_N].astype(np.float64).T


def percentile(value_R: np.ndarray) -> Interval:
    """The percentile interval of a value's resamples, not finite where one has none (Efron 1981).

    A resample without a value is one without both classes. The others alone say where the value lies given that
    both are there, which is another question once many are missing: none is given where under VALID of the
    resamples have a value. That leaves out a label with two positive patients, 14 % of whose resamples hold none,
    and keeps one with three (5 %).
    """
    valid = value_R[np.isfinite(value_R)]
    needed = math.ceil(VALID * len(value_R))
    if len(valid) < max(needed, 1):
        why = f"defined in {len(valid)} of {len(value_R)} resamples, {needed} are needed"
        return Interval(None, None, len(valid), why)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(valid, (tail, 100 - tail))
    return Interval(float(low), float(high), len(valid))


def few_patients(patients: int) -> str | None:
    """A sentence of warning where too few patients are drawn for an interval to be as wide as it should be.

    The percentile interval of a mean of P independent values is z sqrt((P - 1) / P) / t of its right width, with the
    97.5 % points of the normal and of Student's t with P - 1 degrees of freedom: 0.63 with 5 patients, 0.82 with 10,
    0.94 with FEW and 0.97 with 50.
    """
    if patients >= FEW:
        return None
    if patients == 1:
        return f"no value has an interval: {ONE_PATIENT}"
    return f"intervals draw only {patients} patients: with fewer than {FEW} they are too narrow"


def delong(scores_a: np.ndarray, scores_b: np.ndarray, labels: np.ndarray) -> Paired:
    """Compares two models' AUROCs on the same independent units (DeLong, DeLong and Clarke-Pearson 1988).

    scores, labels [N] as of `metrics.auroc`. The variance of the difference comes from how many units of the other
    class each unit outscores with each model, found by sorting (Sun and Xu 2014). p is two-sided, of a normal
    deviate: 1 where the models order all units alike. It is None where the difference has no variance at all and is
    not 0: two models that err on no pair and on every pair give no scale to judge by.
    """
    why = _unfit(scores_a, labels) or _unfit(scores_b, labels)
    if why:
        return Paired(why=why)
    (positive_a, negative_a), (positive_b, negative_b) = _wins(scores_a, labels), _wins(scores_b, labels)
    gain_positive, gain_negative = positive_a - positive_b, negative_a - negative_b
    difference = float(gain_positive.mean() / (2 * len(gain_negative)))
    error = math.sqrt(_variance(gain_positive, gain_negative))
    if error == 0:
        why = "the difference has no variance" if difference else None
        return Paired(difference, difference, difference, None if difference else 1.0, why)
    margin = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    p = math.erfc(abs(difference / error) / math.sqrt(2))
    return Paired(difference, difference - margin, difference + margin, p)


def _groups(patient_N: np.ndarray) -> tuple[np.ndarray, int]:
    """The number of each unit's patient, counted by first appearance, and how many patients there are."""
    _, first_P, group_N = np.unique(patient_N.astype(str), return_index=True, return_inverse=True)
    place_P = np.empty(len(first_P), np.int64)
    place_P[np.argsort(first_P)] = np.arange(len(first_P))
    return place_P[group_N], len(first_P)


def _times(seed: int, r: int, n: int) -> np.ndarray:
    """How often each of n patients is drawn in n draws, int64 [n]."""
    # Raw draws of a counter-based generator are the same in every numpy version; Generator methods need not be.
    raw = np.random.Philox(key=np.array([seed % 2**64, r], np.uint64)).random_raw(n)
    return np.bincount(((raw >> np.uint64(11)) * 2.0**-53 * n).astype(np.int64), minlength=n)


def _unfit(scores: np.ndarray, labels: np.ndarray) -> str | None:
    """Why DeLong's variance does not exist: it needs two units of each class."""
    _, why = metrics.auroc(scores, labels)
    positives, negatives = (int((np.asarray(labels) == value).sum()) for value in (1, 0))
    if not why and min(positives, negatives) < 2:
        why = f"{positives} positives and {negatives} negatives: a variance needs two of each"
    return why


def _wins(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twice how many negatives each positive outscores, and twice how many positives outscore each negative.

    A tie is half a win; whole numbers, so that values which are equal differ by exactly 0.
    """
    positive, negative = (np.asarray(scores, np.float64)[labels == value] for value in (1, 0))
    others, own = np.sort(negative), np.sort(positive)
    wins = np.searchsorted(others, positive, "left") + np.searchsorted(others, positive, "right")
    losses = np.searchsorted(own, negative, "left") + np.searchsorted(own, negative, "right")
    return wins.astype(np.float64), 2.0 * len(own) - losses


def _variance(wins: np.ndarray, losses: np.ndarray) -> float:
    """Variance of the mean win as a share: that over positives and that over negatives, each over its number."""
    m, n = len(wins), len(losses)
    return float(np.var(wins, ddof=1) / (4 * n**2 * m) + np.var(losses, ddof=1) / (4 * m**2 * n))
