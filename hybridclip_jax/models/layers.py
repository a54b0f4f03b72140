"""Pieces shared by the towers.

B batch, H W C image, N patches, L tokens, D width; in attention H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Init = Callable[..., Array]
Kernel = Literal["xla", "cudnn"]

LAYER_NORM_EPS = 1e-5


class Encoded(NamedTuple):
    """What a tower returns: `pooled` [B, D] and the normalised `tokens` [B, L, D]."""

    pooled: Array
    tokens: Array


class Numerics(NamedTuple):
    """How a tower computes; never what. `dtype` of activations, attention kernel, recomputation of blocks."""

    dtype: jnp.dtype = jnp.float32
    attention: Kernel = "xla"
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


def fixed_size(image_size: int, own: int) -> str:
    """What is wrong with images of this side where a tower's positions are learned for `own`; empty if nothing."""
    return "" if image_size == own else f"must be {own}, the size that the tower's positions are for"


def refuse_other_size(images_BHWC: Array, own: int) -> None:
    """Raises ValueError: the rows of a table of positions would go to other places than they were learned for."""
    if images_BHWC.shape[1:3] != (own, own):
        height, width = images_BHWC.shape[1:3]
        raise ValueError(f"images of {height} x {width} pixels; this tower takes {own} x {own} alone")


def run_block(block: Callable[..., Array], x: Array, *args: object, remat: bool) -> Array:
    """block(x, *args); with `remat` the block's activations are recomputed in the backward pass."""
    if not remat:
        return block(x, *args)
    return jax.checkpoint(lambda block, x: block(x, *args))(block, x)


class PatchEmbed(nnx.Module):
    """Convolution with stride = kernel = patch, no padding: [B, H, W, 3] -> [B, N, D], row-major."""

    def __init__(self, patch: int, width: int, numerics: Numerics, rngs: nnx.Rngs, *, bias: bool) -> None:
        self.patch, self.dtype = patch, numerics.dtype
        self.kernel = nnx.Param(normal((patch * patch * 3) ** -0.5)(rngs.params(), (patch, patch, 3, width)))
        self.bias = nnx.Param(jnp.zeros((width,))) if bias else None

    def __call__(self, x_BHWC: Array) -> Array:
        p = self.patch
        B, H, W, C = x_BHWC.shape
        rows, columns = H // p, W // p
        x = x_BHWC[:, : rows * p, : columns * p].reshape(B, rows, p, columns, p, C)
        x_BNF = x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * columns, p * p * C)
        kernel_FD = self.kernel[...].reshape(p * p * C, -1)
        x = x_BNF.astype(self.dtype) @ kernel_FD.astype(self.dtype)
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


def attend(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, *, causal: bool, kernel: Kernel) -> Array:
    """softmax(q k^T / sqrt(K)) v, the softmax in float32; in float64 where they are, so that float64 means it."""
    if q_BLHK.dtype != jnp.float64:
        return jax.nn.dot_product_attention(q_BLHK, k_BLHK, v_BLHK, is_causal=causal, implementation=kernel)
    logits = jnp.einsum("bthk,bshk->bhts", q_BLHK, k_BLHK) * q_BLHK.shape[-1] ** -0.5
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits), v_BLHK)


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
        self.heads, self.causal, self.kernel = heads, causal, numerics.attention
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
        mixed = attend(q, k, v, causal=self.causal, kernel=self.kernel)
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


class ClipBlock(nnx.Module):
    """x += attention(norm1(x)); x += mlp(norm2(x)), quick GELU: the block of both of CLIP's transformers.

    `config` has width, depth, heads and mlp_hidden.
    """

    def __init__(self, config: Any, numerics: Numerics, rngs: nnx.Rngs, *, causal: bool) -> None:
        width = config.width
        stds = init_stds(width, config.depth)
        self.norm1 = layer_norm(width, numerics, rngs)
        self.attn = Attention(width, config.heads, numerics, rngs, causal=causal, biases="qkvo", stds=stds)
        self.norm2 = layer_norm(width, numerics, rngs)
        self.mlp = Mlp(width, config.mlp_hidden, quick_gelu, numerics, rngs, stds=stds)

    def __call__(self, x: Array) -> Array:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
