"""InfoNCE against its definition, torch's cross-entropy, finite differences and its symmetries."""

# B batch, E embedding

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hybridclip_jax.objectives import OBJECTIVES
from hybridclip_jax.objectives.contrastive import Contrastive, info_nce

SCALE = math.log(1 / 0.07)
# A batch as in a run, and the case where a matched pair is far worse than all others.
CASES = {"random": 0.0, "matched": 3.0, "opposed": -3.0}


def pairs(case: str = "random", batch: int = 12, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(batch, width)) * rng.uniform(0.1, 30, (batch, 1))
    return image, rng.normal(size=(batch, width)) + CASES[case] * image


def by_definition(image: np.ndarray, text: np.ndarray, scale: float) -> tuple[float, float]:
    """-1/B sum_i log(exp(s cos(i, i)) / sum_j exp(s cos(i, j))), pair by pair, in both directions."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))

    def one_way(queries: np.ndarray, keys: np.ndarray) -> float:
        total = 0.0
        for i, query in enumerate(queries):
            terms = [math.exp(math.exp(scale) * cosine(query, key)) for key in keys]
            total -= math.log(terms[i] / math.fsum(terms))
        return total / len(queries)

    return one_way(image, text), one_way(text, image)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [0.0, SCALE, math.log(100)])
def test_equals_the_definition(case: str, scale: float) -> None:
    image, text = pairs(case)
    wanted = by_definition(image, text, scale)
    found = info_nce(*(jnp.asarray(x, jnp.float32) for x in (image, text)), jnp.asarray(scale))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    with jax.enable_x64(True):
        found = info_nce(jnp.asarray(image), jnp.asarray(text), jnp.asarray(scale))
        assert all(value.dtype == jnp.float64 for value in found)
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_equals_torch_cross_entropy_both_ways() -> None:
    image, text = pairs()
    a, b = (torch.nn.functional.normalize(torch.from_numpy(x), dim=1) for x in (image, text))
    logits, target = math.exp(SCALE) * a @ b.T, torch.arange(len(image))
    wanted = [float(torch.nn.functional.cross_entropy(x, target)) for x in (logits, logits.T)]
    assert wanted[0] != pytest.approx(wanted[1], rel=1e-3), "a case that cannot tell the directions apart"
    with jax.enable_x64(True):
        found = info_nce(jnp.asarray(image), jnp.asarray(text), jnp.asarray(SCALE))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_gradients_equal_finite_differences() -> None:
    image, text = pairs(batch=5, width=3)
    step = 1e-6
    with jax.enable_x64(True):
        loss = jax.jit(lambda i, t, s: sum(info_nce(i, t, s)) / 2)
        values = [jnp.asarray(image), jnp.asarray(text), jnp.asarray(SCALE)]
        grads = jax.grad(loss, argnums=(0, 1, 2))(*values)
        for k, value in enumerate(values):
            flat = np.asarray(value).ravel()
            slopes = []
            for place in range(flat.size):
                ends = []
                for sign in (1, -1):
                    moved = flat.copy()
                    moved[place] += sign * step
                    ends.append(float(loss(*values[:k], jnp.asarray(moved.reshape(value.shape)), *values[k + 1 :])))
                slopes.append((ends[0] - ends[1]) / (2 * step))
            np.testing.assert_allclose(np.asarray(grads[k]).ravel(), slopes, rtol=1e-6, atol=1e-8)


def test_symmetries() -> None:
    image, text = (x.astype(np.float32) for x in pairs())
    i2t, t2i = info_nce(image, text, SCALE)
    np.testing.assert_allclose(info_nce(text, image, SCALE), (t2i, i2t), rtol=1e-6)
    order = np.random.default_rng(1).permutation(len(image))
    np.testing.assert_allclose(info_nce(image[order], text[order], SCALE), (i2t, t2i), rtol=1e-5)
    lengths = np.random.default_rng(2).uniform(0.01, 100, (len(image), 1)).astype(np.float32)
    np.testing.assert_allclose(info_nce(image * lengths, text, SCALE), (i2t, t2i), rtol=1e-5)
    assert abs(float(info_nce(image, np.roll(text, 1, axis=0), SCALE)[0]) - float(i2t)) > 1e-2


def test_a_model_that_knows_nothing_pays_ln_batch() -> None:
    same = np.ones((64, 8), np.float32)
    np.testing.assert_allclose(info_nce(same, same, SCALE), [math.log(64)] * 2, rtol=1e-6)


def test_perfect_pairs_pay_nothing_and_stay_finite() -> None:
    eye = np.eye(16, dtype=np.float32)
    loss, grads = jax.value_and_grad(lambda x: sum(info_nce(x, eye, jnp.asarray(math.log(100)))))(eye)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(grads).all()


def test_bfloat16_embeddings_are_compared_in_float32() -> None:
    image, text = (jnp.asarray(x, jnp.bfloat16) for x in pairs())
    wanted = info_nce(*(x.astype(jnp.float32) for x in (image, text)), SCALE)
    found = info_nce(image, text, SCALE)
    assert all(value.dtype == jnp.float32 for value in found)
    np.testing.assert_array_equal(found, wanted)


class FakeModel:
    """Encoders that return what they are given, so that the objective alone is tested."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.logit_scale = params["logit_scale"]

    def encode_image(self, x: Any) -> Any:
        return x * self.params["gain"]

    def encode_text(self, x: Any) -> Any:
        return x


def test_the_objective_is_the_mean_of_both_directions() -> None:
    image, text = (x.astype(np.float32) for x in pairs())
    params = {"logit_scale": jnp.asarray([SCALE])[0], "gain": jnp.asarray(1.0)}
    objective = OBJECTIVES["contrastive"]((0.0, math.log(100)))
    aux = objective.init_aux(params)
    batch = {"image": jnp.asarray(image), "tokens": jnp.asarray(text)}
    loss, (aux_after, metrics) = objective.loss(FakeModel, params, aux, batch, jax.random.key(0))
    i2t, t2i = info_nce(image, text, SCALE)
    assert float(loss) == pytest.approx((float(i2t) + float(t2i)) / 2, rel=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss_i2t": pytest.approx(float(i2t)),
        "loss_t2i": pytest.approx(float(t2i)),
    }
    assert aux_after == aux


@pytest.mark.parametrize(("before", "after"), [(-1.0, 0.0), (0.0, 0.0), (2.6, 2.6), (4.7, math.log(100))])
def test_the_logit_scale_is_clamped_after_the_update_and_nothing_else(before: float, after: float) -> None:
    objective = Contrastive((0.0, math.log(100)))
    params = {"logit_scale": jnp.asarray(before), "image/gain": jnp.asarray(before)}
    found, aux = objective.after_update(params, {"queue": 1})
    assert float(found["logit_scale"]) == pytest.approx(after, rel=1e-6)
    assert found["image/gain"] is params["image/gain"]
    assert aux == {"queue": 1}
