"""The bootstrap over patients and DeLong's comparison, against naive statements and against simulated truth."""

# N units, R resamples, m positives, n negatives

from __future__ import annotations

import hashlib
import statistics

import numpy as np
import pytest
from scipy import stats

from hybridclip_jax.evals import intervals, metrics

NORMAL = statistics.NormalDist()


def drawn(patients: np.ndarray, **options: int) -> np.ndarray:
    return np.concatenate(list(intervals.resamples(patients, **options)))


def test_resamples_are_the_same_everywhere() -> None:
    patients = np.array(["c", "a", "c", "b", "a"], object)
    weight_RxN = drawn(patients)
    for r, weight_N in enumerate(weight_RxN[:50]):  # patients c, a, b in order of appearance; whole-number arithmetic
        drawn_P = [(int(raw) >> 11) * 3 >> 53 for raw in np.random.Philox(key=[0, r]).random_raw(3)]
        assert weight_N.tolist() == [drawn_P.count(place) for place in (0, 1, 0, 2, 1)]
    digest = hashlib.sha256(weight_RxN.astype(np.int64).tobytes()).hexdigest()
    assert digest == "eb7a4af85b9c905c2260ffcc34bb9fff185fb5ed5b9d6a693455250735b3bb04", (
        "intervals that were published with seed 0 would change"
    )


def test_a_patients_units_come_together_and_its_name_does_not_matter() -> None:
    patients = np.array([f"{k % 7:032x}" for k in range(30)], object)
    weight_RxN = drawn(patients)
    assert weight_RxN.shape == (intervals.RESAMPLES, 30)
    assert (weight_RxN[:, :7].sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weight_RxN, weight_RxN[:, np.arange(30) % 7])
    renamed = np.array([hashlib.sha256(name.encode()).hexdigest() for name in patients], object)
    np.testing.assert_array_equal(weight_RxN, drawn(renamed))
    assert (weight_RxN != drawn(patients, seed=1)).any()


def test_a_resample_depends_on_the_seed_and_its_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = np.arange(30)
    whole = drawn(patients, count=50)
    monkeypatch.setattr(intervals, "_BLOCK", 7 * 30)
    assert [len(block) for block in intervals.resamples(patients, count=50)] == [7] * 7 + [1]
    np.testing.assert_array_equal(whole, drawn(patients, count=50))
    np.testing.assert_array_equal(whole[:20], drawn(patients, count=20))


def test_each_patient_is_as_likely_as_any() -> None:
    count_RxN = drawn(np.arange(40), count=4000)
    assert stats.chisquare(count_RxN.sum(axis=0)).pvalue > 0.001
    assert count_RxN.var() == pytest.approx(1 - 1 / 40, rel=0.02)  # binomial of 40 draws
    assert np.abs(np.corrcoef(count_RxN.T)[np.triu_indices(40, 1)] + 1 / 39).max() < 0.08


def test_bootstrap_equals_the_metric_of_literally_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(25, size=60)
    scores, labels = rng.integers(9, size=60) / 3, (rng.random(60) < 0.4).astype(float)
    labels[::7] = np.nan
    weight_RxN = drawn(patients)
    for weight_N, value in zip(weight_RxN, metrics.weighted_auroc(scores, labels, weight_RxN), strict=True):
        rows = np.repeat(np.arange(60), weight_N.astype(int))
        assert value == pytest.approx(metrics.auroc(scores[rows], labels[rows])[0], abs=1e-12)


def test_the_interval_is_the_percentiles_of_the_defined_resamples() -> None:
    value_R = np.random.default_rng(0).normal(size=1000)
    low, high = np.percentile(value_R, [2.5, 97.5])
    got = intervals.percentile(value_R)
    assert (got.low, got.high, got.valid, got.why) == (pytest.approx(low), pytest.approx(high), 1000, None)
    value_R[:100] = np.nan
    low, high = np.percentile(value_R[100:], [2.5, 97.5])
    assert intervals.percentile(value_R) == intervals.Interval(pytest.approx(low), pytest.approx(high), 900)
    value_R[100] = np.nan
    why = "defined in 899 of 1000 resamples, 900 are needed"
    assert intervals.percentile(value_R) == intervals.Interval(None, None, 899, why)
    assert intervals.percentile(np.full(0, np.nan)).low is None


@pytest.mark.parametrize(("positives", "given"), [(1, False), (2, False), (3, True)])
def test_two_positive_patients_are_too_few_for_an_interval(positives: int, given: bool) -> None:
    labels = (np.arange(200) < positives).astype(float)
    found = intervals.percentile(metrics.weighted_auroc(np.arange(200.0), labels, drawn(np.arange(200))))
    assert (found.low is not None) == given


