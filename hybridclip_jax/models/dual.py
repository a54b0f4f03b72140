"""Two towers joined in one embedding space. B batch, D tower width, E embedding."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx

from hybridclip_jax.models import layers
from hybridclip_jax.models.layers import Array, Encoded, Numerics


class DualEncoder(nnx.Module):
    """Any image tower and any text tower, each with a projection, and one learnable logit scale.

    `encode_image` and `encode_text` return projected embeddings [B, E] that are not yet L2-normalised.
    `logit_scale` holds ln(1 / temperature). image_bias: whether the image projection has a bias, as in CLIP's ResNets.
    """

    def __init__(
        self,
        image: nnx.Module,
        text: nnx.Module,
        *,
        image_width: int,
        text_width: int,
        embed_dim: int,
        temperature: float,
        image_bias: bool = False,
        numerics: Numerics,
        rngs: nnx.Rngs,
    ) -> None:
        self.image, self.text = image, text
        image_std, text_std = image_width**-0.5, text_width**-0.5
        self.image_projection = layers.linear(image_width, embed_dim, numerics, rngs, std=image_std, bias=image_bias)
        self.text_projection = layers.linear(text_width, embed_dim, numerics, rngs, std=text_std, bias=False)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / temperature), jnp.float32))

    def image_features(self, images: Array) -> Encoded:
        """[B, H, W, 3] normalised -> the tower's own output, before projection."""
        return self.image(images)

    def text_features(self, ids: Array) -> Encoded:
        """int32 [B, T] -> the tower's own output, before projection."""
        return self.text(ids)

    def encode_image(self, images: Array) -> Array:
        return self.image_projection(self.image_features(images).pooled)

    def encode_text(self, ids: Array) -> Array:
        return self.text_projection(self.text_features(ids).pooled)
