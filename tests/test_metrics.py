"""AUROC against its definition: the share of (positive, negative) pairs in order, ties counting half."""

from __future__ import annotations

import numpy as np
import pytest

from hybridclip_jax.evals import metrics


def by_pairs(scores: np.ndarray, labels: np.ndarray) -> float:
    """The definition, over all pairs."""
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[labels == 1] for b in scores[labels == 0]]
    return float(np.mean(won))


@pytest.mark.parametrize("distinct", [2, 3, 10, 10**6])
@pytest.mark.parametrize("n", [2, 7, 60])
def test_equals_the_pairwise_definition_with_and_without_ties(n: int, distinct: int) -> None:
    rng = np.random.default_rng(n * distinct)
    for _ in range(20):
        scores = rng.integers(distinct, size=n) / 7
        labels = rng.permutation(np.arange(n) % 2).astype(np.float32)
        value, why = metrics.auroc(scores, labels)
        assert why is None
        assert value == pytest.approx(by_pairs(scores, labels), abs=1e-12)


def test_known_values() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    assert metrics.auroc(scores, np.array([0.0, 0, 1, 1])) == (0.75, None)
    assert metrics.auroc(scores, np.array([0.0, 1, 0, 1])) == (1.0, None)
    assert metrics.auroc(np.zeros(4), np.array([0.0, 1, 0, 1])) == (0.5, None)


def test_rows_of_unknown_label_are_left_out() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(40), (rng.random(40) < 0.4).astype(np.float32)
    expected = metrics.auroc(scores, labels)
    more_scores = np.concatenate([scores, [np.nan, 5.0, -5.0]])
    more_labels = np.concatenate([labels, np.full(3, np.nan, np.float32)])
    assert metrics.auroc(more_scores, more_labels) == expected


@pytest.mark.parametrize(
    ("scores", "labels", "why"),
    [
        ([], [], "no row has a known label"),
        ([0.1, 0.2], [np.nan, np.nan], "no row has a known label"),
        ([0.1, 0.2, 0.3], [1, 1, np.nan], "all 2 known labels are positive"),
        ([0.1, 0.2], [0, 0], "all 2 known labels are negative"),
        ([0.1, np.nan, np.inf], [0, 1, 1], "2 of 3 scores are not finite"),
    ],
)
def test_undefined_is_none_with_a_reason(scores: list[float], labels: list[float], why: str) -> None:
    assert metrics.auroc(np.array(scores), np.array(labels)) == (None, why)


def test_labels_outside_the_policy_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="0, 1 and NaN"):
        metrics.auroc(np.zeros(3), np.array([0.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match="one length"):
        metrics.auroc(np.zeros(3), np.zeros(2))


def test_mean_is_over_the_defined_values() -> None:
    assert metrics.mean_of_defined([0.5, None, 1.0]) == (0.75, 2)
    assert metrics.mean_of_defined([None, None]) == (None, 0)
    assert metrics.mean_of_defined([]) == (None, 0)
