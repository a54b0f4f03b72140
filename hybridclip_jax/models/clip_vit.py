"""OpenAI CLIP's vision transformer. B batch, H W C image, N patches, L = 1 + N tokens, D width.

Written from the published architecture (openai/CLIP; Hugging Face transformers' CLIPVisionModel agrees): a class token,
learned absolute positions, a norm before the first block, quick GELU.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx

from hybridclip_jax.models import layers
from hybridclip_jax.models.layers import Array, Encoded, Numerics
from hybridclip_jax.tally import Tally


@dataclasses.dataclass(frozen=True)
class ClipVitConfig:
    """Sizes of one CLIP ViT; the defaults are ViT-B/32's. `image_size`: the side in pixels its positions are for."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_hidden: int = 3072
    patch: int = 32
    image_size: int = 224

    @property
    def pooled_width(self) -> int:
        return self.width

    @property
    def projection_bias(self) -> bool:
        return False

    def patches(self, image_size: int) -> int:
        return (image_size // self.patch) ** 2

    def tokens(self, image_size: int) -> int:
        return 1 + self.patches(image_size)

    def wrong_size(self, image_size: int) -> str:
        return layers.fixed_size(image_size, self.image_size)

    def count(self, tally: Tally, *, batch: int, image_size: int) -> bool:
        rows = batch * self.tokens(image_size)
        flops = 2 * batch * self.patches(image_size) * 3 * self.patch**2 * self.width
        needs = tally.linear("patch_embed", flops, False, bias=False)  # pixels are data
        needs |= tally.any("class_embedding", "pos_embedding")
        needs = tally.norm("norm_pre", needs)
        for i in range(self.depth):
            needs = tally.block(
                f"blocks/{i}",
                width=self.width,
                hidden=self.mlp_hidden,
                rows=rows,
                pairs=rows * self.tokens(image_size),
                needs=needs,
                biases="qkvo",
            )
        return tally.norm("norm", needs)


CLIP_VIT_SIZES = {
    "clip_vitb32": ClipVitConfig(),
    "clip_vitb16": ClipVitConfig(patch=16),
    "clip_vitl14": ClipVitConfig(width=1024, depth=24, heads=16, mlp_hidden=4096, patch=14),
    "clip_vitl14_336": ClipVitConfig(width=1024, depth=24, heads=16, mlp_hidden=4096, patch=14, image_size=336),
}


class ClipVit(nnx.Module):
    """[B, S, S, 3] normalised images of the config's size -> pooled class token [B, D] and tokens [B, 1 + N, D].

    Both are after the last norm, which OpenAI's code computes for the class token alone.
    """

    def __init__(self, config: ClipVitConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.config, self.numerics = config, numerics
        width, draw = config.width, layers.normal(config.width**-0.5)
        self.class_embedding = nnx.Param(draw(rngs.params(), (width,)))
        self.pos_embedding = nnx.Param(draw(rngs.params(), (config.tokens(config.image_size), width)))
        self.patch_embed = layers.PatchEmbed(config.patch, width, numerics, rngs, bias=False)
        self.norm_pre = layers.layer_norm(width, numerics, rngs)
        self.blocks = nnx.List([layers.ClipBlock(config, numerics, rngs, causal=False) for _ in range(config.depth)])
        self.norm = layers.layer_norm(width, numerics, rngs)

    def embed(self, images: Array) -> Array:
        """[B, S, S, 3] -> tokens [B, L, D] as the first block takes them: class token, patches."""
        layers.refuse_other_size(images, self.config.image_size)
        x = self.patch_embed(images)
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], axis=1) + self.pos_embedding[...].astype(x.dtype)
        return self.norm_pre(x)

    def __call__(self, images: Array) -> Encoded:
        x = self.embed(images)
        for block in self.blocks:
            x = layers.run_block(block, x, remat=self.numerics.remat)
        tokens = self.norm(x)
        return Encoded(tokens[:, 0], tokens)
