"""Which step becomes the run's model, the sentence that says why, and when a run need not go on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hybridclip_jax import selection
from hybridclip_jax.errors import UserError
from hybridclip_jax.selection import Evaluated, Rule

METRIC = "external/auroc/mean"
RULE = Rule(METRIC, "max", patience=0, keep=1, store="stores/other:val")


def line(step: int, value: float | None, split: str = "eval/external", **more: Any) -> dict[str, Any]:
    fixed = {
        "step": step,
        "split": split,
        "wall_s": 1.0,
        "auroc/mean": value,
        "auroc/Edema": 0.9,
        "auroc_why/mean": "x",
    }
    return {**fixed, **more}


def interval(low: float | None, high: float | None) -> dict[str, Any]:
    return {"auroc_lo/mean": low, "auroc_hi/mean": high}


def values(*pairs: tuple[int, float]) -> list[Evaluated]:
    return [Evaluated(step, value) for step, value in pairs]


def test_history_takes_the_named_value_of_the_named_evaluation() -> None:
    lines = [
        {"step": 1, "split": "train", "loss": 4.1, "auroc/mean": 0.99},
        line(10, 0.5),
        line(10, 0.9, "eval/external2"),
        line(10, 0.9, "eval/other/external"),
        line(20, 0.6),
    ]
    assert selection.history(lines, METRIC) == values((10, 0.5), (20, 0.6))
    assert selection.history(lines, "external2/auroc/mean") == values((10, 0.9))
    assert selection.history(lines, "external/auroc/Edema") == values((10, 0.9), (20, 0.9))
    assert selection.history([], METRIC) == []


def test_history_takes_the_interval_of_the_value_where_both_ends_are_there() -> None:
    lines = [line(10, 0.5, **interval(0.4, 0.6)), line(20, 0.6, **interval(None, None)), line(30, 0.7)]
    assert [one.interval for one in selection.history(lines, METRIC)] == [(0.4, 0.6), None, None]
    assert selection.history(lines, "external/auroc/Edema")[0].interval is None


def test_history_leaves_undefined_values_out_but_not_zero() -> None:
    assert selection.history([line(10, None), line(20, 0.0)], METRIC) == values((20, 0.0))


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
    ("mode", "pairs", "step", "runner_up"),
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
    mode: str, pairs: list[tuple[int, float]], step: int, runner_up: int
) -> None:
    best = selection.choose(values(*pairs), dataclasses.replace(RULE, mode=mode))
    assert best is not None
    assert best["step"] == step
    assert best["value"] == dict(pairs)[step]
    assert best["runner_up"] == {"step": runner_up, "value": dict(pairs)[runner_up], "interval": None}


OVERLAP = ", and the two intervals overlap: the choice between them is within noise"
APART = ", and the two intervals do not overlap"


@pytest.mark.parametrize(
    ("best", "second", "ends"),
    [
        ((0.75, 0.85), (0.74, 0.84), OVERLAP),
        ((0.75, 0.85), (0.65, 0.75), OVERLAP),
        ((0.76, 0.85), (0.65, 0.75), APART),
        ((0.75, 0.85), None, ""),
        (None, (0.75, 0.85), ""),
    ],
)
def test_the_body_of_best_json(best: Any, second: Any, ends: str) -> None:
    found = [Evaluated(500, 0.71234, (0.6, 0.8)), Evaluated(1000, 0.8, best), Evaluated(1500, 0.79996, second)]
    shown = ["" if b is None else f", 95 % interval {b[0]:.4f} to {b[1]:.4f}" for b in (best, second)]
    assert selection.choose(found, RULE) == {
        "step": 1000,
        "metric": METRIC,
        "value": 0.8,
        "interval": best and list(best),
        "runner_up": {"step": 1500, "value": 0.79996, "interval": second and list(second)},
        "why": f"step 1000 has the highest external/auroc/mean (0.8000{shown[0]}) of 3 evaluations on "
        f"stores/other:val; the runner-up is step 1500 (0.8000{shown[1]}){ends}",
    }


def test_where_less_is_better_intervals_are_apart_the_other_way_round() -> None:
    rule = Rule("v/loss/mean", "min", patience=0, keep=1, store="s")
    best = selection.choose([Evaluated(1, 0.25, (0.2, 0.3)), Evaluated(2, 0.5, (0.4, 0.6))], rule)
    assert best is not None
    assert best["why"] == (
        "step 1 has the lowest v/loss/mean (0.2500, 95 % interval 0.2000 to 0.3000) of 2 evaluations on s; "
        "the runner-up is step 2 (0.5000, 95 % interval 0.4000 to 0.6000), and the two intervals do not overlap"
    )


def test_the_sentence_for_one_and_for_a_tie() -> None:
    one = selection.choose(values((7, 0.5)), RULE)
    assert one is not None
    assert one["why"] == "step 7 has the only external/auroc/mean (0.5000), on stores/other:val"
    assert one["runner_up"] is None
    tie = selection.choose(values((1, 0.5), (2, 0.5)), RULE)
    assert tie is not None
    assert tie["why"] == (
        "step 1 has the highest external/auroc/mean (0.5000) of 2 evaluations on stores/other:val; "
        "step 2 equals it, and the earlier is taken"
    )


def test_a_better_step_whose_model_is_gone_is_named() -> None:
    found = values((500, 0.7), (1000, 0.65), (1500, 0.6), (2000, 0.65))
    best = selection.choose(found, RULE, at_hand={1000, 1500})
    assert best is not None
    assert (best["step"], best["value"], best["runner_up"]["step"]) == (1000, 0.65, 2000)
    assert best["why"] == (
        "step 1000 has the highest external/auroc/mean (0.6500) on stores/other:val of the models that are left; the "
        "runner-up is step 2000 (0.6500); step 500 (0.7000) is better, but its model is gone: lost with a damaged "
        "checkpoint, or removed"
    )
    equal = selection.choose(found, RULE, at_hand={2000})
    assert equal is not None
    assert "step 500 (0.7000) is better, but its model is gone" in equal["why"]
    equal = selection.choose(found[1:], RULE, at_hand={2000})
    assert equal is not None
    assert "step 1000 (0.6500) equals it and is earlier, but its model is gone" in equal["why"]
    assert selection.choose(found, RULE, at_hand={500, 2000}) == selection.choose(found, RULE)
    assert selection.choose(found, RULE, at_hand=set()) is None


def test_nothing_defined_chooses_nothing() -> None:
    assert selection.choose([], RULE) is None
    assert selection.choose(selection.history([line(10, None)], METRIC), RULE) is None


# --- patience


def stopped_after(scores: list[float | None], patience: int, mode: str = "max") -> int | None:
    """The number of evaluations after which a run with these scores ends early, None where it does not."""
    rule = dataclasses.replace(RULE, mode=mode, patience=patience)
    for count in range(1, len(scores) + 1):
        lines = [line(500 * i, score) for i, score in enumerate(scores[:count], start=1)]
        if selection.stopped_early([*lines, line(9999, 0.99, "eval/another")], rule):
            return count
    return None


@pytest.mark.parametrize(
    ("scores", "patience", "after"),
    [
        ([0.6, 0.5, 0.5, 0.5], 0, None),
        ([0.6, 0.5], 1, 2),
        ([0.5, 0.6, 0.7], 1, None),
        ([0.6, 0.5, 0.7, 0.6, 0.6, 0.9], 3, None),
        ([0.6, 0.5, 0.7, 0.6, 0.6, 0.9], 2, 5),
        ([0.6, 0.6, 0.6], 2, 3),  # no better is not better
        ([None, 0.6, None, None], 2, 4),
        ([None, None], 2, 2),
        ([None, 0.6, 0.7], 2, None),
    ],
)
def test_patience_ends_a_run_after_so_many_evaluations_without_a_better_value(
    scores: list[float | None], patience: int, after: int | None
) -> None:
    assert stopped_after(scores, patience) == after


def test_patience_looks_the_way_of_the_mode() -> None:
    assert stopped_after([3.0, 2.0, 1.0], 1, "min") is None
    assert stopped_after([3.0, 2.0, 1.0], 1, "max") == 2


def test_the_sentence_of_an_early_stop() -> None:
    lines = [line(1000, 0.6), line(1500, 0.5), line(2000, 0.5)]
    assert selection.stopped_early(lines, dataclasses.replace(RULE, patience=2)) == (
        "stopped early at step 2,000: 2 evaluations in a row gave no better external/auroc/mean than step 1,000 "
        "(select.patience = 2)"
    )
    assert selection.stopped_early([line(500, None)], dataclasses.replace(RULE, patience=1)) == (
        "stopped early at step 500: 1 evaluation gave no external/auroc/mean (select.patience = 1)"
    )


# --- one value of many


def test_the_headline_is_the_first_mean_and_else_the_first_measured_value() -> None:
    measured = {"auroc/Edema": 0.9, "auroc/mean": None, "auroc/mean5": 0.8, "mcc/mean": 0.1}
    beside = {selection.beside(name, "resamples"): 1000 for name in measured}
    assert selection.headline({"auroc/n_labels": 3, **measured, **beside}) == "auroc/mean"
    ranks = {"recall_i2t_chance/1": 0.1, "recall_i2t/1": 0.5, "recall_i2t_resamples/1": 1000}
    assert selection.headline(ranks) == "recall_i2t/1"
    assert selection.headline({"auroc/n_labels": 3}) == ""


def test_a_value_is_shown_with_its_interval() -> None:
    found = {"auroc/mean": 0.71234, "auroc_lo/mean": 0.6, "auroc_hi/mean": 0.8, "loss/mean": 4.1, "mcc/x": None}
    assert selection.shown(found, "auroc/mean") == "auroc/mean 0.7123 [0.6000, 0.8000]"
    assert selection.shown(found, "loss/mean") == "loss/mean 4.1000"
    assert selection.shown(found, "mcc/x") == "mcc/x undefined"
