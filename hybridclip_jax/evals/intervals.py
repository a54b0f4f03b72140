"""How sure a value is: the bootstrap over patients."""

# N units, R resamples

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
_BLOCK = 100  # resamples at a time: 25,000 units in float64 are 20 MB


@dataclasses.dataclass(frozen=True)
class Interval:
    """Both ends, or None where too few resamples gave a value; `valid` says how many did."""

    low: float | None
    high: float | None
    valid: int


def resamples(patient_N: np.ndarray, count: int = RESAMPLES, seed: int = SEED) -> Iterator[np.ndarray]:
    """How often each unit counts in each of `count` resamples, as blocks float64 [R, N].

    Patients are drawn with replacement, as many as there are; a patient's units come together.
    """
    _, group_N = np.unique(patient_N.astype(str), return_inverse=True)
    n = int(group_N.max()) + 1
    generator = np.random.default_rng(seed)
    for start in range(0, count, _BLOCK):
        drawn = generator.integers(n, size=(min(_BLOCK, count - start), n))
        times = np.stack([np.bincount(row, minlength=n) for row in drawn])
        yield times[:, group_N].astype(np.float64)


def percentile(value_R: np.ndarray) -> Interval:
    """The percentile interval of a value's resamples; NaN where one has none."""
    valid = value_R[~np.isnan(value_R)]
    if not len(valid):
        return Interval(None, None, 0)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(valid, (tail, 100 - tail))
    return Interval(float(low), float(high), len(valid))
