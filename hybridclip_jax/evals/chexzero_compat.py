"""CheXzero's own evaluation, quirks included, for numbers that can be laid beside those of its released code.

From rajpurkarlab/CheXzero: `eval.py` (`bootstrap`, `compute_cis`) and `zero_shot.py` (`predict`, `run_softmax_eval`).
For a result of your own use `chexzero`, whose intervals are over patients.
"""

# N units, K labels, R resamples, E embedding

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals.encode import Values
from hybridclip_jax.evals.evaluator import Field, Predictions, Preparation, beside, with_intervals
from hybridclip_jax.evals.intervals import Interval
from hybridclip_jax.evals.zero_shot import PromptPair, ZeroShot, class_embedding

RESAMPLES = 1000
# Places in the sorted list of resamples, from 0: int(0.025 * 1000) - 1 and int(0.975 * 1000) - 1.
LOW, HIGH = 24, 974
_BLOCK = 100  # resamples at a time

_QUIRKS = (
    "values are the means of 1,000 bootstrap resamples; the value of the set itself stands beside each as its point",
    "resamples draw units, as if no two were of one patient, with seeds 0 to 999; they depend on the order of the rows",
    "interval ends are items 25 and 975 of the sorted resamples, each one place low",
    "a resample in which a label has one class alone has no value; it is left out of the mean and sorted last, so that "
    "the upper end is missing where more than 25 are",
    "the mean over labels is taken in each resample, as in the code's F1 and MCC, and has no value in one where any of "
    "them has none; the code itself prints AUROCs by label only",
    "differs from the released code: nothing is rounded to four digits, scores are float64, and rows of unknown label "
    "are left out of that label",
)
_SINGLE = (
    "prompts for presence alone: an image's cosines with all labels are standardised over the labels, then a sigmoid "
    "is taken, so that every score depends on which labels are asked for"
)


class CheXZeroCompat(ZeroShot):
    """`chexzero` with the bootstrap of CheXzero's code, and its single-template mode for prompts without negatives.

    Values are those of ZeroShot, but `auroc/<label>` is the mean over resamples and `auroc_point/<label>` that of the
    set. There is no F1 or MCC: their bootstrap in that code has no seed, so that no number of it can be had again.
    UserError for a single label without negative prompts, which cannot be standardised.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        key: field for key, field in ZeroShot.FIELDS.items() if key != "validation"
    }
    NEEDS_NEGATIVES: ClassVar[bool] = False
    # A difference of two means of resamples, with an interval made of the same resamples, is no paired difference.
    PAIRED: ClassVar[bool] = False

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        if not self.prompts.has_negatives and len(self.labels) == 1:
            raise UserError(
                f"evals.{name}.prompts = {self.entry['prompts']}: has no negative prompts, whose scores are "
                f"standardised over the labels, and {self.labels[0]!r} is the only one; name more labels, or a file "
                "with negative prompts"
            )

    def point(self, predictions: Predictions) -> Values:
        """CheXzero's headline: the means over resamples."""
        return self._means(predictions, self.resampled(predictions))

    def score(self, predictions: Predictions) -> Values:
        drawn = self.resampled(predictions)
        found = {name: interval(value_R) for name, value_R in drawn.items()}
        return with_intervals(self._means(predictions, drawn), found)

    def _means(self, predictions: Predictions, drawn: Mapping[str, np.ndarray]) -> Values:
        values = super().point(predictions)
        for name, value_R in drawn.items():
            if values[name] is None:
                continue
            values[beside(name, "point")] = values[name]
            valid = value_R[~np.isnan(value_R)]
            values[name] = float(valid.mean()) if len(valid) else None
            if not len(valid):
                values[beside(name, "why")] = "no resample has a value"
        return values

    def resampled(self, predictions: Predictions) -> dict[str, np.ndarray]:
        blocks = [self.measure(predictions, weight_RxN) for weight_RxN in resamples(len(self.units))]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"compat": [*_QUIRKS, *(() if self.prompts.has_negatives else (_SINGLE,))]}

    def _scores(self, image_NxE: np.ndarray, pairs: Sequence[PromptPair]) -> np.ndarray:
        if self.prompts.has_negatives:
            return super()._scores(image_NxE, pairs)
        cosine_NxK = np.stack([image_NxE @ class_embedding(positive_PxE) for positive_PxE, _ in pairs], axis=1)
        centred_NxK = cosine_NxK - cosine_NxK.mean(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # an image whose cosines are all alike has no score, and its labels say so
            return 1 / (1 + np.exp(-centred_NxK / cosine_NxK.std(axis=1, keepdims=True)))


def resamples(n: int) -> Iterator[np.ndarray]:
    """How often each of n units is in sklearn.utils.resample(..., random_state=r) for r in 0..999; blocks [R, N]."""
    for start in range(0, RESAMPLES, _BLOCK):
        # What resample draws from. numpy keeps the streams of RandomState as they are.
        drawn_RxN = [np.random.RandomState(r).randint(0, n, size=n) for r in range(start, start + _BLOCK)]
        yield np.stack([np.bincount(drawn_N, minlength=n) for drawn_N in drawn_RxN]).astype(np.float64)


def interval(value_R: np.ndarray) -> Interval:
    """Items LOW and HIGH of the sorted resamples, those without a value last; None where the item is one of them."""
    ordered = np.sort(value_R)
    valid = int((~np.isnan(value_R)).sum())
    low, high = (float(ordered[place]) if place < valid else None for place in (LOW, HIGH))
    return Interval(low, high, valid, _why(len(ordered), valid, low, high))


def _why(count: int, valid: int, low: float | None, high: float | None) -> str | None:
    if high is not None:
        return None
    return f"{count - valid} of {count} resamples have no value, so that {'the upper' if low else 'no'} end is missing"
