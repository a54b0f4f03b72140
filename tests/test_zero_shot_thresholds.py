"""chexzero's F1 and MCC: thresholds from a validation store of other patients, and from nothing else."""

# N units, K labels, E embedding

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_stores import PREPARATION, Row, planted, unit, write_store
from sklearn import metrics as sk

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals.comparison import Scored, differences
from hybridclip_jax.evals.encode import Encode
from hybridclip_jax.evals.evaluator import Predictions, mean
from hybridclip_jax.evals.zero_shot import ZeroShot

E, N = 16, 60
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
LABELS = (*FIVE, "Fracture")

Label = Sequence[float | None]


def labels(seed: int, n: int = N) -> dict[str, Label]:
    """Of each label about half positive, some unknown."""
    rng = np.random.default_rng(seed)
    return {name: [[0.0, 1.0, 0.0, 1.0, None][k] for k in rng.integers(5, size=n)] for name in LABELS}


def store(path: Path, truth: dict[str, Label], first_grey: int = 0, *, patients: str = "", **manifest: Any) -> str:
    """One image a patient; patients are named after `patients`, by default after the store."""
    n = len(next(iter(truth.values())))
    name = patients or path.name
    rows = [
        Row(labels={label: y[i] for label, y in truth.items()}, grey=first_grey + i, patient=f"{name}-{i}")
        for i in range(n)
    ]
    return write_store(path, rows, **manifest)


