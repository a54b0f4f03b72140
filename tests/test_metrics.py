"""Metrics against scikit-learn on literally repeated rows, and AUROC against its definition over pairs."""

# N rows, R resamples, K classes

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as sk

from hybridclip_jax.evals import metrics

R = 6


def by_pairs(scores: np.ndarray, labels: np.ndarray) -> float:
    """The definition, over all pairs."""
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[labels == 1] for b in scores[labels == 0]]
    return float(np.mean(won))


def rows(seed: int, n: int = 60, distinct: int = 9, unknown: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, labels some of which are unknown, and how often each row counts in R resamples."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < rng.uniform(0.1, 0.9)).astype(np.float64)
    if unknown:
        labels[rng.random(n) < 0.2] = np.nan
    weight_RxN = rng.multinomial(n, np.full(n, 1 / n), size=R).astype(np.float64)
    return rng.integers(distinct, size=n) / 7, labels, weight_RxN


def repeated(weight_N: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """The rows of known label (the last array), each as often as it counts."""
    times = np.where(np.isnan(arrays[-1]), 0, weight_N).astype(int)
    return [np.repeat(array, times) for array in arrays]


def one_hot(classes: np.ndarray, k: int) -> np.ndarray:
    return np.eye(k)[classes]


@pytest.mark.parametrize("distinct", [2, 3, 10, 10**6])
@pytest.mark.parametrize("n", [2, 7, 60])
def test_auroc_is_the_pairwise_definition_with_and_without_ties(n: int, distinct: int) -> None:
    rng = np.random.default_rng(n * distinct)
    for _ in range(12):
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
    arrays = np.array(scores), np.array(labels)
    assert metrics.auroc(*arrays) == (None, why)
    assert metrics.best_threshold(*arrays) == (None, why)
    assert np.isnan(metrics.weighted_auroc(*arrays, np.ones((2, len(scores))))).all()
    with pytest.raises(ValueError, match=why):
        metrics.roc_curve(*arrays)


def test_labels_outside_the_policy_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="0, 1 and NaN"):
        metrics.auroc(np.zeros(3), np.array([0.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match="one length"):
        metrics.auroc(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize("seed", range(15))
def test_weighted_auroc_is_that_of_the_repeated_rows(seed: int) -> None:
    scores, labels, weight_RxN = rows(seed, distinct=10**6 if seed % 5 == 0 else 2 + seed)
    got = metrics.weighted_auroc(scores, labels, np.asarray(weight_RxN, order="CF"[seed % 2]))
    known = ~np.isnan(labels)
    for weight_N, value in zip(weight_RxN, got, strict=True):
        again, truth = repeated(weight_N, scores, labels)
        if len(set(truth)) < 2:
            assert np.isnan(value)
            continue
        assert value == pytest.approx(metrics.auroc(again, truth)[0], abs=1e-12)
        assert value == pytest.approx(sk.roc_auc_score(truth, again), abs=1e-12)
        assert value == pytest.approx(
            sk.roc_auc_score(labels[known], scores[known], sample_weight=weight_N[known]), abs=1e-12
        )
        # A tie is half a win: were it a whole one the value would differ, so the ties above are real.
        if seed % 5:
            assert sk.roc_auc_score(truth, again + 1e-9 * truth) > value + 1e-6


def test_a_resample_without_one_of_the_classes_has_no_auroc() -> None:
    scores, labels = np.arange(5.0), np.array([0.0, 0, 1, 1, np.nan])
    weight_RxN = np.array([[1.0, 1, 1, 1, 1], [2, 0, 0, 0, 3], [0, 0, 4, 0, 0], [0, 0, 0, 0, 5]])
    np.testing.assert_array_equal(metrics.weighted_auroc(scores, labels, weight_RxN), [1, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("seed", range(12))
def test_mcc_and_f1_are_scikit_learns_on_the_repeated_rows(seed: int) -> None:
    scores, labels, weight_RxN = rows(seed, n=12 if seed % 2 else 60)
    predicted = scores >= np.quantile(scores, [0.5, 0.0, 0.9][seed % 3])  # 0.0: all are called positive
    mcc, f1 = metrics.mcc(predicted, labels, weight_RxN), metrics.f1(predicted, labels, weight_RxN)
    for r, weight_N in enumerate(weight_RxN):
        called, truth = repeated(weight_N, predicted, labels)
        assert f1[r] == pytest.approx(sk.f1_score(truth, called, zero_division=np.nan), abs=1e-9, nan_ok=True)
        single = len(set(truth)) < 2
        expected = np.nan if single else sk.matthews_corrcoef(truth, called)
        assert mcc[r] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_mcc_and_f1_where_nothing_is_told_apart() -> None:
    ones, labels, single = np.ones((1, 4)), np.array([0.0, 1, 1, 0]), np.zeros(4)
    nobody = np.zeros(4, bool)
    assert metrics.mcc(nobody, labels, ones) == metrics.mcc(~nobody, labels, ones) == 0
    assert metrics.f1(nobody, labels, ones) == 0
    assert np.isnan(metrics.mcc(~nobody, single, ones)) and np.isnan(metrics.f1(nobody, single, ones))
    assert metrics.f1(~nobody, single, ones) == 0


@pytest.mark.parametrize("seed", range(12))
def test_the_best_threshold_is_chexzeros_search(seed: int) -> None:
    scores, labels, _ = rows(seed, n=80, distinct=10**6 if seed % 2 else 12)
    got, why = metrics.best_threshold(scores, labels)
    assert why is None
    known = ~np.isnan(labels)
    tried = np.unique(scores[known])
    found = np.array([sk.matthews_corrcoef(labels[known], scores[known] >= t) for t in tried])
    assert got in tried[found > found.max() - 1e-12], "equal but for rounding is as good"


def test_of_equal_thresholds_the_lowest_is_taken() -> None:
    scores, labels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1, 0, 1])
    at = {t: sk.matthews_corrcoef(labels, scores >= t) for t in scores.tolist()}
    assert at[0.2] == pytest.approx(at[0.4]) and at[0.2] > max(at[0.1], at[0.3])
    assert metrics.best_threshold(scores, labels) == (0.2, None)
    assert metrics.best_threshold(-scores, labels) == (-0.4, None), "where no threshold is of use, all are positive"


@pytest.mark.parametrize("seed", range(12))
def test_the_roc_curve_has_scikit_learns_corners(seed: int) -> None:
    scores, labels, _ = rows(seed, n=150, distinct=10**6 if seed % 2 else 12)
    known = ~np.isnan(labels)
    fpr, tpr, _ = sk.roc_curve(labels[known], scores[known], drop_intermediate=True)
    got = np.stack(metrics.roc_curve(scores, labels))
    assert {tuple(point) for point in got.T} <= {tuple(point) for point in np.stack([fpr, tpr]).T}
    assert sk.auc(*got) == pytest.approx(metrics.auroc(scores, labels)[0], abs=1e-12)
    # And what was left out lies on the line between them: fpr + tpr tells where on the curve a point is.
    np.testing.assert_allclose(np.interp(fpr + tpr, got.sum(axis=0), got[0]), fpr, atol=1e-12)


def test_a_long_roc_curve_is_thinned_to_points_of_its_own() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.3).astype(float)
    scores = rng.normal(size=20_000) + labels
    whole = {tuple(point) for point in np.stack(metrics.roc_curve(scores, labels, 10**6)).T}
    fpr, tpr = metrics.roc_curve(scores, labels)
    assert len(whole) > 5000 and 150 < len(fpr) <= 200
    assert {tuple(point) for point in np.stack([fpr, tpr]).T} <= whole
    assert ((fpr[0], tpr[0]), (fpr[-1], tpr[-1])) == ((0, 0), (1, 1))
    assert np.diff(fpr + tpr).max() < 0.02
    assert sk.auc(fpr, tpr) == pytest.approx(metrics.auroc(scores, labels)[0], abs=1e-4)


F1: dict[Callable[[np.ndarray], np.ndarray], str] = {metrics.macro_f1: "macro", metrics.weighted_f1: "weighted"}


@pytest.mark.parametrize("seed", range(8))
def test_multi_class_values_are_scikit_learns_on_the_repeated_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = 25, 5
    truth, chosen = rng.integers(0, 4, size=n), rng.integers(1, 5, size=n)  # class 0 is never chosen, 4 never true
    weight_RxN = rng.multinomial(n, np.full(n, 1 / n), size=R).astype(float)
    matrix = metrics.confusion(one_hot(truth, k), one_hot(chosen, k), weight_RxN)
    each = metrics.confusion(one_hot(truth, k), np.stack([one_hot(chosen, k)] * R), weight_RxN)
    np.testing.assert_array_equal(matrix, each)
    for r, weight_N in enumerate(weight_RxN):
        t, c = (np.repeat(array, weight_N.astype(int)) for array in (truth, chosen))
        np.testing.assert_array_equal(matrix[r], sk.confusion_matrix(t, c, labels=range(k)))
        assert metrics.accuracy(matrix)[r] == pytest.approx(sk.accuracy_score(t, c), abs=1e-9)
        for ours, average in F1.items():
            expected = sk.f1_score(t, c, average=average, zero_division=0)
            assert ours(matrix)[r] == pytest.approx(expected, abs=1e-9)
        recall = sk.recall_score(t, c, labels=range(k), average=None, zero_division=np.nan)
        np.testing.assert_allclose(metrics.recall_per_class(matrix)[r], recall, atol=1e-9)


def test_a_choice_of_its_own_in_each_resample_and_shared_ties() -> None:
    truth = one_hot(np.array([0, 1, 1]), 2)
    tied = np.full((3, 2), 0.5)
    chosen = np.stack([truth, truth[:, ::-1], tied])
    matrix = metrics.confusion(truth, chosen, np.array([[1.0, 1, 1], [1, 2, 0], [2, 1, 1]]))
    np.testing.assert_array_equal(matrix, [[[1, 0], [0, 2]], [[0, 1], [2, 0]], [[1, 1], [1, 1]]])
    np.testing.assert_array_equal(metrics.accuracy(matrix), [1, 0, 0.5])


def test_rows_of_unknown_class_and_resamples_of_none() -> None:
    truth = np.array([[1.0, 0], [np.nan, np.nan], [0, 1]])
    matrix = metrics.confusion(truth, one_hot(np.array([0, 0, 0]), 2), np.array([[1.0, 9, 3], [0, 5, 0]]))
    np.testing.assert_array_equal(matrix[0], [[1, 0], [3, 0]])
    for value in (metrics.accuracy, metrics.macro_f1, metrics.weighted_f1):
        np.testing.assert_array_equal(np.isnan(value(matrix)), [False, True])


@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_the_weighted_median_is_that_of_the_repeated_values(n: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.integers(7, size=n).astype(float)
    weight_RxN = rng.integers(0, 4, size=(30, n)).astype(float)
    got = metrics.weighted_median(np.r_[values, np.nan], np.c_[weight_RxN, np.full(30, 5.0)])
    for weight_N, value in zip(weight_RxN, got, strict=True):
        again = np.repeat(values, weight_N.astype(int))
        assert value == pytest.approx(np.median(again) if len(again) else np.nan, abs=1e-12, nan_ok=True)
    assert np.isnan(metrics.weighted_median(np.array([np.nan]), np.ones((2, 1)))).all()


def test_a_small_class_is_warned_of_by_its_size() -> None:
    def few(positives: int, negatives: int = 400) -> str | None:
        return metrics.small_class((positives, negatives), (positives, negatives))

    assert few(1) == "only 1 positive"
    assert few(29) == "only 29 positives"
    assert few(400, 7) == "only 7 negatives"
    assert (few(30), few(0), few(0, 0)) == (None, None, None)


def test_a_class_is_as_small_as_its_patients_are_few() -> None:
    assert metrics.small_class((60, 100), (4, 100)) == "60 positives are of only 4 patients"
    assert metrics.small_class((60, 100), (60, 1)) == "100 negatives are of only 1 patient"
    # the class with fewer patients, even where it has more rows
    assert metrics.small_class((40, 90), (20, 2)) == "90 negatives are of only 2 patients"
