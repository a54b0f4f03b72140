"""DINOv3 vision transformer. B batch, H W C image, N patches, L = 1 + registers + N tokens, D width.

Written from the published architecture (facebookresearch/dinov3; Hugging Face transformers' DINOv3ViT agrees):
pre-norm blocks with LayerScale, no absolute positions, rotary positions on the patch tokens only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybridclip_jax.models import layers
from hybridclip_jax.models.layers import Array, Encoded, Numerics
from hybridclip_jax.tally import Tally

# A tower trained from scratch starts with its branches open; a loaded tower overwrites this value anyway.
# (Meta pre-trains from 1e-5, which small towers with few steps never recover from.)
LAYER_SCALE_INIT = 1.0


@dataclasses.dataclass(frozen=True)
class DinoV3Config:
    """Sizes of one DINOv3 ViT; the defaults are B/16."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_hidden: int = 3072
    patch: int = 16
    registers: int = 4
    gated: bool = False
    qv_bias: bool = True
    rope_base: float = 100.0

    @property
    def pooled_width(self) -> int:
        return self.width

    @property
    def projection_bias(self) -> bool:
        return False

    @property
    def attention_biases(self) -> str:
        return "qvo" if self.qv_bias else "o"

    def patches(self, image_size: int) -> int:
        return (image_size // self.patch) ** 2

    def tokens(self, image_size: int) -> int:
        return 1 + self.registers + self.patches(image_size)

    def wrong_size(self, image_size: int) -> str:
        return f"must be a multiple of the patch, {self.patch}" if image_size % self.patch else ""

    def count(self, tally: Tally, *, batch: int, image_size: int) -> bool:
        rows = batch * self.tokens(image_size)
        flops = 2 * batch * self.patches(image_size) * 3 * self.patch**2 * self.width
        # Pixels are data: the patch embedding is a product with no gradient on its left.
        needs = tally.linear("patch_embed", flops, False, bias=True)
        needs |= tally.any("cls_token", "register_tokens")
        for i in range(self.depth):
            needs = tally.block(
                f"blocks/{i}",
                width=self.width,
                hidden=self.mlp_hidden,
                rows=rows,
                pairs=rows * self.tokens(image_size),
                needs=needs,
                biases=self.attention_biases,
                gated=self.gated,
                layer_scale=True,
            )
        return tally.norm("norm", needs)


DINOV3_SIZES = {
    "dinov3_vits16": DinoV3Config(width=384, heads=6, mlp_hidden=1536),
    "dinov3_vits16plus": DinoV3Config(width=384, heads=6, mlp_hidden=1536, gated=True),
    "dinov3_vitb16": DinoV3Config(),
    "dinov3_vitl16": DinoV3Config(width=1024, depth=24, heads=16, mlp_hidden=4096),
    "dinov3_vitl16plus": DinoV3Config(width=1024, depth=24, heads=16, mlp_hidden=4096, gated=True),
    "dinov3_vith16plus": DinoV3Config(width=1280, depth=32, heads=20, mlp_hidden=5120, gated=True),
    "dinov3_vit7b16": DinoV3Config(width=4096, depth=40, heads=32, mlp_hidden=8192, gated=True, qv_bias=False),
    # Not a published size: small enough to train on two CPU cores.
    "dinov3_tiny32": DinoV3Config(width=128, depth=3, heads=2, mlp_hidden=512, patch=32),
}


def rope_angles(rows: int, columns: int, head_width: int, base: float) -> np.ndarray:
    """Rotation angles [N, K]: 2 pi * (patch centre in (-1, 1)) / base^(4k / K), h part then w part, tiled twice."""
    h = (np.arange(rows) + 0.5) / rows * 2 - 1
    w = (np.arange(columns) + 0.5) / columns * 2 - 1
    grid_N2 = np.stack(np.meshgrid(h, w, indexing="ij"), axis=-1).reshape(-1, 2)
    periods = base ** (4 * np.arange(head_width // 4) / head_width)
    angles_N2F = 2 * np.pi * grid_N2[:, :, None] / periods
    return np.tile(angles_N2F.reshape(len(grid_N2), -1), (1, 2))


def patch_rotation(rows: int, columns: int, head_width: int, base: float) -> Callable[[Array], Array]:
    """The function that rotates the last N tokens of [B, L, H, K] and leaves CLS and registers as they are."""
    angles_NK = rope_angles(rows, columns, head_width, base)

    def rotate(x_BLHK: Array) -> Array:
        wide = jnp.promote_types(x_BLHK.dtype, jnp.float32)
        cos, sin = (jnp.asarray(f(angles_NK), wide)[None, :, None, :] for f in (np.cos, np.sin))
        first = x_BLHK.shape[1] - angles_NK.shape[0]
        head, x = x_BLHK[:, :first], x_BLHK[:, first:].astype(wide)
        left, right = jnp.split(x, 2, axis=-1)
        turned = x * cos + jnp.concatenate([-right, left], axis=-1) * sin
        return jnp.concatenate([head, turned.astype(x_BLHK.dtype)], axis=1)

    return rotate


class Block(nnx.Module):
    """x += ls1 * attention(norm1(x)); x += ls2 * mlp(norm2(x))."""

    def __init__(self, config: DinoV3Config, numerics: Numerics, rngs: nnx.Rngs) -> None:
        width = config.width
        stds = layers.init_stds(width, config.depth)
        self.norm1 = layers.layer_norm(width, numerics, rngs)
        biases = config.attention_biases
        self.attn = layers.Attention(width, config.heads, numerics, rngs, causal=False, biases=biases, stds=stds)
        self.ls1 = nnx.Param(jnp.full((width,), LAYER_SCALE_INIT, jnp.float32))
        self.norm2 = layers.layer_norm(width, numerics, rngs)
        self.mlp: nnx.Module = (
            layers.GatedMlp(width, config.mlp_hidden, numerics, rngs, stds=stds)
            if config.gated
            else layers.Mlp(width, config.mlp_hidden, layers.gelu_exact, numerics, rngs, stds=stds)
        )
        self.ls2 = nnx.Param(jnp.full((width,), LAYER_SCALE_INIT, jnp.float32))

    def __call__(self, x: Array, rotate: Callable[[Array], Array]) -> Array:
        x = x + self.ls1[...].astype(x.dtype) * self.attn(self.norm1(x), rotate)
        return x + self.ls2[...].astype(x.dtype) * self.mlp(self.norm2(x))


class DinoV3(nnx.Module):
    """[B, H, W, 3] normalised images -> pooled CLS [B, D] and tokens [B, 1 + registers + N, D], after the last norm."""

    def __init__(self, config: DinoV3Config, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.config, self.numerics = config, numerics
        std = config.width**-0.5
        self.cls_token = nnx.Param(layers.normal(std)(rngs.params(), (1, 1, config.width)))
        self.register_tokens = nnx.Param(layers.normal(std)(rngs.params(), (1, config.registers, config.width)))
        self.patch_embed = layers.PatchEmbed(config.patch, config.width, numerics, rngs, bias=True)
        self.blocks = nnx.List([Block(config, numerics, rngs) for _ in range(config.depth)])
        self.norm = layers.layer_norm(config.width, numerics, rngs)

    def embed(self, images: Array) -> Array:
        """[B, H, W, 3] -> tokens [B, L, D] before the first block: CLS, registers, patches."""
        x = self.patch_embed(images)
        first = jnp.concatenate([self.cls_token[...], self.register_tokens[...]], axis=1).astype(x.dtype)
        first = jnp.broadcast_to(first, (x.shape[0], *first.shape[1:]))
        return jnp.concatenate([first, x], axis=1)

    def rotation(self, images: Array) -> Callable[[Array], Array]:
        rows, columns = images.shape[1] // self.config.patch, images.shape[2] // self.config.patch
        return patch_rotation(rows, columns, self.config.width // self.config.heads, self.config.rope_base)

    def __call__(self, images: Array) -> Encoded:
        rotate = self.rotation(images)
        x = self.embed(images)
        for block in self.blocks:
            x = layers.run_block(block, x, rotate, remat=self.numerics.remat)
        tokens = self.norm(x)
        return Encoded(tokens[:, 0], tokens)
