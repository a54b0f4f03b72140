"""The chexzero protocol on a real store and tokenizer, with embeddings planted so that every AUROC is known.

Row i of the store is an image of grey value i, and its planted embedding is row i of a table; a prompt's
embedding is drawn from its text. Expected numbers are restated here from the protocol's description.
"""

# N images, K labels, E embedding

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridclip_jax.data.store_writer import Record, StoreWriter
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import EVALUATORS, Preparation
from hybridclip_jax.evals.encode import Encode
from hybridclip_jax.evals.zero_shot import ZeroShot

N, E, SIZE, BATCH = 21, 16, 16, 8
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
TOKENIZER = Tokenizer()
PREPARATION = Preparation(TOKENIZER, 77, SIZE)


def make_store(path: Path, labels: Mapping[str, Sequence[float | None]]) -> str:
    with StoreWriter(path, channels=1, labels=tuple(labels), sections=(), synthetic=True) as writer:
        for i in range(N):
            record = Record(
                id=f"i{i}", study=f"s{i}", patient=f"p{i}", split="test", view="", text="a report",
                sections={}, n_tokens=4, labels={name: y[i] for name, y in labels.items()}, source_row=i + 1,
            )  # fmt: skip
            writer.append(record, np.full((320, 320, 1), i, np.uint8))
        ids = {"namespace": "test", "key_fingerprint": "0"}
        policy = {"names": list(labels), "uncertain": "ignore", "blank": "missing"}
        writer.finish({"labels": policy, "ids": ids})
    return str(path)


def random_labels(seed: int) -> list[float | None]:
    rng = np.random.default_rng(seed)
    return [[0.0, 1.0, None][k] for k in rng.permutation(np.arange(N) % 3)]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def prompt_vector(text: str) -> np.ndarray:
    """The planted embedding of a prompt, from its text alone."""
    return unit(np.random.default_rng(list(text.encode())).normal(size=E)).astype(np.float32)