def covered(by_image: bool) -> float:
    """Share of 200 simulated sets of 100 patients with 4 like images each whose interval holds the true AUROC."""
    rng = np.random.default_rng(0)
    sick, patients = (np.arange(100) < 40).astype(float), np.repeat(np.arange(100), 4)
    truth = NORMAL.cdf(1 / (2 * (1 + 0.2**2)) ** 0.5)
    weight_RxN = drawn(np.arange(400) if by_image else patients, count=400)
    hits = []
    for _ in range(200):
        own = rng.normal(size=100) + sick
        scores = own[patients] + rng.normal(0, 0.2, 400)
        found = intervals.percentile(metrics.weighted_auroc(scores, sick[patients], weight_RxN))
        hits.append(found.low <= truth <= found.high)
    return float(np.mean(hits))


def test_patients_must_be_drawn_where_images_are_alike() -> None:
    assert 0.91 <= covered(by_image=False) <= 0.985
    assert covered(by_image=True) < 0.8


def held(m: int, truth: float, sets: int, resamples: int) -> tuple[float, float]:
    """Of simulated sets with m positives and 300 negatives: the share whose interval holds the true AUROC, and the
    mean half width."""
    rng, labels = np.random.default_rng(0), np.r_[np.ones(m), np.zeros(300)]
    weight_RxN = drawn(np.arange(m + 300), count=resamples)
    hits, halves = [], []
    for _ in range(sets):
        scores = rng.normal(size=m + 300) + labels * NORMAL.inv_cdf(truth) * 2**0.5
        found = intervals.percentile(metrics.weighted_auroc(scores, labels, weight_RxN))
        assert found.low is not None and found.high is not None
        hits.append(found.low <= truth <= found.high)
        halves.append((found.high - found.low) / 2)
    return float(np.mean(hits)), float(np.mean(halves))


def test_a_small_class_makes_the_interval_too_narrow() -> None:
    # The numbers that metrics.small_class gives are of more sets: see the end of this file.
    assert held(5, 0.9, 150, 400)[0] < 0.88 and held(40, 0.9, 150, 400)[0] > 0.89
    assert held(5, 0.8, 30, 200)[1] == pytest.approx(0.17, abs=0.02)
    assert held(50, 0.8, 30, 200)[1] == pytest.approx(0.065, abs=0.01)
    assert metrics.small_class((5, 300), (5, 300)) and not metrics.small_class((40, 300), (40, 300))


@pytest.mark.parametrize(("patients", "share"), [(5, 0.63), (10, 0.82), (30, 0.94), (50, 0.97)])
def test_few_patients_make_the_interval_too_narrow(patients: int, share: float) -> None:
    right = stats.t.ppf(0.975, patients - 1) / np.sqrt(patients - 1)  # of a mean, over the spread of its values
    value_N = np.random.default_rng(0).normal(size=patients)
    weight_RxN = drawn(np.arange(patients), count=4000)
    found = intervals.percentile(weight_RxN @ value_N / patients)
    assert found.low is not None and found.high is not None
    assert (found.high - found.low) / 2 / value_N.std() / right == pytest.approx(share, abs=0.035)
    assert (intervals.few_patients(patients) is None) == (patients >= 30)


def test_few_patients_are_told_of() -> None:
    assert intervals.few_patients(29) == "intervals draw only 29 patients: with fewer than 30 they are too narrow"
    assert str(intervals.few_patients(1)).startswith("no value has an interval: all units are of one patient")


def test_an_infinite_resample_is_none() -> None:
    value_R = np.r_[np.full(100, np.inf), np.linspace(0, 1, 900)]
    found = intervals.percentile(value_R)
    assert (found.low, found.high, found.valid) == (pytest.approx(0.025), pytest.approx(0.975), 900)


def test_a_thousand_resamples_of_a_large_set_are_measured_together() -> None:
    """2,000 units of 14 labels: few blocks, each measured by sorting and sums, as in one resample at a time."""
    rng = np.random.default_rng(0)
    patients, score_NxK = np.arange(2000) // 2, rng.normal(size=(2000, 14))
    truth_NxK = (rng.random((2000, 14)) < 0.15) * 1.0
    blocks = list(intervals.resamples(patients))
    assert sum(len(weight_RxN) for weight_RxN in blocks) == 1000
    assert len(blocks) == 1, "2,000,000 weights are one block"
    assert next(intervals.resamples(np.arange(25_000), count=100)).shape == (100, 25_000)
    for k in range(14):
        got = metrics.weighted_auroc(score_NxK[:, k], truth_NxK[:, k], blocks[0])
        assert got.shape == (1000,)
        for r in (0, 500, 999):
            rows = np.repeat(np.arange(2000), blocks[0][r].astype(int))
            assert got[r] == pytest.approx(metrics.auroc(score_NxK[rows, k], truth_NxK[rows, k])[0], abs=1e-12)