def params(seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": unit(np.random.default_rng(seed).normal(size=(256, E))).astype(np.float32)}


def encode(made: ZeroShot) -> Encode:
    pairs = [made.prompts.pair(label) for label in made.labels]
    texts = [text for pair in pairs for side in (pair.positive, pair.negative) for text in side]
    vectors = {text: np.random.default_rng(list(text.encode())).normal(size=E) for text in texts}
    return planted({text: unit(vector).astype(np.float32) for text, vector in vectors.items()})


def evaluator(tested: str, validation: str = "", **fields: Any) -> ZeroShot:
    entry = {"protocol": "chexzero", "data": tested, "validation": validation, **fields}
    return ZeroShot("e", entry, PREPARATION)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[str, str]:
    return store(tmp_path / "test", labels(1)), store(tmp_path / "validation", labels(2), 100)


def known(score_N: np.ndarray, truth_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = ~np.isnan(truth_N)
    return score_N[keep], truth_N[keep]


def threshold_of(score_N: np.ndarray, truth_N: np.ndarray) -> float:
    """Tried one by one: the score from which on calling a row positive correlates best with its label."""
    score_N, truth_N = known(score_N, truth_N)
    # The lowest score calls all alike, which correlates with nothing.
    return max(np.unique(score_N)[1:], key=lambda at: np.corrcoef(truth_N, score_N >= at)[0, 1])


def test_f1_and_mcc_on_the_test_store_at_thresholds_of_the_validation_store(stores: tuple[str, str]) -> None:
    made = evaluator(*stores)
    predictions = made.predict(encode(made), params())
    assert predictions.validation is not None
    values = made.point(predictions)
    at_own = {}
    for k, label in enumerate(LABELS):
        threshold = threshold_of(predictions.validation.score_NxK[:, k], predictions.validation.truth_NxK[:, k])
        score_N, truth_N = known(predictions.score_NxK[:, k], predictions.truth_NxK[:, k])
        assert values[f"threshold/{label}"] == threshold
        assert values[f"f1/{label}"] == pytest.approx(sk.f1_score(truth_N, score_N >= threshold), abs=1e-9)
        assert values[f"mcc/{label}"] == pytest.approx(sk.matthews_corrcoef(truth_N, score_N >= threshold), abs=1e-9)
        at_own[label] = sk.matthews_corrcoef(truth_N, score_N >= threshold_of(score_N, truth_N))
    for kind in ("f1", "mcc", "auroc"):
        by_label = [values[f"{kind}/{label}"] for label in LABELS]
        assert values[f"{kind}/mean"] == pytest.approx(np.mean(by_label), abs=1e-12)
        assert values[f"{kind}/mean5"] == pytest.approx(np.mean(by_label[:5]), abs=1e-12)
        assert values[f"{kind}/n_labels"] == len(LABELS)
    # Thresholds from the test store itself would flatter every label.
    assert all(at_own[label] > values[f"mcc/{label}"] for label in LABELS)


def test_what_is_true_of_the_test_store_moves_no_threshold(tmp_path: Path, stores: tuple[str, str]) -> None:
    other = store(tmp_path / "other", labels(9))
    made, changed = (evaluator(tested, stores[1]) for tested in (stores[0], other))
    before, after = (one.point(one.predict(encode(made), params())) for one in (made, changed))
    thresholds = [name for name in before if name.startswith("threshold/")]
    assert [before[name] for name in thresholds] == [after[name] for name in thresholds]
    assert before["mcc/Edema"] != after["mcc/Edema"]


def test_intervals_come_with_f1_and_mcc(stores: tuple[str, str]) -> None:
    values = evaluator(*stores).run(encode(evaluator(*stores)), params())
    for name in ("f1/mean", "mcc/mean", "mcc/mean5"):
        kind, rest = name.split("/")
        low, high = values[f"{kind}_lo/{rest}"], values[f"{kind}_hi/{rest}"]
        assert low <= values[name] <= high
        assert 0.05 < high - low < 0.6
    assert not any(name.startswith("threshold_lo") for name in values)


def test_an_ensemble_has_the_thresholds_of_its_mean_scores(stores: tuple[str, str]) -> None:
    made = evaluator(*stores)
    each = [made.predict(encode(made), params(seed)) for seed in (0, 1)]
    values = made.point(mean(each))
    validations = [one.validation for one in each]
    k = LABELS.index("Edema")
    score_N = np.mean([one.score_NxK[:, k] for one in validations if one], axis=0)
    expected = threshold_of(score_N, evaluator(*reversed(stores)).tested.truth_NxK[:, k])
    assert values["threshold/Edema"] == pytest.approx(expected, abs=1e-12)
    of_each = [made.point(one)["threshold/Edema"] for one in each]
    assert values["threshold/Edema"] not in (*of_each, np.mean(of_each))


def test_a_label_without_a_threshold_is_null_with_why_and_outside_the_means(tmp_path: Path) -> None:
    validation = labels(2) | {"Edema": [0.0] * N, "Fracture": [None] * N}
    tested = labels(1) | {"Cardiomegaly": [1.0] * N}
    made = evaluator(store(tmp_path / "test", tested), store(tmp_path / "validation", validation, 100))
    values = made.run(encode(made), params())
    no_threshold = f"no threshold: in the validation store all {N} known labels are negative"
    assert (values["mcc/Edema"], values["mcc_why/Edema"]) == (None, no_threshold)
    assert values["f1_why/Fracture"] == "no threshold: in the validation store no row has a known label"
    assert (values["threshold/Edema"], values["threshold_why/Edema"]) == (None, f"all {N} known labels are negative")
    assert values["f1_why/Cardiomegaly"] == f"all {N} known labels are positive"
    assert values["threshold/Cardiomegaly"] is not None
    assert values["auroc/Edema"] is not None
    left = [values[f"mcc/{label}"] for label in ("Atelectasis", "Consolidation", "Pleural Effusion")]
    assert values["mcc/mean"] == pytest.approx(np.mean(left), abs=1e-12)
    assert (values["mcc/n_labels"], values["auroc/n_labels"]) == (3, 5)
    assert (values["mcc/mean5"], values["mcc_why/mean5"]) == (None, "undefined for cardiomegaly, edema")
    json.dumps(values, allow_nan=False)


def test_a_blank_model_has_every_value_and_no_correlation(stores: tuple[str, str]) -> None:
    made = evaluator(*stores)
    chance = made.at_chance()
    assert chance.keys() == made.point(made.predict(encode(made), params())).keys()
    assert (chance["auroc/mean"], chance["mcc/mean"]) == (0.5, 0.0)


def test_both_stores_are_described_and_studies_count_in_both(tmp_path: Path, stores: tuple[str, str]) -> None:
    described = evaluator(*stores).describe()
    assert described["validation"]["data"] == stores[1]
    assert described["validation"]["store_fingerprint"] != described["store_fingerprint"]
    truth = labels(2)["Edema"]
    assert described["validation"]["labels"]["Edema"] == {
        "positives": truth.count(1.0),
        "negatives": truth.count(0.0),
        "unknown": truth.count(None),
    }
    assert json.loads(json.dumps(described))["prompts"]["labels"]["Edema"]["negative"] == ["no edema"]

    def in_pairs(path: Path, grey: int) -> str:
        rows = [
            Row(labels={"Edema": float(i % 4 < 2)}, grey=grey + i, study="s", patient=f"{path.name}{i // 2}")
            for i in range(40)
        ]
        return write_store(path, rows)

    made = evaluator(in_pairs(tmp_path / "a", 0), in_pairs(tmp_path / "b", 100), unit="study")
    assert (made.describe()["units"], made.describe()["validation"]["units"]) == (20, 20)
    predictions = made.predict(encode(made), params())
    assert predictions.validation is not None
    assert predictions.score_NxK.shape == predictions.validation.score_NxK.shape == (20, 1)


def test_patients_or_images_of_both_stores_are_refused(tmp_path: Path, stores: tuple[str, str]) -> None:
    same_patients = store(tmp_path / "b", labels(2), 100, patients="test")
    with pytest.raises(UserError, match=rf"evals.e.validation = .*: shares {N} patients with .*test;"):
        evaluator(stores[0], same_patients)
    (tmp_path / "copy").mkdir()
    same_images = store(tmp_path / "copy" / "test", labels(2), patients="others")
    with pytest.raises(UserError, match=f"shares {N} images with"):
        evaluator(stores[0], same_images)
    with pytest.raises(UserError, match=f"{N} patients and {N} images"):
        evaluator(stores[0], stores[0])
    other_pixels = store(tmp_path / "d", labels(2), 100, preprocessing={"resize": "stretch"})
    with pytest.raises(UserError, match="prepared with resize = stretch, but .* with None; prepare both alike"):
        evaluator(stores[0], other_pixels)


def test_what_cannot_be_compared_is_a_note(tmp_path: Path, stores: tuple[str, str]) -> None:
    for fields, why in (({"namespace": "elsewhere"}, "namespaces"), ({"unknown_patients": N}, "no patients are known")):
        other = store(tmp_path / why.split()[0], labels(2), 100, patients="test", **fields)
        [note] = [note for note in evaluator(stores[0], other).describe()["notes"] if "patients" in note]
        assert f": patients not checked: not comparable by id: {why}" in note


def test_a_validation_store_without_the_label_is_refused(tmp_path: Path, stores: tuple[str, str]) -> None:
    poor = store(tmp_path / "poor", {"Edema": labels(2)["Edema"]}, 100)
    with pytest.raises(UserError, match="evals.e.validation = .*poor: has no label 'Atelectasis'; it has Edema"):
        evaluator(stores[0], poor)
    assert evaluator(stores[0], poor, labels="Edema").labels == ("Edema",)


def test_labels_are_a_list_of_the_stores_own_names(stores: tuple[str, str]) -> None:
    made = evaluator(stores[0], labels=" Fracture, Edema,,Fracture ")
    values = made.point(made.predict(encode(made), params()))
    assert made.labels == ("Fracture", "Edema")
    assert {name for name in values if "/" in name} == {"auroc/Fracture", "auroc/Edema", "auroc/mean", "auroc/n_labels"}
    whole = evaluator(stores[0])
    of_all = whole.point(whole.predict(encode(whole), params()))
    assert values["auroc/Edema"] == of_all["auroc/Edema"]
    assert set(made.describe()["prompts"]["labels"]) == {"Fracture", "Edema"}
    with pytest.raises(UserError, match="has no label 'edema'; it has Atelectasis, .*, Fracture"):
        evaluator(stores[0], labels="edema")


def test_captions_alone_are_refused_naming_the_file(stores: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=r"evals.e.prompts = plip: .*plip\.json has no negative prompts"):
        evaluator(stores[0], prompts="plip")

    class WithoutAbsence(ZeroShot):
        NEEDS_NEGATIVES = False

        def _scores(self, image_NxE: np.ndarray, pairs: Any) -> np.ndarray:
            assert all(negative.shape == (0, E) for _, negative in pairs)
            return np.stack([image_NxE @ positive[0] for positive, _ in pairs], axis=1)

    made = WithoutAbsence("e", {"protocol": "x", "data": stores[0], "prompts": "plip"}, PREPARATION)
    assert made.point(made.predict(encode(made), params()))["auroc/mean"] is not None


def test_a_small_class_is_warned_of(tmp_path: Path) -> None:
    truth = {"Edema": [1.0] * 3 + [0.0] * (N - 3), "Nodule": [1.0] * 9 + [0.0] * (N - 9)}
    [note] = evaluator(store(tmp_path / "few", truth)).describe()["notes"]
    assert note.startswith("Edema: only 3 positives; Nodule: only 9 positives: with fewer than 30 the value is ")


def test_predictions_stay_as_they_were_made(stores: tuple[str, str]) -> None:
    made = evaluator(*stores)
    predictions = made.predict(encode(made), params())
    copy = dataclasses.replace(predictions, score_NxK=predictions.score_NxK.copy())
    made.score(predictions)
    np.testing.assert_array_equal(predictions.score_NxK, copy.score_NxK)


def test_a_score_at_the_threshold_is_positive(tmp_path: Path) -> None:
    validation = store(tmp_path / "validation", {"Edema": [0.0, 0.0, 1.0, 1.0]}, 100)
    made = evaluator(store(tmp_path / "test", {"Edema": [0.0, 1.0, 1.0]}), validation)
    of_validation = Predictions(("Edema",), np.array([[0.4], [0.45], [0.5], [0.6]]), np.array([[0.0], [0], [1], [1]]))
    predictions = Predictions(("Edema",), np.array([[0.45], [0.5], [0.6]]), made.tested.truth_NxK, of_validation)
    values = made.point(predictions)
    assert (values["threshold/Edema"], values["f1/Edema"], values["mcc/Edema"]) == (0.5, 1.0, pytest.approx(1.0))


def test_rare_labels_leave_the_mean_undefined_where_they_are(tmp_path: Path) -> None:
    """A mean is over the same labels in every resample, whatever a resample lacks."""
    truth = {name: [float(i < 3 + k) for i in range(N)] for k, name in enumerate(FIVE)}
    made = evaluator(store(tmp_path / "rare", truth))
    drawn = made.resampled(made.predict(encode(made), params()))
    each = np.stack([drawn[f"auroc/{name}"] for name in FIVE])
    assert 0 < np.isnan(each).any(axis=0).sum() < 1000
    for name in ("auroc/mean", "auroc/mean5"):
        np.testing.assert_allclose(drawn[name], each.mean(axis=0), atol=1e-12)  # NaN where any is


@pytest.mark.parametrize("taken", ["mean", "mean5", "n_labels"])
def test_a_label_with_the_name_of_a_mean_is_refused(tmp_path: Path, taken: str) -> None:
    spec = store(tmp_path / "s", {"Edema": labels(1)["Edema"], taken: labels(1)["Fracture"]})
    with pytest.raises(UserError, match=f"a label cannot be called '{taken}', .*; run prepare again with another name"):
        evaluator(spec)
    assert evaluator(spec, labels="Edema").labels == ("Edema",)


def test_a_label_that_holds_a_comma_can_be_measured_but_not_named(tmp_path: Path) -> None:
    spec = store(tmp_path / "s", {"Edema": labels(1)["Edema"], "mass, left": labels(1)["Fracture"]})
    with pytest.raises(UserError, match="has no label 'mass'; .*; a label whose name holds a comma cannot be named"):
        evaluator(spec, labels="mass, left")
    assert evaluator(spec).labels == ("Edema", "mass, left")


def of_patients(path: Path, patients: Sequence[str], positives: int, **manifest: Any) -> ZeroShot:
    rows = [Row(labels={"Edema": float(i < positives)}, patient=one) for i, one in enumerate(patients)]
    return evaluator(write_store(path, rows, **manifest))


def test_one_patient_has_no_interval_and_no_value_is_without_a_reason(tmp_path: Path) -> None:
    made = of_patients(tmp_path / "s", ["p"] * N, N // 2)
    values = made.run(encode(made), params())
    for name in ("Edema", "mean"):
        assert values[f"auroc/{name}"] is not None
        assert values[f"auroc_lo/{name}"] is values[f"auroc_hi/{name}"] is None
        assert str(values[f"auroc_interval_why/{name}"]).startswith("all units are of one patient")
    assert any(note.startswith("no value has an interval") for note in made.describe()["notes"])
    sides = [Scored(made, made.predict(encode(made), params(seed))) for seed in (0, 1)]
    found = differences(*sides)["auroc/Edema"]
    assert (found["low"], found["high"]) == (None, None)
    assert found["why"].startswith("all units are of one patient")


def test_too_few_resamples_are_the_reason_of_a_missing_interval(tmp_path: Path) -> None:
    made = of_patients(tmp_path / "s", [f"p{i}" for i in range(N)], 1)
    values = made.run(encode(made), params())
    assert values["auroc/Edema"] is not None and values["auroc_lo/Edema"] is None
    resamples = values["auroc_resamples/Edema"]
    assert values["auroc_interval_why/Edema"] == f"defined in {resamples} of 1000 resamples, 900 are needed"


def test_many_images_of_few_patients_are_warned_of(tmp_path: Path) -> None:
    patients = [f"sick{i % 4}" if i < 60 else f"well{i}" for i in range(160)]
    [note] = of_patients(tmp_path / "s", patients, 60).describe()["notes"]
    assert note.startswith("Edema: 60 positives are of only 4 patients: ")
    notes = of_patients(tmp_path / "t", [f"p{i % 7}" for i in range(160)], 60).describe()["notes"]
    assert "intervals draw only 7 patients: with fewer than 30 they are too narrow" in notes


def test_units_of_unknown_patients_are_not_taken_for_independent(tmp_path: Path) -> None:
    patients = [f"p{i}" for i in range(N)]
    known, partly = (of_patients(tmp_path / name, patients, 30, unknown_patients=n) for name, n in (("a", 0), ("b", 7)))
    assert (known.units.independent, partly.units.independent) == (True, False)
    assert (known.describe()["patients"], partly.describe()["patients"]) == (N, None)
    assert known.describe()["notes"] == []
    other = store(tmp_path / "v", {"Edema": labels(2)["Edema"]}, 100, unknown_patients=7)
    assert evaluator(known.entry["data"], other).describe()["validation"]["patients"] is None
    [note] = partly.describe()["notes"]
    assert note.startswith(f"7 of {N} records name no patient: ")
    for made, method in ((known, "DeLong"), (partly, "patient bootstrap")):
        sides = [Scored(made, made.predict(encode(made), params(seed))) for seed in (0, 1)]
        assert differences(*sides)["auroc/Edema"]["method"] == method


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_embeddings_without_a_direction_are_undefined_without_a_warning(stores: tuple[str, str], bad: float) -> None:
    made, weights = evaluator(*stores), params()
    weights["image"][3] = bad
    values = made.run(encode(made), weights)
    known = int((~np.isnan(made.tested.truth_NxK[:, 3])).sum())
    assert (values["auroc/Edema"], values["auroc_why/Edema"]) == (None, f"1 of {known} scores are not finite")


def test_a_study_has_what_any_of_its_images_has(tmp_path: Path) -> None:
    of_studies = {
        "first": [1.0, 0.0],
        "last": [0.0, 1.0],
        "none": [0.0, None],
        "one": [None, 1.0, None],
        "blank": [None],
    }
    rows = [
        Row(labels={"Edema": y}, patient=name, study="s") for name, labelled in of_studies.items() for y in labelled
    ]
    made = evaluator(write_store(tmp_path / "s", rows), unit="study")
    np.testing.assert_array_equal(made.tested.truth_NxK[:, 0], [1, 1, 0, 1, np.nan])


def test_an_infinite_value_is_null_with_why(stores: tuple[str, str]) -> None:
    class Infinite(ZeroShot):
        def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
            return {"ratio/mean": np.full(len(weight_RxN), np.inf)}

    made = Infinite("e", {"protocol": "x", "data": stores[0]}, PREPARATION)
    values = made.score(made.blank())
    assert (values["ratio/mean"], values["ratio_why/mean"]) == (None, "the value is not finite")
    assert (values["ratio_lo/mean"], values["ratio_resamples/mean"]) == (None, 0)
    json.dumps(values, allow_nan=False)
