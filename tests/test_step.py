"""The step: one device and eight agree, it compiles once, donates everything, and refuses what is not finite."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybridclip_jax import models, optim, sharding, state, step
from hybridclip_jax.config import CLIP_MEAN, CLIP_STD, default
from hybridclip_jax.errors import UserError
from hybridclip_jax.models.layers import l2_normalize
from hybridclip_jax.objectives.contrastive import Contrastive
from hybridclip_jax.state import TrainState

BATCH, SIDE, TOKENS = 16, 64, 16
SPEC = models.DualSpec("dinov3_tiny32", "clip_text_tiny", context=TOKENS, embed_dim=32)
UNCLAMPED = (-100.0, 100.0)


class LocalNegatives(Contrastive):
    """The classic silent error: each device contrasts its own rows only."""

    shards = 8

    def loss(self, bind: Any, params: Any, aux: Any, batch: Any, key: Any) -> Any:
        model = bind(params)
        z_image, z_text = model.encode_image(batch["image"]), model.encode_text(batch["tokens"])
        parts = (len(z_image) // self.shards, -1)
        split = lambda z: l2_normalize(z).reshape(self.shards, parts[0], -1)  # noqa: E731
        logits = jnp.exp(model.logit_scale[...]) * jnp.einsum("sie,sje->sij", split(z_image), split(z_text))
        matched = jnp.diagonal(logits, axis1=1, axis2=2)
        i2t = jnp.mean(jax.nn.logsumexp(logits, axis=2) - matched)
        t2i = jnp.mean(jax.nn.logsumexp(logits, axis=1) - matched)
        return (i2t + t2i) / 2, (aux, {"loss_i2t": i2t, "loss_t2i": t2i})


@dataclasses.dataclass
class Built:
    state: TrainState
    step: Any
    mesh: Any
    placement: TrainState
    grads: Any


def build(
    *,
    data: int,
    fsdp: int = 1,
    objective: Contrastive | None = None,
    learning_rate: float = 0.1,
    groups: tuple[Any, ...] = ((".*", 1.0, 1.0),),
    optimizer: str = "sgd",
) -> Built:
    config = default()
    config.optim.update({"name": optimizer, "learning_rate": learning_rate, "groups": groups})
    objective = objective or Contrastive(UNCLAMPED)
    mesh = sharding.make_mesh(data, fsdp, BATCH)
    static, shapes, _ = state.abstract(lambda: models.build(SPEC, models.Numerics(), nnx.Rngs(0)))
    tx = optim.make(config, shapes)

    def init() -> TrainState:
        rngs = nnx.Rngs(jax.random.key(0))
        return step.init_state(lambda: state.split(models.build(SPEC, models.Numerics(), rngs))[1:], objective, tx)

    placement = step.state_shardings(jax.eval_shape(init), mesh)
    first = jax.jit(init, out_shardings=placement)()
    run = step.make_step(static, objective, tx, mean=CLIP_MEAN, std=CLIP_STD, seed=0, placement=placement, mesh=mesh)

    def loss(params: Any, batch: Any) -> Any:
        batch = {**batch, "image": step.normalise(batch["image"], CLIP_MEAN, CLIP_STD)}
        return objective.loss(lambda p: state.bind(static, p), params, {}, batch, None)[0]

    grads = jax.jit(
        jax.grad(loss), in_shardings=(placement.params, sharding.batch(mesh)), out_shardings=placement.params
    )
    return Built(first, run, mesh, placement, grads)


def host_batch(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 3998, (BATCH, TOKENS)).astype(np.int32)
    tokens[:, 0], tokens[:, 9] = 3998, 3999
    return {"image": rng.integers(0, 256, (BATCH, SIDE, SIDE, 1), np.uint8), "tokens": tokens}


def three_steps(
    built: Built,
) -> tuple[list[float], dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(losses, first gradients, parameters before, parameters after)."""
    before = jax.device_get(built.state.params)
    first = sharding.to_global(host_batch(0), built.mesh)
    grads = jax.device_get(built.grads(built.state.params, first))
    losses, current = [], built.state
    for seed in range(3):
        current, metrics = built.step(current, sharding.to_global(host_batch(seed), built.mesh))
        losses.append(float(metrics["loss"]))
    return losses, grads, before, jax.device_get(current.params)


def worst_difference(a: Any, b: Any) -> dict[str, float]:
    """Largest difference of losses, of gradients and of updates; the latter two relative to the leaf's own norm.

    A key bias of the text tower has no gradient in exact arithmetic (softmax ignores a constant), only rounding:
    it is held against the norm of all leaves together.
    """

    def worst(xs: dict[str, np.ndarray], ys: dict[str, np.ndarray]) -> float:
        whole = np.sqrt(sum(np.sum(np.square(y)) for y in ys.values()))
        scale = {name: whole if name.endswith("attn/k/bias") else np.linalg.norm(y) for name, y in ys.items()}
        return max(float(np.linalg.norm(xs[name] - y) / scale[name]) for name, y in ys.items())

    (loss_a, grads_a, before_a, after_a), (loss_b, grads_b, before_b, after_b) = a, b
    return {
        "loss": max(abs(x - y) for x, y in zip(loss_a, loss_b, strict=True)),
        "gradients": worst(grads_a, grads_b),
        "parameters": worst(
            {name: after_a[name] - before_a[name] for name in after_a},
            {name: after_b[name] - before_b[name] for name in after_b},
        ),
    }


