"""The loss on fixed candidates, on real stores with planted embeddings, against its definition pair by pair."""

# N pairs, C candidates, E embedding

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from pair_stores import Row, evaluator, kinds, planted, unit, write_store

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import candidate_loss
from hybridclip_jax.evals.candidate_loss import CandidateLoss
from hybridclip_jax.evals.encode import Values

SCALE = math.log(20.0)


def rows_of(n: int) -> list[Row]:
    return [Row(f"report {' '.join(str(i))}") for i in range(n)]


def draws(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = unit(rng.normal(size=(n, 6)))
    return image.astype(np.float32), unit(image + rng.normal(size=(n, 6))).astype(np.float32)


def made(spec: str, **fields: Any) -> CandidateLoss:
    found = evaluator("loss", spec, **fields)
    assert isinstance(found, CandidateLoss)
    return found


def run(made: CandidateLoss, rows: Sequence[Row], image: np.ndarray, text: np.ndarray, batch_size: int = 8) -> Values:
    texts = {row.text: vector for row, vector in zip(rows, text, strict=True)}
    return made.run(planted(texts, batch_size), {"image": image, "logit_scale": jnp.float32(SCALE)})


def by_definition(groups: np.ndarray, image: np.ndarray, text: np.ndarray, scale: float) -> tuple[float, float]:
    """Mean over pairs of -log(exp(s cos(i, i)) / sum over the group of exp(s cos(i, j))), in both directions."""

    def one_way(queries: np.ndarray, keys: np.ndarray) -> float:
        losses = []
        for group in groups:
            for i in group:
                terms = [math.exp(scale * math.fsum(queries[i] * keys[j])) for j in group]
                losses.append(-math.log(math.exp(scale * math.fsum(queries[i] * keys[i])) / math.fsum(terms)))
        return math.fsum(losses) / len(losses)

    return one_way(image, text), one_way(text, image)


def test_values_equal_the_definition_at_both_temperatures(tmp_path: Path) -> None:
    rows = rows_of(50)
    image, text = draws(50)
    found = made(write_store(tmp_path / "s", rows), candidates=8)
    values = run(found, rows, image, text)
    groups = found.units.row_N[found.member_GxC]
    assert sorted(groups.ravel().tolist()) == found.units.row_N.tolist(), "each pair stands in one group"
    assert groups.shape == (6, 8)
    image, text = unit(image.astype(float)), unit(text.astype(float))
    for kind, scale in (("loss", math.exp(np.float32(SCALE))), ("loss_t0.07", 1 / 0.07)):
        i2t, t2i = by_definition(groups, image, text, scale)
        assert values[f"{kind}/i2t"] == pytest.approx(i2t, abs=1e-9)
        assert values[f"{kind}/t2i"] == pytest.approx(t2i, abs=1e-9)
        assert values[f"{kind}/mean"] == pytest.approx((i2t + t2i) / 2, abs=1e-9)
        assert values[f"{kind}_chance/mean"] == pytest.approx(math.log(8))
    assert abs(i2t - t2i) > 0.01


@pytest.mark.parametrize("wrong", ["store order", "all of the store", "the remainder too"])
def test_other_candidates_give_other_values(tmp_path: Path, wrong: str) -> None:
    """What the value must not be: the test above holds groups that the code itself drew."""
    rows = rows_of(50)
    image, text = draws(50)
    found = made(write_store(tmp_path / "s", rows), candidates=8)
    value = run(found, rows, image, text)["loss_t0.07/mean"]
    groups: list[np.ndarray] = {
        "store order": list(np.arange(48).reshape(6, 8)),
        "all of the store": [np.arange(50)],
        "the remainder too": [*found.units.row_N[found.member_GxC], np.setdiff1d(np.arange(50), found.units.row_N)],
    }[wrong]
    sizes = np.array([len(group) for group in groups])
    parts = [
        by_definition(group[None], unit(image.astype(float)), unit(text.astype(float)), 1 / 0.07) for group in groups
    ]
    assert abs(float(np.average(np.mean(parts, axis=1), weights=sizes)) - value) > 1e-3


def test_groups_are_the_same_whatever_the_model_and_the_batch(tmp_path: Path) -> None:
    rows = rows_of(40)
    spec = write_store(tmp_path / "s", rows)
    one, two = made(spec, candidates=16), made(spec, candidates=16)
    np.testing.assert_array_equal(one.member_GxC, two.member_GxC)
    assert one.describe()["meanings"].keys() == kinds(one.at_chance())
    results = [run(one, rows, *draws(40), batch_size=batch) for batch in (3, 8, 64)]
    assert results[0] == results[1] == results[2]


def test_a_model_that_scores_all_alike_is_at_the_logarithm_of_the_candidates(tmp_path: Path) -> None:
    rows = rows_of(40)
    spec = write_store(tmp_path / "s", rows)
    for candidates in (4, 20):
        same = np.ones((40, 4), np.float32) / 2
        values = run(made(spec, candidates=candidates), rows, same, same)
        for name in ("loss/mean", "loss/i2t", "loss_t0.07/t2i"):
            assert values[name] == pytest.approx(math.log(candidates), abs=1e-12)
        assert made(spec, candidates=candidates).at_chance()["loss/mean"] == pytest.approx(math.log(candidates))


def test_what_fills_no_group_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*rows_of(21), Row(""), Row(" ")]
    said = made(write_store(tmp_path / "s", rows), candidates=8).describe()
    assert (said["units"], said["groups"], said["pairs_left_out"]) == (16, 2, 5)
    assert said["texts"]["images_without_text"] == 2


