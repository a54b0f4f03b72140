"""Modules as flat dicts of arrays: the names that files and rules depend on, and the way back."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybridclip_jax import models, state

SPEC = models.DualSpec("dinov3_tiny32", "clip_text_tiny", context=16, embed_dim=32)


class Head(nnx.Module):
    """Small, with everything that has to survive: a list of layers, a scalar, batch statistics."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.gain = nnx.Param(jnp.asarray(2.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x, use_running_average=True) * self.gain[...]


def names_of_a_model() -> list[str]:
    return list(state.abstract(lambda: models.build(SPEC, models.Numerics(), nnx.Rngs(0)))[1])


def test_names_are_those_that_weights_and_rules_are_written_in() -> None:
    """Model folders on disk hold these names: a change here makes every saved model unreadable."""
    names = names_of_a_model()
    assert len(names) == len(set(names))
    block = {f"norm{n}/{leaf}" for n in (1, 2) for leaf in ("scale", "bias")}
    block |= {f"mlp/fc{n}/{leaf}" for n in (1, 2) for leaf in ("kernel", "bias")}
    block |= {f"attn/{part}/{leaf}" for part in ("q", "k", "v", "out") for leaf in ("kernel", "bias")}
    image = block - {"attn/k/bias"} | {"ls1", "ls2"}
    top = {
        "cls_token",
        "register_tokens",
        "patch_embed/kernel",
        "patch_embed/bias",
        "norm/scale",
        "norm/bias",
    }
    wanted = {"logit_scale", "image_projection/kernel", "text_projection/kernel"}
    wanted |= {f"image/{name}" for name in top} | {f"image/blocks/{i}/{n}" for i in range(3) for n in image}
    wanted |= {f"text/{name}" for name in ("token_embedding", "pos_embedding", "norm/scale", "norm/bias")}
    wanted |= {f"text/blocks/{i}/{n}" for i in range(2) for n in block}
    assert set(names) == wanted


def test_a_gated_tower_names_its_three_kernels() -> None:
    config = models.DinoV3Config(width=8, depth=1, heads=1, mlp_hidden=8, gated=True)
    tower = models.IMAGE_ENCODERS["dinov3_vits16plus"][0]
    names = state.abstract(lambda: tower(config, models.Numerics(), nnx.Rngs(0)))[1]
    found = {m[1] for name in names if (m := re.fullmatch(r"blocks/0/mlp/(.*)", name))}
    assert found == {f"{part}/{leaf}" for part in ("gate", "up", "down") for leaf in ("kernel", "bias")}


def names_of_a_tower(name: str, config: Any) -> tuple[set[str], set[str]]:
    """(parameters, statistics)."""
    tower = models.IMAGE_ENCODERS[name][0]
    _, params, stats = state.abstract(lambda: tower(config, models.Numerics(), nnx.Rngs(0)))
    return set(params), set(stats)


def test_clips_vit_names_its_own_embeddings_and_every_bias() -> None:
    config = models.ClipVitConfig(width=8, depth=2, heads=1, mlp_hidden=8, patch=8, image_size=16)
    block = {f"{part}/{leaf}" for part in ("norm1", "norm2") for leaf in ("scale", "bias")}
    layers = ("attn/q", "attn/k", "attn/v", "attn/out", "mlp/fc1", "mlp/fc2")
    block |= {f"{layer}/{leaf}" for layer in layers for leaf in ("kernel", "bias")}
    wanted = {"class_embedding", "pos_embedding", "patch_embed/kernel"}
    wanted |= {f"{norm}/{leaf}" for norm in ("norm", "norm_pre") for leaf in ("scale", "bias")}
    wanted |= {f"blocks/{i}/{name}" for i in range(2) for name in block}
    assert names_of_a_tower("clip_vitb32", config) == (wanted, set())


