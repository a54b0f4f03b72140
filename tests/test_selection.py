"""Which step becomes the run's model, and the sentence that says why."""

from __future__ import annotations

from typing import Any

import pytest

from hybridclip_jax import selection
from hybridclip_jax.errors import UserError

METRIC = "external/auroc/mean"


def line(step: int, value: float | None, split: str = "eval/external") -> dict[str, Any]:
    return {"step": step, "split": split, "wall_s": 1.0, "auroc/mean": value, "auroc/Edema": 0.9, "auroc_why/mean": "x"}


def test_history_takes_the_named_value_of_the_named_evaluation() -> None:
    lines = [
        {"step": 1, "split": "train", "loss": 4.1, "auroc/mean": 0.99},
        line(10, 0.5),
        line(10, 0.9, "eval/external2"),
        line(10, 0.9, "eval/other/external"),
        line(20, 0.6),
    ]
    assert selection.history(lines, METRIC) == [(10, 0.5), (20, 0.6)]
    assert selection.history(lines, "external2/auroc/mean") == [(10, 0.9)]
    assert selection.history(lines, "external/auroc/Edema") == [(10, 0.9), (20, 0.9)]
    assert selection.history([], METRIC) == []


def test_history_leaves_undefined_values_out_but_not_zero() -> None:
    assert selection.history([line(10, None), line(20, 0.0)], METRIC) == [(20, 0.0)]


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (
            "external/auroc/maen",
            "select.metric = external/auroc/maen: the evaluation has no such value; did you mean auroc/mean?",
        ),
        ("external/auroc", "select.metric = external/auroc: the evaluation has no such value"),
        ("external/auroc_why/mean", "select.metric = external/auroc_why/mean: not a number"),
    ],
)
def test_a_metric_that_no_evaluation_gives_ends_the_run_at_the_first_one(metric: str, says: str) -> None:
    """It would otherwise train to the end and choose nothing."""
    with pytest.raises(UserError) as caught:
        selection.history([line(10, 0.5)], metric)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("mode", "values", "step", "runner_up"),
    [
        ("max", [(10, 0.5), (20, 0.7), (30, 0.6)], 20, 30),
        ("min", [(10, 0.5), (20, 0.7), (30, 0.6)], 10, 30),
        ("max", [(10, 0.7), (20, 0.7), (30, 0.7)], 10, 20),
        ("min", [(10, 0.7), (20, 0.7), (30, 0.7)], 10, 20),
        ("max", [(30, 0.7), (20, 0.7)], 20, 30),
        ("max", [(10, -0.5), (20, -0.7)], 10, 20),
    ],
)
def test_the_best_wins_and_among_equals_the_earliest(
    mode: str, values: list[tuple[int, float]], step: int, runner_up: int
) -> None:
    best = selection.choose(values, METRIC, mode)
    assert best is not None
    assert best["step"] == step
    assert best["value"] == dict(values)[step]
    assert best["runner_up"] == {"step": runner_up, "value": dict(values)[runner_up]}


def test_the_body_of_best_json() -> None:
    best = selection.choose([(500, 0.71234), (1000, 0.8), (1500, 0.79996)], METRIC, "max")
    assert best == {
        "step": 1000,
        "metric": METRIC,
        "value": 0.8,
        "interval": None,
        "runner_up": {"step": 1500, "value": 0.79996},
        "why": "step 1000 has the highest external/auroc/mean (0.8000) of 3 evaluations; "
        "the runner-up is step 1500 (0.8000)",
    }


def test_the_sentence_for_the_lowest_for_one_and_for_a_tie() -> None:
    lowest = selection.choose([(1, 0.25), (2, 0.5)], "v/loss", "min")
    assert lowest is not None
    assert lowest["why"] == "step 1 has the lowest v/loss (0.2500) of 2 evaluations; the runner-up is step 2 (0.5000)"
    one = selection.choose([(7, 0.5)], METRIC, "max")
    assert one is not None
    assert one["why"] == "step 7 has the only external/auroc/mean (0.5000)"
    assert one["runner_up"] is None
    tie = selection.choose([(1, 0.5), (2, 0.5)], METRIC, "max")
    assert tie is not None
    assert tie["why"] == (
        "step 1 has the highest external/auroc/mean (0.5000) of 2 evaluations; "
        "step 2 equals it, and the earlier is taken"
    )


def test_nothing_defined_chooses_nothing() -> None:
    assert selection.choose([], METRIC, "max") is None
    assert selection.choose(selection.history([line(10, None)], METRIC), METRIC, "max") is None
