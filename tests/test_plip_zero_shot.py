"""plip-zeroshot on real stores with planted embeddings, against scikit-learn and against PLIP's own trap."""

# N images, K classes, E embedding

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pair_stores import SIZE, Row, evaluator, kinds, planted, unit, write_store
from readers import Reader
from sklearn import metrics as sk

from hybridclip_jax.commands import prepare as command
from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError, run_or_exit
from hybridclip_jax.evals.encode import Encode
from hybridclip_jax.evals.evaluator import mean
from hybridclip_jax.evals.multi_class import MultiClass, exclusive_rows, highest

E = 16
CLASSES = ("adipose tissue", "debris", "lymphocytes")
CAPTIONS = [f"An H&E image of {name}" for name in CLASSES]


def one_hot(kind: int | None, classes: Sequence[str] = CLASSES) -> dict[str, float | None]:
    return {name: None if kind is None else float(k == kind) for k, name in enumerate(classes)}


def store(path: Path, kinds: Sequence[int | None], classes: Sequence[str] = CLASSES) -> str:
    return write_store(path, [Row(labels=one_hot(kind, classes)) for kind in kinds])


def made_of(spec: str, **fields: Any) -> MultiClass:
    made = evaluator("plip-zeroshot", spec, **fields)
    assert isinstance(made, MultiClass)
    return made


def vector(text: str) -> np.ndarray:
    return unit(np.random.default_rng(list(text.encode())).normal(size=E)).astype(np.float32)


def encode(captions: Sequence[str] = CAPTIONS) -> Encode:
    return planted({text: vector(text) for text in captions})


def params(seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": unit(np.random.default_rng(seed).normal(size=(256, E))).astype(np.float32)}


KINDS = [0] * 25 + [1] * 10 + [2] * 5


def test_values_are_those_of_an_independent_statement(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(len(KINDS))
    truth_N = np.array(KINDS)[order]
    made, weights = made_of(store(tmp_path / "s", truth_N.tolist())), params()
    values = made.run(encode(), weights)
    cosine_NxK = weights["image"][: len(KINDS)].astype(float) @ np.stack([vector(text) for text in CAPTIONS], axis=1)
    predicted_N = cosine_NxK.argmax(axis=1)
    for name, expected in {
        "accuracy/mean": sk.accuracy_score(truth_N, predicted_N),
        "f1/weighted": sk.f1_score(truth_N, predicted_N, average="weighted"),
        "f1/macro": sk.f1_score(truth_N, predicted_N, average="macro"),
        "recall/lymphocytes": sk.recall_score(truth_N, predicted_N, average=None)[2],
        "accuracy_chance/mean": 1 / 3,
        "accuracy_majority/mean": 25 / 40,
    }.items():
        assert values[name] == pytest.approx(expected, abs=1e-9), name
    assert len({values["f1/weighted"], values["f1/macro"], values["accuracy/mean"]}) == 3
    for name in ("f1/weighted", "f1/macro", "recall/lymphocytes"):
        kind, rest = name.split("/")
        assert values[f"{kind}_lo/{rest}"] <= values[name] <= values[f"{kind}_hi/{rest}"]
    assert values["recall_chance/debris"] == pytest.approx(1 / 3)
    # Naming each class for a third of every class's images: precision is the class's share, recall 1/3.
    shares = np.array([25, 10, 5]) / 40
    by_class = 2 * shares / 3 / (shares + 1 / 3)
    assert values["f1_chance/macro"] == pytest.approx(by_class.mean(), abs=1e-9)
    assert values["f1_chance/weighted"] == pytest.approx(shares @ by_class, abs=1e-9)
    assert made.describe()["meanings"].keys() == kinds(values)


def test_captions_and_classes_are_matched_by_name_not_by_order(tmp_path: Path) -> None:
    """Images that are their class's caption: always right, whichever class the store or its rows name first."""
    for n, classes in enumerate((CLASSES, CLASSES[::-1], (CLASSES[1], CLASSES[2], CLASSES[0]))):
        for start in range(3):
            kinds = [(start + i) % 3 for i in range(9)]
            made = made_of(store(tmp_path / f"{n}{start}", kinds, classes))
            captions = [f"An H&E image of {name}" for name in classes]
            weights = {"image": np.stack([vector(captions[kind]) for kind in kinds])}
            values = made.point(made.predict(encode(), weights))
            assert (values["accuracy/mean"], values["f1/weighted"]) == (1.0, 1.0)
            # The published script's pairing: captions as they first occur beside classes in another order.
            met = [vector(text) for text in dict.fromkeys(captions[kind] for kind in kinds)]
            by_order = np.array([image @ np.stack(met, axis=1) for image in weights["image"]]).argmax(axis=1)
            assert (by_order == np.array(kinds)).all() == (start == 0)


def test_images_of_no_or_several_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    both = {**one_hot(0), "debris": 1.0}
    labels = [one_hot(0), one_hot(None), both, one_hot(2), dict.fromkeys(CLASSES, 0.0), {**one_hot(1), "debris": 1.0}]
    spec = write_store(tmp_path / "s", [Row(labels=values) for values in labels])
    made = made_of(spec)
    assert made.units.row_N.tolist() == [0, 3, 5]
    assert "3 of 6 images are left out: they have no positive label, or several" in made.describe()["notes"]
    names, row_M, class_M = exclusive_rows(Store.open(spec))
    assert (names, row_M.tolist(), class_M.tolist()) == (CLASSES, [0, 3, 5], [0, 2, 1])
    whole = store(tmp_path / "whole", KINDS)
    assert not any("left out" in note for note in made_of(whole).describe()["notes"])


def test_a_class_without_images_can_be_predicted_and_has_no_recall(tmp_path: Path) -> None:
    kinds = [0, 0, 1, 1]
    made = made_of(store(tmp_path / "s", kinds))
    weights = {"image": np.stack([vector(CAPTIONS[k]) for k in (0, 0, 1, 2)])}
    values = made.point(made.predict(encode(), weights))
    assert values["accuracy/mean"] == 0.75
    assert (values["recall/lymphocytes"], values["recall_why/lymphocytes"]) == (None, "no image is of this class")
    assert values["f1/weighted"] == pytest.approx(sk.f1_score(kinds, [0, 0, 1, 2], average="weighted"), abs=1e-9)
    assert "recall_chance/lymphocytes" not in values, "where a value is undefined, so is its chance level"
    json.dumps(values, allow_nan=False)


def test_equal_scores_share_an_image() -> None:
    score = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [5.0, 0.0, 1.0]])
    assert highest(score).tolist() == [[0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3], [1, 0, 0]]


