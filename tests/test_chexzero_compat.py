"""chexzero-compat against a re-statement of CheXzero's released procedure, on a real store and random predictions."""

# N images, K labels, E embedding

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_stores import Row, evaluator, planted, unit, write_store
from sklearn.utils import resample

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import EVALUATORS, comparison
from hybridclip_jax.evals.evaluator import mean

N, E = 60, 16
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
SHARE = {
    **dict.fromkeys(FIVE, 0.4), "Fracture": 1 / N, "Pneumonia": 4 / N, "Nodule": 0.0, "Support Devices": 0.5
}  # fmt: skip


def vectors(seed: int, n: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, E))).astype(np.float32)


@pytest.fixture(scope="module")
def truth_NxK() -> np.ndarray:
    """One label has unknown rows; images come in patients of two, which the protocol does not heed."""
    rng = np.random.default_rng(0)
    truth = np.stack([rng.permutation(np.arange(N) < round(share * N)) for share in SHARE.values()], axis=1) * 1.0
    truth[rng.random(N) < 0.3, -1] = np.nan
    return truth


@pytest.fixture(scope="module")
def spec(truth_NxK: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> str:
    labels = [
        {label: None if np.isnan(y) else y for label, y in zip(SHARE, row, strict=True)} for row in truth_NxK.tolist()
    ]
    rows = [Row(patient=f"p{i // 2}", labels=known) for i, known in enumerate(labels)]
    return write_store(tmp_path_factory.mktemp("compat") / "store", rows)


def predictions(made: Any, seed: int = 1) -> Any:
    texts = [text for label in made.labels for side in vars(made.prompts.pair(label)).values() for text in side]
    encode = planted(dict(zip(texts, vectors(seed, len(texts)), strict=True)))
    return made.predict(encode, {"image": vectors(seed + 100, N)})


def area(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve over all pairs; NaN where a class is missing, as their roc_curve gives it."""
    positive, negative = scores[truth == 1], scores[truth == 0]
    if not len(positive) or not len(negative):
        return float("nan")
    return float(((positive[:, None] > negative) + (positive[:, None] == negative) / 2).mean())


def restated(score_NxK: np.ndarray, truth_NxK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper [K + 1] over 1,000 resamples, the last of the mean of the five."""
    rows = []
    for i in range(1000):
        sample = resample(np.arange(N), replace=True, random_state=i)
        row = [area(s[sample], y[sample]) for s, y in zip(score_NxK.T, truth_NxK.T, strict=True)]
        rows.append([*row, np.mean(row[:5])])
    ends = []
    for column in zip(*rows, strict=True):
        ordered = sorted(value for value in column if value == value)
        ordered += [float("nan")] * (1000 - len(ordered))
        ends.append([ordered[int(0.05 / 2 * 1000) - 1], ordered[int((1 - 0.05 / 2) * 1000) - 1]])
    means = [np.mean([v for v in column if v == v] or [np.nan]) for column in zip(*rows, strict=True)]
    return np.array(means), *np.array(ends).T


def test_it_is_chexzeros_procedure(spec: str, truth_NxK: np.ndarray) -> None:
    made = evaluator("chexzero-compat", spec)
    predicted = predictions(made)
    values = made.score(predicted)
    names = [f"/{label}" for label in SHARE] + ["/mean5"]
    for kind, expected in zip(("auroc", "auroc_lo", "auroc_hi"), restated(predicted.score_NxK, truth_NxK), strict=True):
        got = [np.nan if values[kind + name] is None else values[kind + name] for name in names]
        np.testing.assert_allclose(got, expected, atol=1e-12, err_msg=kind)
    # What a resample without positives does: left out of the mean, last in the sorted list.
    assert values["auroc_resamples/Fracture"] < 700 and values["auroc_hi/Fracture"] is None
    assert values["auroc_lo/Fracture"] is not None
    assert 975 <= values["auroc_resamples/Pneumonia"] < 1000 and values["auroc_hi/Pneumonia"] is not None
    assert values["auroc/Nodule"] is None and values["auroc_why/Nodule"] == f"all {N} known labels are negative"


def test_the_headline_is_the_mean_of_resamples_and_the_point_stands_beside(spec: str) -> None:
    made, plain = (evaluator(name, spec, labels=",".join(FIVE)) for name in ("chexzero-compat", "chexzero"))
    values, honest = made.score(predictions(made)), plain.score(predictions(plain))
    assert made.point(predictions(made)).items() <= values.items()
    for label in FIVE:
        assert values[f"auroc_point/{label}"] == honest[f"auroc/{label}"]
        assert 1e-6 < abs(values[f"auroc/{label}"] - honest[f"auroc/{label}"]) < 0.02
        # Two images a patient: an interval over images is not one over patients.
        assert values[f"auroc_lo/{label}"] != honest[f"auroc_lo/{label}"]
    assert values["auroc_point/mean5"] == honest["auroc/mean5"]
    assert values["auroc/n_labels"] == honest["auroc/n_labels"]
    assert set(made.at_chance()) == set(made.point(predictions(made)))
    assert made.at_chance()["auroc/mean5"] == 0.5
    assert "compat" in made.describe() and "compat" not in plain.describe()
    json.dumps(made.describe())


def prompts_json(path: Path) -> str:
    path.write_text(json.dumps({"format": 1, "name": "t", "version": "1", "positive": ["{}", "signs of {}"]}))
    return str(path)


def test_prompts_without_negatives_are_standardised_over_the_labels(spec: str, tmp_path: Path) -> None:
    made = evaluator("chexzero-compat", spec, prompts=prompts_json(tmp_path / "p.json"))
    texts = [text for label in made.labels for text in made.prompts.pair(label).positive]
    assert len(texts) == 2 * len(SHARE)
    text_KxPxE = vectors(1, len(texts)).astype(np.float64).reshape(len(SHARE), 2, E)
    image_NxE = vectors(101, N).astype(np.float64)
    classes_KxE = unit(unit(text_KxPxE).mean(axis=1))
    expected = []
    for image in unit(image_NxE):
        logits = [float(image @ one) for one in classes_KxE]
        centre = sum(logits) / len(logits)
        spread = (sum((x - centre) ** 2 for x in logits) / len(logits)) ** 0.5  # torch's numpy(): of the population
        expected.append([1 / (1 + np.exp(-(x - centre) / spread)) for x in logits])
    got = predictions(made).score_NxK
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert any("standardised over the labels" in line for line in made.describe()["compat"])
    fewer = evaluator("chexzero-compat", spec, prompts=made.entry["prompts"], labels="Edema,Fracture")
    of_two = np.sort(predictions(fewer).score_NxK, axis=1)
    np.testing.assert_allclose(of_two, np.tile([1 / (1 + np.e), np.e / (1 + np.e)], (N, 1)), atol=1e-9)


def test_an_ensemble_is_the_mean_of_probabilities(spec: str, truth_NxK: np.ndarray) -> None:
    made = evaluator("chexzero-compat", spec, labels=",".join(FIVE))
    members = [predictions(made, seed) for seed in (1, 2, 3)]
    averaged = np.mean([one.score_NxK for one in members], axis=0)
    means, lower, upper = restated(averaged, truth_NxK[:, :5])
    values = made.score(mean(members))
    got = [values[f"{kind}/mean5"] for kind in ("auroc", "auroc_lo", "auroc_hi")]
    assert got == [pytest.approx(rows[-1], abs=1e-12) for rows in (means, lower, upper)]


def test_the_ends_are_one_place_low(spec: str) -> None:
    made = evaluator("chexzero-compat", spec, labels="Edema")
    predicted = predictions(made)
    ordered = np.sort(made.resampled(predicted)["auroc/Edema"])
    values = made.score(predicted)
    assert (values["auroc_lo/Edema"], values["auroc_hi/Edema"]) == (ordered[24], ordered[974])
    assert ordered[24] < ordered[25] or ordered[974] < ordered[975], "the place makes a difference"


def test_what_cannot_be_reproduced_is_refused(spec: str, tmp_path: Path) -> None:
    assert "validation" in EVALUATORS["chexzero"].FIELDS
    assert "validation" not in EVALUATORS["chexzero-compat"].FIELDS
    assert evaluator("chexzero-compat", spec, validation=spec).validation is None
    with pytest.raises(UserError, match="'Edema' is the only one; name more labels"):
        evaluator("chexzero-compat", spec, labels="Edema", prompts=prompts_json(tmp_path / "p.json"))


@pytest.mark.filterwarnings("error")
def test_a_mean_over_labels_that_no_resample_has_is_null_with_why(tmp_path: Path) -> None:
    """Of sixteen labels with one positive each, some is without one in every resample."""
    labels = [{f"label {k}": float(i == k) for k in range(16)} for i in range(20)]
    made = evaluator("chexzero-compat", write_store(tmp_path / "rare", [Row(labels=known) for known in labels]))
    values, chance = made.score(predictions(made)), made.at_chance()
    for found in (values, chance):
        assert (found["auroc/mean"], found["auroc_why/mean"]) == (None, "no resample has a value")
        assert found["auroc_point/mean"] is not None
    assert values["auroc_resamples/mean"] == 0 and values["auroc_hi/mean"] is None
    assert "auroc_interval_why/mean" not in values, "a value that is undefined says so itself"
    assert values["auroc/label 0"] is not None and values["auroc_hi/label 0"] is None
    missing = 1000 - int(values["auroc_resamples/label 0"])
    why = f"{missing} of 1000 resamples have no value, so that the upper end is missing"
    assert values["auroc_interval_why/label 0"] == why
    json.dumps(values, allow_nan=False)


def test_one_score_is_one_bootstrap(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = evaluator("chexzero-compat", spec, labels="Edema")
    predicted, counts = predictions(made), []
    measure = made.measure
    monkeypatch.setattr(made, "measure", lambda p, w: counts.append(len(w)) or measure(p, w))
    made.score(predicted)
    assert sum(counts) == 1000 + 1


def test_models_are_not_compared_by_it(spec: str) -> None:
    made = evaluator("chexzero-compat", spec, labels="Edema")
    sides = [comparison.Scored(made, predictions(made, seed)) for seed in (1, 2)]
    with pytest.raises(UserError, match="--against: .*chexzero-compat .* no paired differences; use protocol chexzero"):
        comparison.differences(*sides)


@pytest.mark.filterwarnings("error")
def test_an_image_whose_cosines_are_all_alike_has_no_score_and_says_so(spec: str, tmp_path: Path) -> None:
    made = evaluator("chexzero-compat", spec, prompts=prompts_json(tmp_path / "p.json"), labels="Edema,Fracture")
    texts = [text for label in made.labels for text in made.prompts.pair(label).positive]
    one = np.tile(vectors(1, 1), (len(texts), 1))
    predicted = made.predict(planted(dict(zip(texts, one, strict=True))), {"image": vectors(2, N)})
    assert f"{N} of {N} scores are not finite" in str(made.score(predicted)["auroc_why/Edema"])