def test_clips_resnet_numbers_its_blocks_through_and_keeps_statistics_apart() -> None:
    config = models.ClipResNetConfig(width=4, depths=(2, 1, 1, 1), heads=2, image_size=32)
    convs = {f"stem/conv{n}": f"stem/norm{n}" for n in (1, 2, 3)}
    convs |= {f"blocks/{i}/conv{n}": f"blocks/{i}/norm{n}" for i in range(5) for n in (1, 2, 3)}
    convs |= {f"blocks/{i}/downsample/conv": f"blocks/{i}/downsample/norm" for i in (0, 2, 3, 4)}
    wanted = {f"{conv}/kernel" for conv in convs} | {
        f"{n}/{leaf}" for n in convs.values() for leaf in ("scale", "bias")
    }
    wanted |= {f"attn_pool/{part}/{leaf}" for part in "qkv" for leaf in ("kernel", "bias")}
    stats = {f"{norm}/{leaf}" for norm in convs.values() for leaf in ("mean", "var")}
    assert names_of_a_tower("clip_rn50", config) == (wanted | {"attn_pool/pos_embedding"}, stats)


def test_split_and_bind_are_inverse() -> None:
    module = Head(nnx.Rngs(0))
    module.norm.mean[...] = jnp.arange(4.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    static, params, stats = state.split(module)
    assert set(stats) == {"norm/mean", "norm/var"}
    assert "layers/10/kernel" in params, "the eleventh layer is not confused with the second"
    back = state.bind(static, params, stats)
    np.testing.assert_array_equal(back(x), module(x))
    np.testing.assert_array_equal(state.bind(static, {**params, **stats})(x), module(x))
    again = state.split(back)
    assert jax.tree.map(lambda a, b: bool((a == b).all()), again[1:], (params, stats)) == jax.tree.map(
        lambda _: True, (params, stats)
    )


def test_each_name_reaches_its_own_array() -> None:
    """Sorted text puts layers/10 before layers/2, which a bind by position would get wrong."""
    static, params, stats = state.split(Head(nnx.Rngs(0)))
    marked = {name: jnp.full(value.shape, float(i)) for i, (name, value) in enumerate(sorted(params.items()))}
    module = state.bind(static, marked, stats)
    for i, name in enumerate(sorted(marked)):
        parts = name.split("/")
        node: Any = module
        for part in parts:
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        assert float(jnp.ravel(node[...])[0]) == i, name


def test_bind_names_what_is_missing() -> None:
    static, params, stats = state.split(Head(nnx.Rngs(0)))
    del params["layers/3/bias"]
    with pytest.raises(KeyError, match="layers/3/bias"):
        state.bind(static, params, stats)


def test_gradients_and_new_values_go_through_bind() -> None:
    static, params, stats = state.split(Head(nnx.Rngs(0)))
    x = jnp.ones((2, 4))

    @jax.jit
    def loss(params: state.Params) -> jax.Array:
        return jnp.sum(state.bind(static, params, stats)(x) ** 2)

    grads = jax.grad(loss)(params)
    assert grads.keys() == params.keys()
    step = 1e-3
    up, down = ({**params, "gain": params["gain"] + sign * step} for sign in (1, -1))
    assert float(grads["gain"]) == pytest.approx(float(loss(up) - loss(down)) / (2 * step), rel=1e-2)
    assert float(loss({**params, "gain": 2 * params["gain"]})) == pytest.approx(4 * float(loss(params)), rel=1e-5)


def test_abstract_allocates_nothing_and_has_the_real_shapes() -> None:
    _, shapes, stats = state.abstract(lambda: Head(nnx.Rngs(0)))
    _, params, real_stats = state.split(Head(nnx.Rngs(0)))
    for abstract, real in ((shapes, params), (stats, real_stats)):
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in abstract.values())
        assert {n: (v.shape, v.dtype) for n, v in abstract.items()} == {n: (v.shape, v.dtype) for n, v in real.items()}


def test_an_abstract_graph_computes_with_real_arrays() -> None:
    static, _, _ = state.abstract(lambda: Head(nnx.Rngs(0)))
    module = Head(nnx.Rngs(1))
    _, params, stats = state.split(module)
    x = jnp.ones((2, 4))
    np.testing.assert_array_equal(state.bind(static, params, stats)(x), module(x))


def test_the_train_state_is_a_tree_of_its_five_parts() -> None:
    parts = state.TrainState(
        jnp.asarray(3), {"a": jnp.ones(2)}, {"b": jnp.ones(1)}, (jnp.zeros(2),), {"c": jnp.ones(())}
    )
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    assert [str(path[0]) for path, _ in leaves] == [".step", ".params", ".stats", ".opt", ".aux"]
    doubled = jax.tree.map(lambda x: 2 * x, parts)
    assert isinstance(doubled, state.TrainState)
    assert int(doubled.step) == 6
