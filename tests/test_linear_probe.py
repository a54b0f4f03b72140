"""Linear probes on real stores with planted embeddings: what they find and refuse, and scikit-learn's numbers."""

# N rows, E embedding

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_stores import Row, evaluator, kinds, planted, unit, write_store
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import f1_score, roc_auc_score

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import probe
from hybridclip_jax.evals.linear_probe import LinearProbe, _share
from hybridclip_jax.evals.plip_linear import PlipLinear

E = 8
SIZES = {"train": 120, "validation": 60, "test": 70}
START = {"train": 0, "validation": 120, "test": 180}  # grey value of each store's first image: no image is in two
LABELS = ("Edema", "Fracture")


def embeddings(seed: int = 0) -> np.ndarray:
    """An embedding for each grey value, and with it a label where its first coordinate is positive."""
    return unit(np.random.default_rng(seed).normal(size=(256, E))).astype(np.float32)


@dataclasses.dataclass
class Stores:
    """Three stores on disk: Edema follows the first coordinate, Fracture is drawn by lot."""

    folder: Path
    image: np.ndarray = dataclasses.field(default_factory=embeddings)

    def rows(self, name: str) -> list[Row]:
        rng = np.random.default_rng(list(name.encode()))
        rows = []
        for i in range(SIZES[name]):
            grey = START[name] + i
            labels = {"Edema": float(self.image[grey, 0] > 0), "Fracture": float(rng.integers(2))}
            rows.append(Row(labels=labels, patient=f"{name}-{i // 2}", grey=grey))  # two images a patient
        return rows

    def write(self, name: str, rows: list[Row] | None = None, **options: Any) -> str:
        return write_store(self.folder / name, self.rows(name) if rows is None else rows, **options)

    def specs(self, **written: str) -> dict[str, str]:
        return {name: written.get(name) or self.write(name) for name in SIZES}

    def probe(self, specs: dict[str, str], protocol: str = "linear-probe", **fields: Any) -> Any:
        return evaluator(protocol, specs["test"], train=specs["train"], validation=specs["validation"], **fields)

    def run(self, made: Any) -> Any:
        return made.run(planted({}), {"image": self.image})


def with_labels(rows: list[Row], name: str, values: list[float | None]) -> list[Row]:
    return [
        dataclasses.replace(row, labels={**row.labels, name: value}) for row, value in zip(rows, values, strict=True)
    ]


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path)


def data(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    feature = unit(rng.normal(size=(n, E)))
    return feature, (feature[:, 0] + 0.3 * rng.normal(size=n) > 0).astype(float)


def test_the_fit_is_the_minimum_of_the_penalised_log_loss() -> None:
    feature, label = data()
    fitted = probe.fit(feature, label, *data(seed=1))
    residual = fitted.predict(feature) - label
    gradient = fitted.weight_E + fitted.strength * feature.T @ residual
    assert np.abs(gradient).max() < 2e-3 * fitted.strength * len(label)
    assert abs(residual.sum()) < 2e-3 * len(label), "the intercept is free"
    reference = LogisticRegression(C=fitted.strength, tol=1e-10, max_iter=10_000).fit(feature, label)
    np.testing.assert_allclose(fitted.predict(feature), reference.predict_proba(feature)[:, 1], atol=0.01)


def test_the_strength_is_the_one_that_does_best_on_validation() -> None:
    feature, label = data(40)
    for seed in range(2):  # noise, so that validations disagree
        validation, validation_label = data(50, seed=10 + seed)
        fitted = probe.fit(feature, label, validation, validation_label)
        aurocs = {}
        for strength in probe.STRENGTHS:
            reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(feature, label)
            aurocs[strength] = roc_auc_score(validation_label, reference.decision_function(validation))
        assert aurocs[fitted.strength] >= max(aurocs.values()) - 0.003
        assert max(aurocs.values()) - min(aurocs.values()) > 0.004, "the choice matters"


def test_unknown_labels_are_left_out() -> None:
    feature, label = data()
    validation, validation_label = data(seed=1)
    unknown = label.copy()
    unknown[::3] = np.nan
    known = ~np.isnan(unknown)
    a = probe.fit(feature, unknown, validation, validation_label)
    b = probe.fit(feature[known], label[known], validation, validation_label)
    np.testing.assert_array_equal(a.weight_E, b.weight_E)
    assert np.abs(a.weight_E - probe.fit(feature, label, validation, validation_label).weight_E).max() > 1e-3


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([np.nan, np.nan], "no row has a known label"),
        ([1.0, np.nan], "all 1 known labels are positive"),
        ([0.0, 0.0], "all 2 known labels are negative"),
        ([0.0, 1.0], None),
    ],
)
def test_why_labels_cannot_be_fitted(labels: list[float], why: str | None) -> None:
    assert probe.why_unfit(np.array(labels)) == why
    if why:
        with pytest.raises(ValueError, match=why):
            probe.fit(np.eye(2), np.array(labels), np.eye(2), np.array([0.0, 1.0]))