def naive(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """AUROC and its structural components over positives and over negatives, from all pairs (DeLong 1988, eq. 4)."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    won_mxn = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return float(won_mxn.mean()), won_mxn.mean(axis=1), won_mxn.mean(axis=0)


def two_models(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(70) % 5 < 1 + seed % 3).astype(float)
    common = rng.normal(size=70) + labels
    labels[rng.random(70) < 0.15] = np.nan
    a, b = (np.round(common + rng.normal(size=70), 3 - 2 * (seed % 2)) for _ in "ab")  # odd seeds: many ties
    return a, b, labels


@pytest.mark.parametrize("seed", range(10))
def test_delong_is_its_definition_over_all_pairs(seed: int) -> None:
    a, b, labels = two_models(seed)
    (auroc_a, pos_a, neg_a), (auroc_b, pos_b, neg_b) = naive(a, labels), naive(b, labels)
    covariance = np.cov([pos_a, pos_b]) / len(pos_a) + np.cov([neg_a, neg_b]) / len(neg_a)
    assert metrics.auroc(a, labels)[0] == pytest.approx(auroc_a, abs=1e-12)
    error = np.sqrt([1, -1] @ covariance @ [1, -1])
    difference = auroc_a - auroc_b
    got = intervals.delong(a, b, labels)
    assert got.difference == pytest.approx(difference, abs=1e-9)
    assert got.p == pytest.approx(2 * stats.norm.sf(abs(difference / error)), abs=1e-9)
    ends = stats.norm.interval(0.95, difference, error)
    assert (got.low, got.high) == (pytest.approx(ends[0], abs=1e-9), pytest.approx(ends[1], abs=1e-9))
    unpaired = np.sqrt(covariance[0, 0] + covariance[1, 1])
    assert unpaired > 1.1 * error, "models that share what they see must not be taken for independent"
    turned = intervals.delong(b, a, labels)
    assert (turned.difference, turned.p) == (pytest.approx(-got.difference), pytest.approx(got.p))


def test_delong_agrees_with_the_bootstrap_of_independent_units() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 4 == 0).astype(float)
    common = rng.normal(size=400) + labels
    a, b = common + rng.normal(size=400), common + rng.normal(size=400)
    weight_RxN = drawn(np.arange(400))
    found = intervals.percentile(
        metrics.weighted_auroc(a, labels, weight_RxN) - metrics.weighted_auroc(b, labels, weight_RxN)
    )
    got = intervals.delong(a, b, labels)
    assert (found.low, found.high) == (pytest.approx(got.low, abs=0.01), pytest.approx(got.high, abs=0.01))


def test_models_that_order_all_units_alike_do_not_differ() -> None:
    a, _, labels = two_models(0)
    for other in (a, 2 * a + 1):
        assert intervals.delong(a, other, labels) == intervals.Paired(0.0, 0.0, 0.0, 1.0)


def test_a_difference_without_variance_has_no_p() -> None:
    labels = np.array([0.0, 0, 0, 1, 1])
    got = intervals.delong(labels, -labels, labels)
    assert got == intervals.Paired(1.0, 1.0, 1.0, None, "the difference has no variance")


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([0.0, 0, 0, 0], "all 4 known labels are negative"),
        ([0.0, 0, 1, np.nan], "1 positives and 2 negatives: a variance needs two of each"),
    ],
)
def test_delong_is_undefined_with_a_reason(labels: list[float], why: str) -> None:
    scores, truth = np.arange(4.0), np.array(labels)
    assert intervals.delong(scores, scores, truth) == intervals.Paired(why=why)


def test_delong_names_scores_that_are_not_finite() -> None:
    a, b, labels = two_models(0)
    b[np.flatnonzero(~np.isnan(labels))[0]] = np.inf
    assert str(intervals.delong(a, b, labels).why).endswith("scores are not finite")


if __name__ == "__main__":
    for smaller in (5, 10, 20, 30, 50):
        for area in (0.8, 0.9):
            share, half = held(smaller, area, sets=1000, resamples=1000)
            print(f"{smaller} rows, AUROC {area}: {share:.1%} of intervals hold the truth, mean half width {half:.3f}")
