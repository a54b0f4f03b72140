"""CheXpert 5x200: which images it takes, and both ways of scoring them, against statements of their own."""

# N images, K classes, P prompts of a class, E embedding

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_stores import Row, evaluator, planted, unit, write_store
from sklearn import metrics as sk

from hybridclip_jax.data.formats.label_tables import CHEXPERT_LABELS
from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals.chexpert5x200 import standardised
from hybridclip_jax.evals.encode import Encode
from hybridclip_jax.evals.multi_class import MultiClass

E = 16
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
FORMS = ("chexpert5x200-gloria", "chexpert5x200-cxrclip")
GLORIA, CXR_CLIP = FORMS


def only(label: str, **others: float | None) -> dict[str, float | None]:
    """Labels of an image with one finding; the rest blank but for `others`."""
    return {**dict.fromkeys(CHEXPERT_LABELS, None), label: 1.0, **{k.replace("_", " "): v for k, v in others.items()}}


def rows_of(each: int) -> list[Row]:
    """`each` of the five classes in turn, frontal, one image a patient."""
    return [Row(labels=only(FIVE[i % 5]), view=("AP", "PA", "FRONTAL")[i % 3]) for i in range(5 * each)]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_store(tmp_path_factory.mktemp("five") / "test", rows_of(16))


def made_of(protocol: str, spec: str, per_class: int = 12, **fields: Any) -> MultiClass:
    made = evaluator(protocol, spec, per_class=per_class, **fields)
    assert isinstance(made, MultiClass)
    return made


def vector(text: str) -> np.ndarray:
    return unit(np.random.default_rng(list(text.encode())).normal(size=E)).astype(np.float32)


def encode(made: MultiClass) -> Encode:
    return planted({text: vector(text) for label in made.classes for text in made.prompts.pair(label).positive})