def test_a_label_that_the_embeddings_hold_is_found_and_one_drawn_by_lot_is_not(stores: Stores) -> None:
    made = stores.probe(stores.specs(), fractions="0.1,1")
    values = stores.run(made)
    assert values["probe_auroc@1/Edema"] > 0.95
    assert 0.3 < values["probe_auroc@1/Fracture"] < 0.7
    assert values["probe_auroc@0.1/Edema"] < values["probe_auroc@1/Edema"]
    mean = (values["probe_auroc@1/Edema"] + values["probe_auroc@1/Fracture"]) / 2
    assert values["probe_auroc@1/mean"] == pytest.approx(mean)
    assert values["probe_auroc@1/n_labels"] == 2
    assert values["probe_auroc@1_lo/Edema"] < values["probe_auroc@1/Edema"] <= values["probe_auroc@1_hi/Edema"]
    assert values["probe_auroc@1_chance/Edema"] == 0.5
    assert made.describe()["meanings"] == {
        f"probe_auroc@{text}": f"AUROC of a logistic regression on embeddings of {percent} % of the patients of train"
        for text, percent in (("0.1", 10), ("1", 100))
    }


def test_shuffled_labels_give_chance(stores: Stores) -> None:
    rng = np.random.default_rng(0)
    rows = stores.rows("train")
    shuffled = with_labels(rows, "Edema", list(rng.permutation([row.labels["Edema"] for row in rows])))
    values = stores.run(stores.probe(stores.specs(train=stores.write("train", shuffled)), fractions="1"))
    assert 0.25 < values["probe_auroc@1/Edema"] < 0.75


def test_values_are_scikit_learns_of_the_probes_scores(stores: Stores) -> None:
    labels: list[float | None] = [row.labels["Edema"] for row in stores.rows("test")]
    labels[::4] = [None] * len(labels[::4])
    made = stores.probe(stores.specs(test=stores.write("test", with_labels(stores.rows("test"), "Edema", labels))))
    predictions = made.predict(planted({}), {"image": stores.image})
    values = made.point(predictions)
    known = np.array([label is not None for label in labels])
    k = predictions.columns.index("Edema@0.1")
    wanted = roc_auc_score(np.array(labels)[known].astype(float), predictions.score_NxK[known, k])
    assert values["probe_auroc@0.1/Edema"] == pytest.approx(wanted, abs=1e-9)
    again = made.predict(planted({}), {"image": stores.image})
    np.testing.assert_array_equal(predictions.score_NxK, again.score_NxK)


def test_the_probe_sees_what_a_fit_on_the_same_arrays_sees(stores: Stores) -> None:
    made = stores.probe(stores.specs(), fractions="1")
    predictions = made.predict(planted({}), {"image": stores.image})
    vectors = unit(stores.image.astype(np.float64))
    part = {name: vectors[START[name] : START[name] + n] for name, n in SIZES.items()}
    label = {name: np.array([row.labels["Edema"] for row in stores.rows(name)]) for name in SIZES}
    wanted = probe.fit(part["train"], label["train"], part["validation"], label["validation"])
    np.testing.assert_allclose(predictions.score_NxK[:, 0], wanted.predict(part["test"]), atol=1e-12)
    assert made.describe()["strengths"]["chosen for the first model"]["Edema@1"] == wanted.strength


