"""Two models, or ensembles, on the same units: paired differences. Beside it, what a report draws of one."""

# N units, K columns, R resamples, P points

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import intervals, metrics
from hybridclip_jax.evals.evaluator import Evaluator, Predictions
from hybridclip_jax.evals.intervals import Paired

DELONG, BOOTSTRAP = "DeLong", "patient bootstrap"


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a model, or the mean of several, said, with the evaluator that asked it."""

    evaluator: Evaluator
    predictions: Predictions


def differences(ours: Scored, theirs: Scored) -> dict[str, dict[str, Any]]:
    """By value: {"value", "low", "high", "p", "method", "resamples", "why"}, ours minus theirs.

    A label's zero-shot AUROC (`auroc/<label>`) is compared by DeLong, which gives a p-value, where all patients are
    known and none has two units; whatever else by the bootstrap over patients: both sides measured in the same
    resamples, the percentiles of their difference, no p-value. "value" is None where one side has none. UserError for
    a protocol whose values and resamples are of two kinds. Both sides must have been asked of the same units;
    ValueError else.
    """
    if not ours.evaluator.PAIRED:
        protocol = ours.evaluator.entry["protocol"]
        raise UserError(
            f"--against: the values of {protocol} are no values of one set, so that they have no paired "
            "differences; use protocol chexzero"
        )
    if not np.array_equal(ours.evaluator.units.patient_N, theirs.evaluator.units.patient_N):
        raise ValueError("paired differences need the same units in the same order")
    points = [side.evaluator.point(side.predictions) for side in (ours, theirs)]
    drawn = [side.evaluator.resampled(side.predictions) for side in (ours, theirs)]
    found = {}
    for name in drawn[0].keys() & drawn[1].keys():
        a, b = (point.get(name) for point in points)
        if not isinstance(a, int | float) or not isinstance(b, int | float):
            found[name] = _row(None, Paired(why="one side has no value"), BOOTSTRAP, 0)
        elif (column := _delong_column(name, ours, theirs)) is not None:
            found[name] = _row(a - b, _delong(ours, theirs, column), DELONG, None)
        else:
            interval = ours.evaluator.interval(drawn[0][name] - drawn[1][name])
            between = Paired(a - b, interval.low, interval.high, None, interval.why)
            found[name] = _row(a - b, between, BOOTSTRAP, interval.valid)
    return {name: found[name] for name in drawn[0] if name in found}


def _delong_column(name: str, ours: Scored, theirs: Scored) -> int | None:
    """Which column a value is the AUROC of, where DeLong's assumption of independent units holds for it."""
    kind, _, label = name.partition("/")
    a, b = ours.predictions, theirs.predictions
    if kind != "auroc" or label not in a.columns or a.columns != b.columns or not ours.evaluator.units.independent:
        return None
    column = a.columns.index(label)
    same = np.array_equal(a.truth_NxK[:, column], b.truth_NxK[:, column], equal_nan=True)
    return column if same else None


def _delong(ours: Scored, theirs: Scored, column: int) -> Paired:
    score_a, score_b = (side.predictions.score_NxK[:, column] for side in (ours, theirs))
    return intervals.delong(score_a, score_b, ours.predictions.truth_NxK[:, column])


def _row(value: float | None, paired: Paired, method: str, resamples: int | None) -> dict[str, Any]:
    ends = {"low": paired.low, "high": paired.high, "p": paired.p}
    return {"value": value, **ends, "method": method, "resamples": resamples, "why": paired.why}


def curves(predictions: Predictions, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ROC curve of each column that has an AUROC among the values."""
    found = {}
    for column, score_N, truth_N in zip(
        predictions.columns, predictions.score_NxK.T, predictions.truth_NxK.T, strict=True
    ):
        if values.get(f"auroc/{column}") is None:
            continue
        false_P, true_P = metrics.roc_curve(score_N, truth_N)
        found[column] = {
            "false_positive_rate": false_P.tolist(),
            "true_positive_rate": true_P.tolist(),
            "positives": int((truth_N == 1).sum()),
            "negatives": int((truth_N == 0).sum()),
        }
    return found


def examples(score_N: np.ndarray, truth_N: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """(hits, misses): the units that are most confidently right and wrong about a label, at most `count` each.

    Zero-shot probabilities have no threshold of their own, so a unit is judged against those of the other class whose
    label is known: a hit is on the right side of more than half of them, a miss on the wrong side. Among equals the
    more extreme score comes first. Nothing where the label is not 0 or 1, or has one class alone.
    """
    known = np.flatnonzero(~np.isnan(truth_N) & np.isfinite(score_N))
    score, sign = score_N[known], 2 * truth_N[known] - 1
    if set(truth_N[known]) != {0.0, 1.0}:
        return [], []
    right = np.empty(len(known), np.int64)  # wins less losses; times the own class's size, so that both compare
    for own in (-1, 1):
        mine, others = score[sign == own], np.sort(score[sign == -own])
        below = np.searchsorted(others, mine, "left") + np.searchsorted(others, mine, "right")
        right[sign == own] = own * (below - len(others)) * len(mine)
    hits, misses = np.lexsort((-sign * score, -right)), np.lexsort((sign * score, right))
    return (
        [int(known[i]) for i in hits[:count] if right[i] > 0],
        [int(known[i]) for i in misses[:count] if right[i] < 0],
    )