def test_texts_that_occur_twice_in_a_group_are_counted(tmp_path: Path) -> None:
    rows = [Row(f"report {i % 5}") for i in range(16)]
    found = made(write_store(tmp_path / "s", rows), candidates=4)
    groups = [[rows[i].text for i in group] for group in found.units.row_N[found.member_GxC]]
    wanted = sum(group.count(text) > 1 for group in groups for text in group) / 16
    values = found.constants(found.blank())
    assert values["false_negatives/share"] == pytest.approx(wanted)
    assert 0 < wanted < 1
    unlike = made(write_store(tmp_path / "t", rows_of(16)), candidates=4)
    assert unlike.constants(unlike.blank())["false_negatives/share"] == 0


def test_values_are_functions_of_how_often_each_pair_counts(tmp_path: Path) -> None:
    rows = rows_of(24)
    image, text = draws(24)
    found = made(write_store(tmp_path / "s", rows), candidates=6)
    texts = {row.text: vector for row, vector in zip(rows, text, strict=True)}
    predictions = found.predict(planted(texts), {"image": image, "logit_scale": np.float32(SCALE)})
    weight = np.random.default_rng(0).integers(0, 3, (4, 24)).astype(float)
    values = found.measure(predictions, weight)
    for r, times in enumerate(weight.astype(int)):
        drawn = np.repeat(predictions.score_NxK[:, 0], times)
        assert values["loss/i2t"][r] == pytest.approx(drawn.mean(), abs=1e-12)


def test_a_model_that_is_not_finite_has_no_loss(tmp_path: Path) -> None:
    rows = rows_of(8)
    image, text = draws(8)
    found = made(write_store(tmp_path / "s", rows), candidates=4)
    texts = {row.text: vector for row, vector in zip(rows, text, strict=True)}
    for params in (
        {"image": np.full_like(image, np.nan), "logit_scale": np.float32(0)},
        {"image": image, "logit_scale": np.float32(1e6)},
    ):
        values = found.run(planted(texts), params)
        assert values["loss/mean"] is None
        assert values["loss_why/mean"] == "the model's embeddings or its temperature are not finite"


def test_user_errors_are_one_line_with_the_remedy(tmp_path: Path) -> None:
    spec = write_store(tmp_path / "s", rows_of(20))
    with pytest.raises(UserError, match=r"evals\.e\.candidates = 64: .* has only 20 pairs; give fewer"):
        made(spec)
    with pytest.raises(UserError, match=r"evals\.e\.candidates = 1: must be at least 2"):
        made(spec, candidates=1)


def test_the_cross_entropy_survives_large_logits() -> None:
    logits = np.array([[1000.0, 0.0], [0.0, 1000.0]])
    assert candidate_loss._cross_entropy(logits).tolist() == [0.0, 0.0]