def test_a_model_that_knows_nothing_is_at_chance(tmp_path: Path) -> None:
    made = made_of(store(tmp_path / "s", KINDS))
    assert made.at_chance()["accuracy/mean"] == pytest.approx(1 / 3)
    same = made.point(made.predict(encode(), {"image": np.tile(vector(CAPTIONS[1]), (256, 1))}))
    assert same["accuracy/mean"] == pytest.approx(10 / 40)  # it always says debris


def test_images_are_encoded_once_for_all_evaluators_of_a_store(tmp_path: Path) -> None:
    rows = [Row(f"left lung {i}. normal heart.", labels=one_hot(kind)) for i, kind in enumerate(KINDS)]
    spec, reader = write_store(tmp_path / "s", rows), Reader()
    once, weights = reader.encode(), {"image": reader.vectors([row.text for row in rows]), "logit_scale": np.float32(0)}
    fields: dict[str, Any] = {
        "plip-zeroshot": {},
        "chexzero": {},
        "limits": {},
        "retrieval-index": {},
        "loss": {"candidates": 40},
    }
    for protocol, more in fields.items():
        evaluator(protocol, spec, **more).run(once, weights)
        assert once.work.images == 40, protocol
    part = evaluator("retrieval-index", spec, sample=10)
    part.run(once, weights)
    assert once.work.images == 40, "a part of what is known"
    alone = reader.encode()
    assert alone.of_store(weights, part.store, SIZE, part.units.row_M).shape == (10, 256)
    assert alone.work.images == 16, "a part alone is no reason to encode all"
    backwards = np.arange(40)[::-1]
    np.testing.assert_array_equal(alone.of_store(weights, part.store, SIZE, backwards), weights["image"][backwards])
    np.testing.assert_array_equal(alone.of_store(weights, part.store, SIZE), weights["image"][:40])


def test_a_plip_table_becomes_classes_with_captions(tmp_path: Path) -> None:
    with (tmp_path / "Kather_test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "label_text"])
        for i in range(6):
            PIL.Image.fromarray(np.full((24, 24, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
            writer.writerow([f"{i}.png", ["DEB", "ADI"][i % 2], ["debris", "adipose tissue"][i % 2]])
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = ["--format", "plip", "--source", tmp_path / "Kather_test.csv", "--out", tmp_path / "store"]
    args = parser.parse_args([str(value) for value in arguments])
    assert run_or_exit(lambda: command.run(args)) == 0
    made = made_of(str(tmp_path / "store"))
    assert made.describe()["prompts"]["labels"] == {
        "adipose tissue": {"positive": ("An H&E image of adipose tissue",), "negative": ()},
        "debris": {"positive": ("An H&E image of debris",), "negative": ()},
    }
    assert made.truth_NxK.tolist() == [[0, 1], [1, 0]] * 3


def test_user_errors_name_what_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 0 label columns: classes need two or more"):
        made_of(write_store(tmp_path / "none", [Row()]))
    with pytest.raises(UserError, match="has 1 label columns"):
        made_of(write_store(tmp_path / "one", [Row(labels={"debris": 1.0})]))
    with pytest.raises(UserError, match="no row has exactly one positive label"):
        made_of(store(tmp_path / "unknown", [None, None]))
    with pytest.raises(UserError, match="unit = study: plip-zeroshot is of images"):
        made_of(store(tmp_path / "s", KINDS), unit="study")
    with pytest.raises(UserError, match=r"chexpert5x200\.json: has no prompts for the label 'adipose tissue'"):
        made_of(str(tmp_path / "s"), prompts="chexpert5x200")


def test_an_ensemble_chooses_by_the_mean_of_its_models_scores(tmp_path: Path) -> None:
    made = made_of(store(tmp_path / "s", KINDS))
    each = [params(seed) for seed in range(3)]
    predictions = [made.predict(encode(), weights) for weights in each]
    image_NxE = np.mean([weights["image"][: len(KINDS)].astype(float) for weights in each], axis=0)
    predicted_N = (image_NxE @ np.stack([vector(text) for text in CAPTIONS], axis=1)).argmax(axis=1)
    accuracy = sk.accuracy_score(KINDS, predicted_N)
    assert made.point(mean(predictions))["accuracy/mean"] == pytest.approx(accuracy, abs=1e-9)
    assert all(made.point(one)["accuracy/mean"] != pytest.approx(accuracy) for one in predictions)
