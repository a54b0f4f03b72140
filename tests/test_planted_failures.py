"""Faults planted in a model or a store that is otherwise perfect, and the number or the refusal that shows each.

The model is a real folder of the tiny towers that knows 44 phantoms by heart (aligned.py); a fault is a change of its
arrays or of the store. What is shown of readers of words alone is in test_limits.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aligned
import jax
import numpy as np
import pytest
from aligned import IMAGE_PROJECTION, TEXT_PROJECTION
from pair_stores import PREPARATION, Row, write_store
from planted import chest, prepared
from readers import Reader

import hybridclip_jax as hc
from hybridclip_jax import cli, modelfolder
from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import run_or_exit
from hybridclip_jax.evals import EVALUATORS, Evaluator
from hybridclip_jax.evals.encode import Values

Arrays = dict[str, Any]


class Perfect:
    """The model, its store, and what evaluators say of it with changed arrays."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store
        self.arrays, self.card = aligned.make(folder, store)
        self.model = hc.load(folder)
        self._evaluators: dict[str, Evaluator] = {}

    def values(self, protocol: str, changed: Arrays | None = None) -> Values:
        if protocol not in self._evaluators:
            entry = {"protocol": protocol, "data": self.store.spec}
            self._evaluators[protocol] = EVALUATORS[protocol](protocol, entry, self.model.preparation())
        # Placed as the model's own arrays are, so that nothing compiles again.
        placed = {name: jax.device_put(v, self.model.params[name].sharding) for name, v in (changed or {}).items()}
        return self._evaluators[protocol].run(self.model.encoders, {**self.model.params, **placed})


