"""Pieces shared by the towers. B batch, L tokens, D width, H heads, K head width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Init = Callable[..., Array]

LAYER_NORM_EPS = 1e-5


class Encoded(NamedTuple):
    """What a tower returns: `pooled` [B, D] and the normalised `tokens` [B, L, D]."""

    pooled: Array
    tokens: Array


class Numerics(NamedTuple):
    """How a tower computes; never what. `dtype` of activations, attention kernel, recomputation of blocks."""

    dtype: jnp.dtype = jnp.float32
    attention: Literal["xla", "cudnn"] = "xla"
    remat: bool = False


class Stds(NamedTuple):
    """Standard deviations of a block's fresh kernels: q k v, the MLP's first layer, and what writes to the residual."""

    attention: float
    hidden: float
    residual: float


def init_stds(width: int, depth: int) -> Stds:
    """OpenAI CLIP's initial values (Radford et al. 2021, released code), for both towers.

    They scale with the width. A constant 0.02 leaves a narrow tower almost linear: at width 128 its attention starts
    uniform and its branches near zero, and small findings are not learnt in thousands of steps.
    """
    return Stds(width**-0.5, (2 * width) ** -0.5, (2 * width * depth) ** -0.5)


def normal(std: float) -> Init:
    return nnx.initializers.normal(std)


def layer_norm(width: int, numerics: Numerics, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with eps 1e-5 and statistics in float32; Flax's fast variance loses 4e-3 on offset inputs."""
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPS, use_fast_variance=False, dtype=numerics.dtype, rngs=rngs)


def linear(d_in: int, d_out: int, numerics: Numerics, rngs: nnx.Rngs, *, std: float, bias: bool = True) -> nnx.Linear:
    return nnx.Linear(d_in, d_out, use_bias=bias, kernel_init=normal(std), dtype=numerics.dtype, rngs=rngs)


def l2_normalize(x: Array) -> Array:
    """x / |x| along the last axis, in float32 or wider."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def gelu_exact(x: Array) -> Array:
    """x * Phi(x) by erf; jax.nn.gelu's default is the tanh approximation, which DINOv3 was not trained with."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def run_block(block: Callable[..., Array], x: Array, *args: object, remat: bool) -> Array:
    """block(x, *args); with `remat` the block's activations are recomputed in the backward pass."""
    if not remat:
        return block(x, *args)
    return jax.checkpoint(lambda block, x: block(x, *args))(block, x)


class Attention(nnx.Module):
    """Multi-head self-attention with separate q, k, v, out; softmax in float32."""

    def __init__(
        self,
        width: int,
        heads: int,
        numerics: Numerics,
        rngs: nnx.Rngs,
        *,
        causal: bool,
        biases: str,
        stds: Stds,
    ) -> None:
        self.heads, self.causal, self.implementation = heads, causal, numerics.attention
        self.q = linear(width, width, numerics, rngs, std=stds.attention, bias="q" in biases)
        self.k = linear(width, width, numerics, rngs, std=stds.attention, bias="k" in biases)
        self.v = linear(width, width, numerics, rngs, std=stds.attention, bias="v" in biases)
        self.out = linear(width, width, numerics, rngs, std=stds.residual, bias="o" in biases)

    def __call__(self, x: Array, rotate: Callable[[Array], Array] | None = None) -> Array:
        """x [B, L, D] -> [B, L, D]; `rotate` is applied to q and k [B, L, H, K] (rotary positions)."""
        shape_BLHK = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (layer(x).reshape(shape_BLHK) for layer in (self.q, self.k, self.v))
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal, implementation=self.implementation)
        return self.out(mixed.reshape(x.shape))


class Mlp(nnx.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Callable[[Array], Array],
        numerics: Numerics,
        rngs: nnx.Rngs,
        *,
        stds: Stds,
    ) -> None:
        self.activation = activation
        self.fc1 = linear(width, hidden, numerics, rngs, std=stds.hidden)
        self.fc2 = linear(hidden, width, numerics, rngs, std=stds.residual)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.activation(self.fc1(x)))


class GatedMlp(nnx.Module):
    """down(silu(gate(x)) * up(x)), the MLP of DINOv3's S+, L+, H+ and 7B."""

    def __init__(self, width: int, hidden: int, numerics: Numerics, rngs: nnx.Rngs, *, stds: Stds) -> None:
        self.gate = linear(width, hidden, numerics, rngs, std=stds.hidden)
        self.up = linear(width, hidden, numerics, rngs, std=stds.hidden)
        self.down = linear(hidden, width, numerics, rngs, std=stds.residual)

    def __call__(self, x: Array) -> Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