class Planted:
    """Encoders that look embeddings up and remember the shapes that they were called with."""

    def __init__(self, texts: Mapping[str, np.ndarray] | None = None) -> None:
        self.texts = texts
        self.shapes: list[tuple[str, tuple[int, ...]]] = []

    def encode(self) -> Encode:
        return Encode(images=self.images, texts=self.prompts, batch_size=BATCH)

    def images(self, params: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        self.shapes.append(("images", images.shape))
        return params["image"][images[:, 0, 0, 0]]

    def prompts(self, params: Mapping[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
        self.shapes.append(("texts", ids.shape))
        rows = []
        for row in ids:
            assert row[0] == TOKENIZER.sot
            end = row.tolist().index(TOKENIZER.eot)
            text = decode(row[1:end])
            rows.append(prompt_vector(text) if self.texts is None else self.texts[text])
        return np.stack(rows)


def decode(ids: np.ndarray) -> str:
    """Text of a prompt, by the one way to write each token that these tests use."""
    return KNOWN[tuple(ids.tolist())]


KNOWN: dict[tuple[int, ...], str] = {}


def evaluator(tmp_path: Path, labels: Mapping[str, Sequence[float | None]], prompts: str = "chexzero") -> ZeroShot:
    path = tmp_path / "store"
    spec = str(path) if path.exists() else make_store(path, labels)
    config = {"protocol": "chexzero", "data": spec, "prompts": prompts}
    made = EVALUATORS["chexzero"]("e", config, PREPARATION)
    for label in made.labels:
        pair = made.prompts.pair(label)
        for text in (*pair.positive, *pair.negative):
            KNOWN[tuple(TOKENIZER.encode(text))] = text
    return made


def prompts_json(path: Path, **fields: Any) -> str:
    content = {"format": 1, "name": "t", "version": "1", "positive": ["{}"], "negative": ["no {}"], **fields}
    path.write_text(json.dumps(content))
    return str(path)


def params(seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": unit(np.random.default_rng(seed).normal(size=(N + 1, E))).astype(np.float32)}


def pairwise_auroc(scores: np.ndarray, labels: Sequence[float | None]) -> float:
    positive = [s for s, y in zip(scores, labels, strict=True) if y == 1]
    negative = [s for s, y in zip(scores, labels, strict=True) if y == 0]
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in positive for b in negative]))


def test_planted_scores_give_their_auroc(tmp_path: Path) -> None:
    labels = {"Edema": random_labels(1), "Fracture": random_labels(2)}
    score = np.random.default_rng(3).uniform(-0.9, 0.9, size=(N, 2))
    image = np.zeros((N + 1, E), np.float32)
    image[:N, 0], image[:N, 1] = (
        score[:, 0] / 2,
        score[:, 1] / 2,
    )  # cosine with each positive prompt; 0 with the negative
    image[:, 2] = np.sqrt(1 - (image**2).sum(axis=1))
    axes = np.eye(E, dtype=np.float32)
    planted = {"edema": axes[0], "no edema": axes[3], "fracture": axes[1], "no fracture": axes[4]}
    values = evaluator(tmp_path, labels).run(Planted(planted).encode(), {"image": image})
    expected = [pairwise_auroc(score[:, k], labels[name]) for k, name in enumerate(labels)]
    assert {name: value for name, value in values.items() if name.startswith("auroc/")} == {
        "auroc/Edema": pytest.approx(expected[0], abs=1e-12),
        "auroc/Fracture": pytest.approx(expected[1], abs=1e-12),
        "auroc/mean": pytest.approx(np.mean(expected), abs=1e-12),
        "auroc/n_labels": 2,
    }


@pytest.mark.parametrize("renormalise", [True, False])
def test_templates_are_averaged_then_normalised_again(tmp_path: Path, renormalise: bool) -> None:
    # Four templates average to a shorter vector than two, so leaving out the second normalisation shows.
    file = prompts_json(
        tmp_path / "p.json", positive=["{}", "a {}", "some {}", "the {}"], negative=["no {}", "without {}"]
    )
    made = evaluator(tmp_path, {"Edema": random_labels(1)}, file)
    weights = params()
    pair = made.prompts.pair("Edema")
    means = [np.mean([prompt_vector(t) for t in side], axis=0) for side in (pair.positive, pair.negative)]
    positive, negative = (unit(m) if renormalise else m for m in means)
    cosines = weights["image"][:N].astype(np.float64) @ np.stack([positive, negative], axis=1)
    expected = (np.exp(cosines) / np.exp(cosines).sum(axis=1, keepdims=True))[:, 0]
    got = made.predict(Planted().encode(), weights).score_NxK[:, 0]
    if renormalise:
        np.testing.assert_allclose(got, expected, atol=1e-6)
    else:
        assert np.abs(got - expected).max() > 1e-2


def test_probabilities_are_a_softmax_of_raw_cosines(tmp_path: Path) -> None:
    made = evaluator(tmp_path, {"Edema": random_labels(1)})
    towards = {"edema": prompt_vector("x"), "no edema": -prompt_vector("x")}
    image = {"image": np.tile(prompt_vector("x"), (N + 1, 1))}
    highest = made.predict(Planted(towards).encode(), image).score_NxK
    np.testing.assert_allclose(highest, np.e / (np.e + 1 / np.e), atol=1e-6)  # 0.881: no temperature anywhere


def test_swapped_prompts_read_backwards(tmp_path: Path) -> None:
    labels = {"Edema": random_labels(1), "Fracture": random_labels(2)}
    right = evaluator(tmp_path, labels, prompts_json(tmp_path / "a.json")).run(Planted().encode(), params())
    swapped = prompts_json(tmp_path / "b.json", positive=["no {}"], negative=["{}"])
    wrong = evaluator(tmp_path, labels, swapped).run(Planted().encode(), params())
    for name in ("auroc/Edema", "auroc/Fracture", "auroc/mean"):
        assert wrong[name] == pytest.approx(1 - right[name], abs=1e-12)
        assert abs(right[name] - 0.5) > 0.02


def test_undefined_labels_are_null_with_why_and_outside_the_mean(tmp_path: Path) -> None:
    labels = {name: random_labels(k) for k, name in enumerate(FIVE)}
    labels["Fracture"] = [None] * N
    labels["Nodule"] = [1.0] * N
    values = evaluator(tmp_path, labels).run(Planted().encode(), params())
    assert values["auroc/Fracture"] is None
    assert values["auroc_why/Fracture"] == "no row has a known label"
    assert values["auroc/Nodule"] is None
    assert values["auroc_why/Nodule"] == f"all {N} known labels are positive"
    five = np.mean([values[f"auroc/{name}"] for name in FIVE])
    assert values["auroc/mean"] == values["auroc/mean5"] == pytest.approx(five)
    assert values["auroc/n_labels"] == 5


def test_mean5_needs_all_five_and_each_defined(tmp_path: Path) -> None:
    labels = {name.lower().replace(" ", "_"): random_labels(k) for k, name in enumerate(FIVE)}
    four = dict(list(labels.items())[:4])
    (tmp_path / "four").mkdir()
    assert "auroc/mean5" not in evaluator(tmp_path / "four", four).run(Planted().encode(), params())
    assert evaluator(tmp_path, labels).run(Planted().encode(), params())["auroc/mean5"] is not None
    (tmp_path / "gap").mkdir()
    values = evaluator(tmp_path / "gap", labels | {"edema": [0.0] * N}).run(Planted().encode(), params())
    assert values["auroc/mean5"] is None
    assert values["auroc_why/mean5"] == "undefined for edema"


def test_nothing_defined_is_a_null_mean(tmp_path: Path) -> None:
    values = evaluator(tmp_path, {"Edema": [None] * N}).run(Planted().encode(), params())
    assert (values["auroc/mean"], values["auroc/n_labels"]) == (None, 0)
    assert values["auroc_why/mean"] == "no label has a defined AUROC"


def test_evaluators_of_one_store_share_its_images_until_the_params_change(tmp_path: Path) -> None:
    labels = {"Edema": random_labels(1)}
    bare, templated = (evaluator(tmp_path, labels, name) for name in ("chexzero", "templated"))
    planted, weights = Planted(), params(0)
    encode = planted.encode()
    images = lambda: sum(kind == "images" for kind, _ in planted.shapes)  # noqa: E731
    first = bare.run(encode, weights)
    templated.run(encode, weights)
    assert images() == -(-N // BATCH)
    weights["image"] = params(1)["image"]  # in place: the dict is the same, its array is not
    second = bare.run(encode, weights)
    assert images() == 2 * -(-N // BATCH)
    assert second["auroc/Edema"] != first["auroc/Edema"]
    assert second == bare.run(Planted().encode(), weights)


def test_one_compilation_serves_every_evaluator_and_every_call(tmp_path: Path) -> None:
    labels = {name: random_labels(k) for k, name in enumerate(FIVE)}
    bare, templated = (evaluator(tmp_path, labels, name) for name in ("chexzero", "templated"))

    @jax.jit
    def images(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return weights["image"][x[:, 0, 0, 0]]

    @jax.jit
    def texts(weights: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
        x = (weights["word"][ids % 97] * (ids > 0)[..., None]).sum(axis=1)
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)

    encode = Encode(images=images, texts=texts, batch_size=BATCH)
    results = []
    for seed in range(3):
        weights = {
            **params(seed),
            "word": np.random.default_rng(seed).normal(size=(97, E)).astype(np.float32),
        }
        weights = jax.tree.map(jnp.asarray, weights)
        results.append((bare.run(encode, weights)["auroc/mean"], templated.run(encode, weights)["auroc/mean"]))
    assert (images._cache_size(), texts._cache_size()) == (1, 1)
    assert len(set(results)) == 3
    batches = -(-N // BATCH)
    assert encode.work.images == 3 * batches * BATCH, "both evaluators share the images of one set of weights"
    prompts = [math.ceil(len(made.tokens.ids_QxT) / BATCH) * BATCH for made in (bare, templated)]
    assert sum(encode.work.texts.values()) == 3 * sum(prompts)


def test_user_errors_name_what_to_mend(tmp_path: Path) -> None:
    spec = make_store(tmp_path / "bare", {})
    with pytest.raises(UserError, match="no label columns.*; run prepare again with --label-columns"):
        ZeroShot("e", {"data": spec}, PREPARATION)
    bad = make_store(tmp_path / "bad", {"Edema": [0.5] * N})
    with pytest.raises(UserError, match="'Edema' holds values other than 0, 1"):
        ZeroShot("e", {"data": bad}, PREPARATION)
    good = make_store(tmp_path / "good", {"Edema": random_labels(0)})
    long = prompts_json(tmp_path / "long.json", positive=["{} " * 90])
    with pytest.raises(UserError, match="does not fit into the context of 77 tokens"):
        ZeroShot("e", {"data": good, "prompts": long}, PREPARATION)