def test_fractions_are_of_patients_and_each_holds_the_smaller_ones(stores: Stores) -> None:
    specs = stores.specs()
    made, other = (stores.probe(specs, fractions=given) for given in ("0.05,0.1,0.5,1", "0.5"))
    assert isinstance(made, LinearProbe)
    patients = {}
    for text, rows in made.chosen.items():
        patients[text] = set(made.train_units.patient_N[rows])
        assert len(rows) == 2 * len(patients[text]), "all images of a patient"
    assert [len(found) for found in patients.values()] == [3, 6, 30, 60]
    assert patients["0.05"] < patients["0.1"] < patients["0.5"] < patients["1"]
    np.testing.assert_array_equal(made.chosen["0.5"], other.chosen["0.5"])
    first = set(made.train_units.patient_N[:60])
    assert patients["0.5"] != first, "drawn, not the first"
    assert made.describe()["train"]["fractions"]["0.05"]["patients"] == 3


def test_fractions_have_names_of_their_own_and_whole_numbers_of_patients(stores: Stores) -> None:
    specs = stores.specs()
    made = stores.probe(specs, fractions="0.5000001,0.50000011,1")
    assert list(made.fractions) == ["0.5000001", "0.50000011", "1"]
    assert _share(0.07, 100) == 7, "0.07 * 100 is 7.000000000000001 in floating point"
    assert [_share(share, 60) for share in (1e-12, 0.05, 0.051, 1.0)] == [1, 3, 4, 60]


def test_the_mean_is_of_the_same_labels_in_every_resample(stores: Stores) -> None:
    made = stores.probe(stores.specs(), fractions="1")
    truth = made.truth[:, LABELS.index("Fracture")]
    weight_RxN = np.stack([np.ones(len(truth)), truth])  # in the second no unit lacks a fracture
    values = made.measure(made.predict(planted({}), {"image": stores.image}), weight_RxN)
    assert np.isnan(values["probe_auroc@1/Fracture"]).tolist() == [False, True]
    assert np.isfinite(values["probe_auroc@1/Edema"]).all()
    assert np.isnan(values["probe_auroc@1/mean"]).tolist() == [False, True]


