"""FLOPs of the model of a config, from the shapes that it computes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridclip_jax import accounting, build


def of_step(config: Any, model: build.Model, text_tokens: int) -> accounting.StepFlops:
    """Of one training step whose texts are padded to `text_tokens`."""
    return accounting.step_flops(
        model.spec.image_arch,
        model.spec.text_arch,
        embed_dim=model.spec.embed_dim,
        image_size=config.data.image_size,
        text_tokens=text_tokens,
        batch_size=config.batch_size,
        trainable=model.optimizer.trainable.__contains__,
    )


def of_encoding(config: Any, model: build.Model, images: int, texts: Mapping[int, int]) -> int:
    """Of encoding without gradients: `images`, and {padded length: texts}."""
    return accounting.encode_flops(
        model.spec.image_arch,
        model.spec.text_arch,
        embed_dim=model.spec.embed_dim,
        image_size=config.data.image_size,
        images=images,
        texts=texts,
    )