@pytest.fixture(scope="module")
def perfect(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Perfect:
    store = Store.open(f"{phantom_store}:val")
    assert len(store) < 128 - 8, "fewer images than the towers are wide"
    return Perfect(tmp_path_factory.mktemp("models") / "perfect", store)


def evaluate(out: Path, model: Path, data: str, *more: str, protocol: str = "chexzero") -> int:
    """The exit code of the command."""
    words = ["--model", str(model), "--data", data, "--protocol", protocol, "--out", str(out), *more]
    parsed = cli.parse(["evaluate", *words])
    return run_or_exit(lambda: parsed.run(parsed))


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def test_without_a_fault_every_number_is_perfect(perfect: Perfect) -> None:
    assert perfect.values("chexzero")["auroc/mean"] == 1
    assert perfect.values("retrieval-index")["recall/mean"] == 1
    limits = perfect.values("limits")
    assert limits["negation/mean"] == limits["wording_bare/mean"] == 1
    assert limits["wording_backwards/bare"] == 0


# --- models


def moved_on(arrays: Arrays) -> Arrays:
    """Each output of the text tower where its neighbour should be."""
    return {TEXT_PROJECTION: np.roll(arrays[TEXT_PROJECTION], 1, axis=1)}


def exchanged(arrays: Arrays) -> Arrays:
    """Each tower with the other's projection."""
    return {IMAGE_PROJECTION: arrays[TEXT_PROJECTION], TEXT_PROJECTION: arrays[IMAGE_PROJECTION]}


@pytest.mark.parametrize("fault", [moved_on, exchanged])
def test_swapped_tower_outputs_are_at_chance(perfect: Perfect, fault: Callable[[Arrays], Arrays]) -> None:
    """All shapes fit and nothing fails; the numbers say it."""
    changed = fault(perfect.arrays)
    zero_shot, retrieval, limits = (perfect.values(p, changed) for p in ("chexzero", "retrieval-index", "limits"))
    assert within(retrieval, "recall", "mean", retrieval["recall_chance/mean"])
    assert within(limits, "negation", "mean", 0.5)
    assert within(limits, "sides", "preferred", 0.5)
    # Each label's AUROC is that of a direction at random, about 0.17 from 0.5 on these 44 images, above or below it.
    assert abs(float(zero_shot["auroc/mean"] or 0) - 0.5) < 0.1, "of a model whose every AUROC is 1"
    assert zero_shot["auroc_hi/mean"] < 0.7
    assert min(zero_shot[f"auroc/{label}"] for label in perfect.store.label_names) < 0.4


def within(values: Values, kind: str, rest: str, level: Any) -> bool:
    low, high = values[f"{kind}_lo/{rest}"], values[f"{kind}_hi/{rest}"]
    assert isinstance(low, float)
    assert isinstance(high, float)
    return low <= level <= high


def test_a_sign_that_is_turned_reads_every_label_backwards(perfect: Perfect) -> None:
    changed = {IMAGE_PROJECTION: -perfect.arrays[IMAGE_PROJECTION]}
    assert perfect.values("chexzero", changed)["auroc/mean"] == 0
    limits = perfect.values("limits", changed)
    assert limits["negation/mean"] == 0
    assert limits["wording_backwards/bare"] == len(perfect.store.label_names)
    assert all(label in str(limits["wording_backwards_labels/bare"]) for label in perfect.store.label_names)


def test_a_tower_that_cannot_tell_a_statement_from_its_denial_is_found(perfect: Perfect) -> None:
    """The text projection without the directions in which "X" and "no X" differ."""
    arrays = perfect.arrays
    said, denied = (aligned.text_features(texts, perfect.model) for texts in aligned.statements(perfect.store))
    directions = np.linalg.qr(((said - denied) @ arrays[TEXT_PROJECTION]).T)[0]
    blind = arrays[TEXT_PROJECTION] - arrays[TEXT_PROJECTION] @ directions @ directions.T
    limits = perfect.values("limits", {TEXT_PROJECTION: blind.astype(np.float32)})
    assert all(limits[f"negation/{name}"] == 0.5 for name in (*perfect.store.label_names, "mean"))
    assert limits["negation_cosine/mean"] == pytest.approx(1, abs=1e-6)
    retrieval = perfect.values("retrieval-index", {TEXT_PROJECTION: blind.astype(np.float32)})
    assert retrieval["recall/mean"] > 3 * retrieval["recall_chance/mean"], "retrieval alone would not have shown it"


def test_a_collapsed_tower_is_at_chance_however_rounding_falls(perfect: Perfect) -> None:
    """Every text at one place but for rounding, which must not be taken for an answer."""
    axis = np.eye(aligned.EMBED)[0]
    toward = aligned.text_features(["normal"], perfect.model)[0]
    changed = {TEXT_PROJECTION: np.outer(toward, axis).astype(np.float32)}
    limits, retrieval = perfect.values("limits", changed), perfect.values("retrieval-index", changed)
    for name in ("negation/mean", "sides/preferred", "order/preferred"):
        assert limits[name] == 0.5
    for name in ("negation_cosine/mean", "sides/cosine", "order/cosine"):
        assert limits[name] == pytest.approx(1, abs=1e-6)
    assert retrieval["recall/mean"] == pytest.approx(retrieval["recall_chance/mean"])


def test_a_broken_folder_is_shown_by_the_command(perfect: Perfect, tmp_path: Path) -> None:
    arrays = {**perfect.arrays, **moved_on(perfect.arrays)}
    modelfolder.save(tmp_path / "broken", arrays, perfect.card)
    against = ("--against", str(perfect.folder))
    assert evaluate(tmp_path / "out", tmp_path / "broken", perfect.store.spec, *against) == 0
    found = result(tmp_path / "out")
    assert found["against"]["values"]["auroc/mean"] == 1
    difference = found["against"]["differences"]["auroc/mean"]
    assert difference["low"] < difference["value"] < difference["high"] < -0.2


# --- stores


def test_an_evaluation_that_leaks_patients_is_refused(
    perfect: Perfect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One patient is in both with another image, and one image of a third under a new name."""

    def store(name: str, people: dict[str, int]) -> Path:
        rows = [
            {"image": chest(picture), "text": "clear", "patient": person, "study": f"{name}{person}", "Edema": n % 2}
            for n, (person, picture) in enumerate(people.items())
        ]
        return prepared(tmp_path / name, rows, "--label-columns", "Edema")

    training = store("training", {"ada": 0, "ben": 1, "cyd": 2})
    clean, leaky = store("clean", {"dan": 3, "eve": 4}), store("leaky", {"ada": 5, "fay": 6, "gus": 2})
    more = ("--trained-on", str(training))
    capsys.readouterr()
    assert evaluate(tmp_path / "out", perfect.folder, str(leaky), *more) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: 1 patient and 1 image of \S*leaky\S* are in \S*training\S*, .*\n", said), said
    assert not (tmp_path / "out").exists()
    assert evaluate(tmp_path / "out", perfect.folder, str(clean), *more) == 0
    assert "no patient and no image" in result(tmp_path / "out")["checks"]["training"]


def test_a_label_of_one_class_has_no_value_and_no_part_in_the_mean(perfect: Perfect, tmp_path: Path) -> None:
    labels = {
        "Edema": lambda n: n % 2,
        "Nodule": lambda n: 1,
        "Fracture": lambda n: "",
        "Cardiomegaly": lambda n: n // 4,
    }
    rows = [
        {"image": chest(n), "text": "clear", "patient": f"p{n}", **{name: of(n) for name, of in labels.items()}}
        for n in range(8)
    ]
    store = str(prepared(tmp_path / "s", rows, "--label-columns", ",".join(labels)))
    assert evaluate(tmp_path / "zero_shot", perfect.folder, store) == 0
    values = result(tmp_path / "zero_shot")["values"]
    assert (values["auroc/Nodule"], values["auroc_lo/Nodule"]) == (None, None)
    assert values["auroc_why/Nodule"] == "all 8 known labels are positive"
    assert values["auroc_why/Fracture"] == "no row has a known label"
    assert values["auroc/n_labels"] == 2
    assert values["auroc/mean"] == pytest.approx((values["auroc/Edema"] + values["auroc/Cardiomegaly"]) / 2)
    assert evaluate(tmp_path / "limits", perfect.folder, store, protocol="limits") == 0
    limits = result(tmp_path / "limits")["values"]
    assert limits["negation/Nodule"] is limits["wording_spread/Fracture"] is None
    assert limits["negation/mean"] == pytest.approx((limits["negation/Edema"] + limits["negation/Cardiomegaly"]) / 2)


def test_repeated_reports_put_a_ceiling_on_retrieval_by_index(tmp_path: Path) -> None:
    texts = [f"{finding} on the left." for finding in ("Nodule", "Effusion", "Mass", "Line", "Scar")] * 4
    spec, reader = write_store(tmp_path / "s", [Row(text) for text in texts]), Reader()
    images = {"image": reader.vectors(texts)}
    values = {
        protocol: EVALUATORS[protocol]("e", {"protocol": protocol, "data": spec}, PREPARATION).run(
            reader.encode(), images
        )
        for protocol in ("retrieval-index", "retrieval-unique-text", "retrieval-multi-positive", "limits")
    }
    ceiling = values["limits"]["duplicates/ceiling"]
    assert (values["limits"]["duplicates/share"], ceiling) == (1, 1 / 4)
    for way in ("i2t", "t2i"):
        assert values["retrieval-index"][f"recall_{way}/1"] == pytest.approx(ceiling)
        assert values["retrieval-index"][f"recall_{way}_ceiling/1"] == pytest.approx(ceiling)
        assert values["retrieval-unique-text"][f"recall_{way}/1"] == 1
        assert values["retrieval-multi-positive"][f"recall_{way}/1"] == 1


def test_rows_that_slipped_by_one_are_at_chance(tmp_path: Path) -> None:
    """Each image beside its neighbour's report and labels, as where a table and a file of images do not line up."""
    rng = np.random.default_rng(0)
    edema = rng.permutation(np.arange(60) % 2)
    words = rng.permutation(60)
    texts = [f"{'edema' if y else 'no edema'}. study {word}." for y, word in zip(edema, words, strict=True)]
    rows = [Row(text, labels={"Edema": float(y)}) for text, y in zip(texts, edema, strict=True)]
    spec, reader = write_store(tmp_path / "s", rows), Reader()
    aligned_vectors = reader.vectors(texts)
    found = {}
    for slipped in (0, 1):
        images = {"image": np.roll(aligned_vectors, slipped, axis=0)}
        for protocol in ("retrieval-index", "chexzero"):
            made = EVALUATORS[protocol]("e", {"protocol": protocol, "data": spec}, PREPARATION)
            found[protocol, slipped] = made.run(reader.encode(), images)
    assert found["retrieval-index", 0]["recall_i2t/1"] == found["chexzero", 0]["auroc/Edema"] == 1
    assert found["retrieval-index", 1]["recall_i2t/1"] == 0
    assert within(found["chexzero", 1], "auroc", "Edema", 0.5)
