"""Symmetric InfoNCE. B batch, E embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hybridclip_jax.models.layers import l2_normalize
from hybridclip_jax.state import Params


def info_nce(image_BE: jax.Array, text_BE: jax.Array, logit_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(image-to-text, text-to-image) cross-entropy, each the mean over the batch, in float32 or wider.

    -mean_i log softmax_j(exp(logit_scale) <image_i, text_j>)_i and its transpose (Radford et al. 2021, figure 3).
    Written for the whole batch: under jit with sharded inputs the negatives are global.
    """
    image, text = l2_normalize(image_BE), l2_normalize(text_BE)
    logits_BB = jnp.exp(logit_scale) * jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    matched_B = jnp.diagonal(logits_BB)
    i2t = jnp.mean(jax.nn.logsumexp(logits_BB, axis=1) - matched_B)
    t2i = jnp.mean(jax.nn.logsumexp(logits_BB, axis=0) - matched_B)
    return i2t, t2i


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The mean of both directions of InfoNCE; the logit scale is clamped after each update."""

    logit_scale_range: tuple[float, float]

    def init_aux(self, params: Params) -> dict[str, jax.Array]:
        return {}

    def loss(
        self,
        bind: Callable[[Params], Any],
        params: Params,
        aux: Any,
        batch: dict[str, jax.Array],
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """batch: `image` [B, H, W, 3] normalised, `tokens` int32 [B, T]."""
        model = bind(params)
        i2t, t2i = info_nce(
            model.encode_image(batch["image"]), model.encode_text(batch["tokens"]), model.logit_scale[...]
        )
        return (i2t + t2i) / 2, (aux, {"loss_i2t": i2t, "loss_t2i": t2i})

    def after_update(self, params: Params, aux: Any) -> tuple[Params, Any]:
        low, high = self.logit_scale_range
        return {**params, "logit_scale": jnp.clip(params["logit_scale"], low, high)}, aux
