"""OpenAI CLIP's text transformer. B batch, T tokens (at most the context), D width."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx

from hybridclip_jax.models import layers
from hybridclip_jax.models.layers import Array, Encoded, Numerics
from hybridclip_jax.tally import Tally


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Sizes of one CLIP text tower; the defaults are ViT-B/32's and B/16's, at a context of 512."""

    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_hidden: int = 2048
    context: int = 512
    vocab_size: int = 49408

    @property
    def end_token(self) -> int:
        return self.vocab_size - 1

    def count(self, tally: Tally, *, batch: int, tokens: int) -> bool:
        # Looking tokens up is a gather, not a product, forward and backward.
        needs = tally.any("token_embedding", "pos_embedding")
        for i in range(self.depth):
            needs = tally.block(
                f"blocks/{i}",
                width=self.width,
                hidden=self.mlp_hidden,
                rows=batch * tokens,
                # Causal: row t attends to t + 1 tokens. "Half" of T^2 is T (T + 1) / 2.
                pairs=batch * tokens * (tokens + 1) // 2,
                needs=needs,
                biases="qkvo",
            )
        return tally.norm("norm", needs)


CLIP_TEXT_SIZES = {
    "clip_text_b": ClipTextConfig(),
    "clip_text_l": ClipTextConfig(width=768, heads=12, mlp_hidden=3072),
    "clip_text_rn50x4": ClipTextConfig(width=640, heads=10, mlp_hidden=2560),
    # Not a published size: small enough to train on two CPU cores; its vocabulary keeps the first 3,486 merges.
    "clip_text_tiny": ClipTextConfig(width=128, depth=2, heads=2, mlp_hidden=512, vocab_size=4000),
}


class ClipText(nnx.Module):
    """int32 ids [B, T] -> features at the first end token [B, D] and tokens [B, T, D], after the last norm.

    Attention is causal, so nothing after the end token can reach the pooled row: padding may be trimmed exactly.
    A row without an end token pools its first position; the tokenizer never makes one.
    """

    def __init__(self, config: ClipTextConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.config, self.numerics = config, numerics
        shape_VD, shape_TD = (config.vocab_size, config.width), (config.context, config.width)
        self.token_embedding = nnx.Param(layers.normal(0.02)(rngs.params(), shape_VD))
        self.pos_embedding = nnx.Param(layers.normal(0.01)(rngs.params(), shape_TD))
        self.blocks = nnx.List([layers.ClipBlock(config, numerics, rngs, causal=True) for _ in range(config.depth)])
        self.norm = layers.layer_norm(config.width, numerics, rngs)

    def embed(self, ids_BT: Array) -> Array:
        x = self.token_embedding[...][ids_BT] + self.pos_embedding[...][: ids_BT.shape[1]]
        return x.astype(self.numerics.dtype)

    def __call__(self, ids_BT: Array) -> Encoded:
        if ids_BT.shape[1] > self.config.context:
            raise ValueError(f"{ids_BT.shape[1]} tokens do not fit the context of {self.config.context}")
        x = self.embed(ids_BT)
        for block in self.blocks:
            x = layers.run_block(block, x, remat=self.numerics.remat)
        tokens = self.norm(x)
        end_B = jnp.argmax(ids_BT == self.config.end_token, axis=1)
        return Encoded(jnp.take_along_axis(tokens, end_B[:, None, None], axis=1)[:, 0], tokens)