def params(seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": unit(np.random.default_rng(seed).normal(size=(256, E))).astype(np.float32)}


def cosines(made: MultiClass, weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """[N, P] of each class."""
    image_NxE = weights["image"][made.units.row_N].astype(np.float64)
    sentences = [made.prompts.pair(label).positive for label in made.classes]
    return [image_NxE @ np.stack([vector(text) for text in said], axis=1) for said in sentences]


def z_scored(score_NxK: np.ndarray) -> np.ndarray:
    return (score_NxK - score_NxK.mean(axis=0)) / score_NxK.std(axis=0)


def true_class(made: MultiClass) -> np.ndarray:
    return np.array([FIVE.index(FIVE[row % 5]) for row in made.units.row_N])


def expected(truth_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
    recall = sk.recall_score(truth_N, predicted_N, average=None)
    return {
        "accuracy/mean": sk.accuracy_score(truth_N, predicted_N),
        "f1/macro": sk.f1_score(truth_N, predicted_N, average="macro"),
        "f1/weighted": sk.f1_score(truth_N, predicted_N, average="weighted"),
        **{f"recall/{label}": recall[k] for k, label in enumerate(FIVE)},
    }


@pytest.mark.parametrize("protocol", FORMS)
def test_values_are_those_of_an_independent_statement(protocol: str, spec: str) -> None:
    made, weights = made_of(protocol, spec), params()
    each = cosines(made, weights)
    best = z_scored(np.stack([x.max(axis=1) for x in each], axis=1))
    average = np.stack([x.mean(axis=1) for x in each], axis=1)
    right, wrong = (best, average) if protocol == GLORIA else (average, best)
    values = made.point(made.predict(encode(made), weights))
    assert {name: values[name] for name in expected(true_class(made), right.argmax(axis=1))} == pytest.approx(
        expected(true_class(made), right.argmax(axis=1)), abs=1e-9
    )
    assert values["accuracy/mean"] != sk.accuracy_score(true_class(made), wrong.argmax(axis=1))
    assert values["accuracy_chance/mean"] == pytest.approx(0.2)
    assert values["accuracy_majority/mean"] == pytest.approx(0.2)


def chosen(made: MultiClass, weights: Mapping[str, np.ndarray], weight_N: np.ndarray) -> dict[str, float]:
    predictions = made.predict(encode(made), weights)
    return {name: float(value) for name, [value] in made.measure(predictions, weight_N[None]).items()}


def test_gloria_depends_on_the_rest_of_the_test_set_and_cxr_clip_does_not(spec: str) -> None:
    half_N = (np.arange(60) < 30).astype(float)
    answers = {}
    for protocol in FORMS:
        made, weights = made_of(protocol, spec), params()
        each = cosines(made, weights)
        truth_N = true_class(made)
        if protocol == GLORIA:
            score_NxK = np.stack([x.max(axis=1) for x in each], axis=1)
            whole, alone = z_scored(score_NxK)[:30], z_scored(score_NxK[:30])
        else:
            whole = alone = np.stack([x.mean(axis=1) for x in each], axis=1)[:30]
        answers[protocol] = int((whole.argmax(axis=1) != alone.argmax(axis=1)).sum())
        got = chosen(made, weights, half_N)
        assert got == pytest.approx(expected(truth_N[:30], alone.argmax(axis=1)), abs=1e-9)
    assert answers[GLORIA] > 0
    assert answers[CXR_CLIP] == 0


@pytest.mark.parametrize("protocol", FORMS)
def test_a_resample_is_the_images_repeated(protocol: str, spec: str) -> None:
    made, weights = made_of(protocol, spec), params()
    weight_RxN = np.random.default_rng(1).integers(4, size=(6, 60)).astype(float)
    got = made.measure(made.predict(encode(made), weights), weight_RxN)
    each = cosines(made, weights)
    for r, times in enumerate(weight_RxN.astype(int)):
        repeated = [np.repeat(x, times, axis=0) for x in each]
        average = np.stack([x.mean(axis=1) for x in repeated], axis=1)
        best = z_scored(np.stack([x.max(axis=1) for x in repeated], axis=1))
        predicted = (best if protocol == GLORIA else average).argmax(axis=1)
        truth_N = np.repeat(true_class(made), times)
        assert {name: value[r] for name, value in got.items()} == pytest.approx(expected(truth_N, predicted), abs=1e-9)


def test_scores_that_are_all_alike_have_no_z_score_not_even_of_rounding() -> None:
    weight_RxN = np.random.default_rng(1).integers(1, 4, size=(50, 7)).astype(float)
    assert not standardised(np.full((7, 5), 0.1), weight_RxN).any()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("protocol", FORMS)
def test_a_model_that_scores_all_alike_is_at_chance(protocol: str, spec: str) -> None:
    made = made_of(protocol, spec)
    # Every image the same: its similarities differ from class to class, and say nothing.
    collapsed = made.predict(encode(made), {"image": np.tile(vector("x"), (256, 1))})
    assert made.point(collapsed)["accuracy/mean"] == pytest.approx(0.2)
    assert made.at_chance()["accuracy/mean"] == pytest.approx(0.2)
    assert made.at_chance()["recall/Edema"] == pytest.approx(0.2)
    for bad in (np.nan, np.inf, 0.0):
        values = made.run(encode(made), {"image": np.full((256, E), bad, np.float32)})
        assert values["accuracy/mean"] is None
        assert values["accuracy_why/mean"] == values["recall_why/Edema"] == "300 of 300 scores are not finite"
        texts = Encode(images=encode(made).images, texts=lambda params, ids, x=bad: np.full((8, E), x), batch_size=8)
        assert made.run(texts, params())["accuracy/mean"] is None


def test_intervals_and_an_ensemble(spec: str) -> None:
    made = made_of(GLORIA, spec)
    values = made.run(encode(made), params())
    assert values["accuracy_lo/mean"] < values["accuracy/mean"] < values["accuracy_hi/mean"]
    assert values["accuracy_resamples/mean"] == 1000
    assert not any(name.startswith(("accuracy_chance_lo", "accuracy_majority_lo")) for name in values)


def source_rows(made: MultiClass) -> dict[str, list[int]]:
    return dict(made.describe()["sample"]["rows"])


def exclusive(path: Path, rows: Sequence[Row], **manifest: Any) -> dict[str, list[int]]:
    """The source rows that are taken of each class, all that there are of the scarcest."""
    spec = write_store(path, rows, **manifest)
    return source_rows(made_of(CXR_CLIP, spec, per_class=1))


def test_only_frontal_images_with_nothing_else_are_taken(tmp_path: Path) -> None:
    others = [*rows_of(1)[:3], *rows_of(1)[4:]]  # four classes with one candidate; the rows below are all of Edema
    good = [only("Edema"), only("Edema", Fracture=0.0, No_Finding=0.0)]
    bad = [
        only("Edema", Support_Devices=1.0),
        only("Edema", Cardiomegaly=1.0),
        only("Edema", Fracture=-1.0),  # uncertain is not absent
        {**only("Edema"), "Edema": -1.0},
        dict.fromkeys(CHEXPERT_LABELS, None),
        dict.fromkeys(CHEXPERT_LABELS, 0.0),
    ]
    lateral = [Row(labels=only("Edema"), view=view) for view in ("LATERAL", "LL", "", "L", "APPLE")]
    policy = {"names": list(CHEXPERT_LABELS), "uncertain": "zero", "blank": "missing"}
    rows = [*others, *lateral, *(Row(labels=labels, view="AP") for labels in bad)]
    with pytest.raises(UserError, match=r"has only 0 Edema \(frontal, no other finding\), and evals.e.per_class = 1"):
        exclusive(tmp_path / "none", rows, labels=policy)
    for n, labels in enumerate(good):
        for view in ("AP", "pa", "AP_horizontal", "Frontal", "AP AXIAL"):
            taken = exclusive(tmp_path / f"{n}{view}", [*rows, Row(labels=labels, view=view)], labels=policy)
            assert taken["Edema"] == [len(rows) + 1]


def test_labels_that_the_store_lacks_are_not_asked_of_it(tmp_path: Path) -> None:
    names = {label: label.lower().replace(" ", "_") for label in (*FIVE, "Fracture")}
    few = [{names[k]: v for k, v in row.labels.items() if k in names} for row in rows_of(2)]
    rows = [Row(labels=labels, view="PA") for labels in few]
    rows[0] = Row(labels={**few[0], "fracture": 1.0}, view="PA")
    taken = exclusive(tmp_path / "few", rows)
    assert list(taken) == [names[label] for label in FIVE]
    assert taken["atelectasis"] == [6]


def test_of_several_images_of_one_source_row_the_first_is_taken(tmp_path: Path) -> None:
    rows = [*rows_of(1), Row(labels=only("Edema"), view="PA", source_row=4)]
    made = made_of(CXR_CLIP, write_store(tmp_path / "twice", rows), per_class=1)
    assert made.units.row_N.tolist() == [0, 1, 2, 3, 4]


def test_the_draw_is_seeded_and_each_row_stands_for_itself(tmp_path: Path, spec: str) -> None:
    first = source_rows(made_of(GLORIA, spec, seed=3))
    assert first == source_rows(made_of(CXR_CLIP, spec, seed=3))
    assert first != source_rows(made_of(GLORIA, spec, seed=4))
    draws = np.random.Philox(key=np.array([3, 0], np.uint64)).random_raw(81)
    assert draws[1:3].tolist() == [1460271564492649549, 7061929949163127335], "another stream: lists are not repeatable"
    for k, label in enumerate(FIVE):
        there = [row for row in range(1, 81) if (row - 1) % 5 == k]
        assert first[label] == sorted(sorted(there, key=lambda row: draws[row])[:12])
    # Without one image that was drawn the others stay as they are.
    gone = first["Edema"][0]
    rows = [
        Row(labels=row.labels, view=row.view, source_row=n) for n, row in enumerate(rows_of(16), start=1) if n != gone
    ]
    after = source_rows(made_of(GLORIA, write_store(tmp_path / "less", rows), seed=3))
    assert {label: after[label] for label in FIVE if label != "Edema"} == {
        label: first[label] for label in FIVE if label != "Edema"
    }
    assert set(first["Edema"]) - set(after["Edema"]) == {gone}
    assert len(after["Edema"]) == 12


def test_a_list_is_published_and_read_back(tmp_path: Path, spec: str) -> None:
    made = made_of(GLORIA, spec, seed=3)
    sample = made.describe()["sample"]
    canonical = {label.lower(): rows for label, rows in sample["rows"].items()}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    assert sample["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert (sample["seed"], sample["per_class"], [len(rows) for rows in sample["rows"].values()]) == (3, 12, [12] * 5)
    (tmp_path / "list.json").write_text(json.dumps(sample))
    (tmp_path / "metrics.json").write_text(json.dumps({"format": 1, "evaluation": made.describe()}))
    for name in ("list.json", "metrics.json"):
        again = made_of(GLORIA, spec, per_class=1, sample=str(tmp_path / name))
        assert again.units.row_N.tolist() == made.units.row_N.tolist()
        assert again.describe()["sample"]["sha256"] == sample["sha256"]
        assert again.describe()["sample"]["rows"] == sample["rows"]
        assert "seed" not in again.describe()["sample"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such list of source rows by class"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], '"format": 1'),
        ({"format": 2, "rows": {}}, '"format": 1'),
        ({"format": 1, "rows": {"Edema": [4]}}, "must name the five classes Atelectasis, .*, each once"),
        ({"format": 1, "rows": {key: [1] for key in (*FIVE, "edema")}}, "must name the five classes .*, each once"),
        ({"format": 1, "rows": {label: ["4"] for label in FIVE}}, "rows.Atelectasis must be a list"),
        ({"format": 1, "rows": {label: [] for label in FIVE}}, "rows.Atelectasis must be a list"),
        ({"format": 1, "rows": {label: [1, 1] for label in FIVE}}, "rows.Atelectasis names a source row twice"),
        ({"format": 1, "rows": {label: [1] for label in FIVE}}, "source row 1 is no frontal record of .* Cardiomegaly"),
        ({"format": 1, "rows": {label: [999] for label in FIVE}}, "source row 999 is no frontal record of"),
        ({"format": 1, "evaluation": {"protocol": "chexzero"}}, '"format": 1'),
    ],
)
def test_a_bad_list_is_one_line_naming_the_file(tmp_path: Path, spec: str, content: object, message: str) -> None:
    if content is not None:
        (tmp_path / "list.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=rf"list\.json: .*{message}"):
        made_of(GLORIA, spec, sample=str(tmp_path / "list.json"))


def test_user_errors_name_what_to_mend(tmp_path: Path, spec: str) -> None:
    scarce = (
        r"has only 16 Atelectasis, .*16 Pleural Effusion .*evals.e.per_class = 200: lower it, or name another store"
    )
    with pytest.raises(UserError, match=scarce):
        evaluator(GLORIA, spec)
    with pytest.raises(UserError, match=r"evals\.e\.per_class = 0: must be at least 1"):
        made_of(GLORIA, spec, per_class=0)
    for seed in (-1, 2**64):
        with pytest.raises(UserError, match=rf"evals\.e\.seed = {seed}: must be at least 0 and below 2\*\*64"):
            made_of(GLORIA, spec, seed=seed)
    assert made_of(GLORIA, spec, seed=2**64 - 1).describe()["sample"]["seed"] == 2**64 - 1
    with pytest.raises(UserError, match="evals.e.unit = study: chexpert5x200-gloria is of images"):
        made_of(GLORIA, spec, unit="study")
    four = [Row(labels={k: v for k, v in row.labels.items() if k != "Edema"}, view="AP") for row in rows_of(1)]
    with pytest.raises(UserError, match="has no label 'edema': the five classes are atelectasis"):
        evaluator(GLORIA, write_store(tmp_path / "four", four))
    unseen = [Row(labels=row.labels) for row in rows_of(1)]
    with pytest.raises(UserError, match=r"no record has a frontal view \(AP, PA, FRONTAL\)"):
        evaluator(GLORIA, write_store(tmp_path / "unseen", unseen))


def test_what_is_described_holds_no_id(spec: str) -> None:
    for protocol in FORMS:
        described = made_of(protocol, spec).describe()
        text = json.dumps(described)
        assert ("transductive" in text) == (protocol == GLORIA)
        store = Store.open(spec)
        assert not any(name in text for name in (*store.ids, *store.patients, *store.studies))
        assert described["labels"]["Edema"] == {"positives": 12, "negatives": 48, "unknown": 0}
        assert (described["units"], described["patients"], described["unit"]) == (60, 60, "image")
        assert described["prompts"]["labels"]["Edema"]["negative"] == ()