def test_undefined_labels_are_null_with_why_and_outside_the_mean(stores: Stores) -> None:
    rows = {name: stores.rows(name) for name in SIZES}
    for name in SIZES:
        n = SIZES[name]
        known = [0.0, 1.0] * (n // 2)
        constant: list[float | None] = [1.0] * n
        for label, where in (("A", "train"), ("B", "validation"), ("C", "test")):
            rows[name] = with_labels(rows[name], label, constant if name == where else list(known))
    made = stores.probe({name: stores.write(name, found) for name, found in rows.items()}, fractions="1")
    values = stores.run(made)
    assert values["probe_auroc@1/A"] is values["probe_auroc@1/B"] is values["probe_auroc@1/C"] is None
    assert values["probe_auroc@1_why/A"] == "no probe: in the training rows all 120 known labels are positive"
    assert values["probe_auroc@1_why/B"] == "no probe: in the validation store all 60 known labels are positive"
    assert values["probe_auroc@1_why/C"] == "all 70 known labels are positive"
    assert values["probe_auroc@1/n_labels"] == 2
    assert values["probe_auroc@1/mean"] == pytest.approx(
        (values["probe_auroc@1/Edema"] + values["probe_auroc@1/Fracture"]) / 2
    )
    blank = made.at_chance()
    assert {name for name, value in blank.items() if value is None} == {
        name for name, value in values.items() if value is None and "_lo/" not in name and "_hi/" not in name
    }


def test_a_label_too_rare_for_a_small_fraction_is_said_to_be_missing_there(stores: Stores) -> None:
    few = stores.probe(stores.specs(), fractions="0.1").chosen["0.1"]
    rare: list[float | None] = [0.0] * SIZES["train"]
    for row in set(range(10)) - set(few):
        rare[row] = 1.0
    folder = stores_at(stores, "rare")
    rows = {name: folder.rows(name) for name in SIZES}
    for name in ("validation", "test"):
        rows[name] = with_labels(rows[name], "Rare", [0.0, 1.0] * (SIZES[name] // 2))
    rows["train"] = with_labels(rows["train"], "Rare", rare)
    made = folder.probe({name: folder.write(name, found) for name, found in rows.items()}, fractions="0.1,1")
    values = folder.run(made)
    assert (values["probe_auroc@0.1/Rare"], values["probe_auroc@0.1/n_labels"]) == (None, 2)
    assert values["probe_auroc@1/Rare"] is not None and values["probe_auroc@1/n_labels"] == 3
    wanted = "at fraction 0.1 no probe can be fitted for Rare: its mean is over fewer labels than at fraction 1"
    assert wanted in made.describe()["notes"]


def test_a_model_that_is_not_finite_has_no_probe(stores: Stores) -> None:
    made = stores.probe(stores.specs(), fractions="1")
    values = made.run(planted({}), {"image": np.full((256, E), np.nan, np.float32)})
    assert values["probe_auroc@1/Edema"] is None
    assert values["probe_auroc@1_why/Edema"] == "70 of 70 scores are not finite"
    assert values["probe_auroc@1_why/mean"] == "no label has a defined AUROC"


def test_a_study_is_probed_by_the_mean_of_its_images(stores: Stores) -> None:
    rows = {name: [dataclasses.replace(row, study=row.patient) for row in stores.rows(name)] for name in SIZES}
    made = stores.probe({name: stores.write(name, found) for name, found in rows.items()}, fractions="1", unit="study")
    predictions = made.predict(planted({}), {"image": stores.image})
    assert made.describe()["train"]["fractions"]["1"]["units"] == SIZES["train"] // 2
    assert predictions.score_NxK.shape == (SIZES["test"] // 2, len(LABELS))
    vectors = unit(stores.image.astype(np.float64))
    x = {name: unit(vectors[START[name] : START[name] + n].reshape(-1, 2, E).mean(axis=1)) for name, n in SIZES.items()}
    y = {name: np.array([row.labels["Edema"] for row in rows[name]]).reshape(-1, 2).max(axis=1) for name in SIZES}
    wanted = probe.fit(x["train"], y["train"], x["validation"], y["validation"])
    np.testing.assert_allclose(predictions.score_NxK[:, 0], wanted.predict(x["test"]), atol=1e-9)


@pytest.mark.parametrize("pair", [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_stores_that_share_a_patient_are_refused(stores: Stores, pair: tuple[str, str]) -> None:
    rows = {name: stores.rows(name) for name in SIZES}
    patient = rows[pair[0]][0].patient
    rows[pair[1]][0] = dataclasses.replace(rows[pair[1]][0], patient=patient)
    specs = {name: stores.write(name, found) for name, found in rows.items()}
    with pytest.raises(UserError, match=r"evals\.e\.(train|validation) = .*: shares 1 patient with .*; what is fitted"):
        stores.probe(specs)


def test_stores_that_cannot_be_compared_are_noted(stores: Stores) -> None:
    specs = stores.specs(train=stores.write("train", unknown_patients=SIZES["train"]))
    said = stores.probe(specs).describe()
    assert sum("patients not checked" in note for note in said["notes"]) == 2
    assert said["train"]["fractions"]["1"]["patients"] is None
    assert not any("not checked" in note for note in stores.probe(stores_at(stores, "b").specs()).describe()["notes"])


def stores_at(stores: Stores, name: str) -> Stores:
    (stores.folder / name).mkdir()
    return Stores(stores.folder / name, stores.image)


def test_user_errors_are_one_line_with_the_remedy(stores: Stores) -> None:
    specs = stores.specs()
    with pytest.raises(UserError, match=r"evals\.e\.train is empty: name a store, PATH\[:SPLIT\]"):
        stores.probe(specs | {"train": ""})
    for wrong in ("0,1", "2", "a", "", "nan"):
        with pytest.raises(UserError, match=r"evals\.e\.fractions = .*must be numbers above 0 and up to 1"):
            stores.probe(specs, fractions=wrong)
    other = stores_at(stores, "other")
    bare = other.write("test", [dataclasses.replace(row, labels={"Nodule": 1.0}) for row in other.rows("test")])
    with pytest.raises(UserError, match=r"no label in common: train has Edema, Fracture; .*; data has Nodule"):
        stores.probe(specs | {"test": bare})
    some = with_labels(stores.rows("test"), "Nodule", [1.0] * SIZES["test"])
    more = stores_at(stores, "more").write("test", some)
    notes = stores.probe(specs | {"test": more}).describe()["notes"]
    assert "left out, because not all three stores have them: Nodule" in notes
    odd = with_labels(stores.rows("train"), "Edema", [0.5] * SIZES["train"])
    with pytest.raises(UserError, match="label 'Edema' holds values other than 0, 1 and unknown"):
        stores.probe(specs | {"train": stores_at(stores, "odd").write("train", odd)})


# --- plip-linear


def class_rows(stores: Stores, name: str, names: tuple[str, ...]) -> list[Row]:
    """One of the classes each, by the angle of the first two coordinates."""
    rows = []
    for i in range(SIZES[name]):
        grey = START[name] + i
        angle = np.arctan2(*stores.image[grey, :2].astype(float)) / (2 * np.pi) + 0.5
        own = sorted(names)[int(angle * len(names)) % len(names)]
        rows.append(Row(labels={other: float(other == own) for other in names}, grey=grey))
    return rows


@pytest.mark.parametrize("names", [("tumor", "stroma"), ("tumor", "stroma", "mucus")])
def test_plip_linear_is_scikit_learns_classifier_on_the_same_arrays(stores: Stores, names: tuple[str, ...]) -> None:
    # Columns of the three stores in three orders: classes go by name.
    orders = {"train": names, "validation": names[::-1], "test": (names[-1], *names[:-1])}
    rows = {name: class_rows(stores, name, orders[name]) for name in SIZES}
    made = stores.probe({name: stores.write(name, found) for name, found in rows.items()}, "plip-linear")
    assert isinstance(made, PlipLinear)
    values = stores.run(made)
    vectors = unit(stores.image.astype(np.float64))
    x = {name: vectors[START[name] : START[name] + n] for name, n in SIZES.items()}
    # Numbered as in the measured store: the seeds make other draws for other numbers.
    y = {
        name: [orders["test"].index(max(row.labels, key=lambda n: row.labels[n])) for row in rows[name]]
        for name in SIZES
    }  # type: ignore[arg-type, return-value]  # a label may be None in other tests, here each is a number

    def scores(alpha: float, name: str, average: str = "macro") -> list[float]:
        found = []
        for seed in range(5):
            model = SGDClassifier(
                loss="log_loss", penalty="l2", alpha=alpha, max_iter=10_000, class_weight="balanced", random_state=seed
            ).fit(x["train"], y["train"])
            found.append(f1_score(y[name], model.predict(x[name]), average=average))
        return found

    alpha = max((1e-1, 1e-2, 1e-3, 1e-4), key=lambda a: np.mean(scores(a, "validation")))
    wanted = scores(alpha, "test")
    assert made.describe()["alpha"]["chosen for the first model"] == alpha
    assert values["probe_f1/macro"] == pytest.approx(np.mean(wanted), abs=1e-9)
    assert values["probe_f1/weighted"] == pytest.approx(np.mean(scores(alpha, "test", "weighted")), abs=1e-9)
    assert values["probe_f1_seeds/lowest"] == pytest.approx(min(wanted), abs=1e-9)
    assert values["probe_f1_seeds/highest"] == pytest.approx(max(wanted), abs=1e-9)
    assert values["probe_f1/macro"] > 0.7
    assert made.describe()["meanings"].keys() == kinds(values)
    assert values["probe_accuracy_chance/mean"] == pytest.approx(1 / len(names))


def test_rows_of_no_class_or_several_are_left_out_and_named(stores: Stores) -> None:
    names = ("mucus", "stroma", "tumor")
    rows = {name: class_rows(stores, name, names) for name in SIZES}
    for place, found in ((0, dict.fromkeys(names, 0.0)), (1, dict.fromkeys(names, 1.0))):
        rows["test"][place] = dataclasses.replace(rows["test"][place], labels=found)
    made = stores.probe({name: stores.write(name, found) for name, found in rows.items()}, "plip-linear")
    assert len(made.units) == SIZES["test"] - 2
    assert "2 of 70 images of data are left out: no class, or several" in made.describe()["notes"]


def test_plip_linear_needs_the_same_classes_everywhere(stores: Stores) -> None:
    names = ("mucus", "stroma", "tumor")
    rows = {name: class_rows(stores, name, names) for name in SIZES}
    specs = {name: stores.write(name, found) for name, found in rows.items()}
    fewer = stores_at(stores, "fewer").write("train", class_rows(stores, "train", names[:2]))
    with pytest.raises(
        UserError, match=r"evals\.e\.train = .*: has classes mucus, stroma, and data has mucus, stroma, tumor"
    ):
        stores.probe(specs | {"train": fewer}, "plip-linear")
    without = [row for row in rows["train"] if not row.labels["tumor"]]
    empty = stores_at(stores, "empty").write("train", without)
    with pytest.raises(UserError, match=r"no row is of class 'tumor' alone"):
        stores.probe(specs | {"train": empty}, "plip-linear")
    with pytest.raises(UserError, match="plip-linear is of images"):
        stores.probe(specs, "plip-linear", unit="study")