@pytest.fixture(scope="module")
def one_device() -> Any:
    return three_steps(build(data=1))


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_many_devices_train_as_one(one_device: Any, data: int, fsdp: int) -> None:
    difference = worst_difference(three_steps(build(data=data, fsdp=fsdp)), one_device)
    assert max(difference.values()) < 1e-5, difference


def test_local_negatives_differ_in_loss_gradients_and_parameters(one_device: Any) -> None:
    local = three_steps(build(data=8, objective=LocalNegatives(UNCLAMPED)))
    difference = worst_difference(local, one_device)
    assert min(difference.values()) > 1e-2, difference


def test_a_batch_that_devices_do_not_divide_names_the_divisors() -> None:
    with pytest.raises(UserError, match=r"batch_size = 30 .* 8 devices.* 1, 2, 3, 5, 6$"):
        sharding.make_mesh(0, 1, 30)


@pytest.mark.parametrize("optimizer", optim.OPTIMIZERS)
def test_compiles_once_donates_everything_and_shards_the_momentum(optimizer: str) -> None:
    built = build(data=2, fsdp=4, optimizer=optimizer)
    donated = jax.tree.leaves(built.state)
    batch = sharding.to_global(host_batch(0), built.mesh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # jax warns of a donated buffer that could not be used
        current, _ = built.step(built.state, batch)
    assert all(leaf.is_deleted() for leaf in donated)
    for seed in range(1, 4):
        current, metrics = built.step(current, sharding.to_global(host_batch(seed), built.mesh))
        jax.block_until_ready(metrics)  # eight CPU devices with several steps in flight starve each other
    assert built.step._cache_size() == 1
    name = "image/blocks/0/mlp/fc1/kernel"
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(current.opt)
        if getattr(path[-1], "key", None) == name
    ]
    assert len(moments) == {"sgd": 1, "adamw": 2, "lion": 1}[optimizer]
    for moment in moments:
        assert moment.sharding == current.params[name].sharding
        assert moment.addressable_shards[0].data.size == moment.size // 4


def test_a_non_finite_update_is_not_applied_and_is_counted() -> None:
    built = build(data=1)
    poisoned = dataclasses.replace(
        built.state, params={**built.state.params, "logit_scale": jnp.asarray(jnp.nan, jnp.float32)}
    )
    before = jax.device_get((poisoned.params, poisoned.opt))
    current = poisoned
    for expected in (1, 2):
        current, metrics = built.step(current, sharding.to_global(host_batch(0), built.mesh))
        assert metrics["nonfinite"].tolist() == [expected, expected]
    after = jax.device_get((current.params, current.opt))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    mended = {**current.params, "logit_scale": jnp.asarray(2.0, jnp.float32)}
    current, metrics = built.step(
        dataclasses.replace(current, params=mended), sharding.to_global(host_batch(0), built.mesh)
    )
    assert metrics["nonfinite"].tolist() == [2, 0]
    assert int(current.step) == 3


def test_an_update_that_overflows_is_not_applied() -> None:
    built = build(data=1, learning_rate=1e38)
    before = jax.device_get(built.state.params)
    current, metrics = built.step(built.state, sharding.to_global(host_batch(0), built.mesh))
    assert metrics["nonfinite"].tolist() == [1, 1]
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(current.params))


def test_frozen_parameters_stay_and_have_no_momentum() -> None:
    built = build(data=1, groups=(("image/.*", 0.0, 0.0), (".*", 1.0, 1.0)))
    before = jax.device_get(built.state.params)
    keys = {getattr(path[-1], "key", "") for path, _ in jax.tree_util.tree_leaves_with_path(built.state.opt)}
    current, metrics = built.step(built.state, sharding.to_global(host_batch(0), built.mesh))
    after = jax.device_get(current.params)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and not any(name.startswith("image/") for name in moved)
    assert not any(key.startswith("image/") for key in keys)
    assert "grad_norm/image" not in metrics


def test_the_logit_scale_is_clamped_after_the_update() -> None:
    built = build(data=1, objective=Contrastive((2.0, 2.1)))
    current, _ = built.step(built.state, sharding.to_global(host_batch(0), built.mesh))
    assert float(current.params["logit_scale"]) == pytest.approx(2.1)


def test_grey_is_repeated_and_normalised_by_channel() -> None:
    grey = np.full((1, 2, 2, 1), 51, np.uint8)
    x = np.asarray(step.normalise(grey, CLIP_MEAN, CLIP_STD))
    assert x.shape == (1, 2, 2, 3)
    np.testing.assert_allclose(x[0, 0, 0], (0.2 - np.array(CLIP_MEAN)) / np.array(CLIP_STD), rtol=1e-6)
