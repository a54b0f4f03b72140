"""A model folder of the tiny towers with weights large enough that different inputs are told apart."""

from __future__ import annotations

import numpy as np
from cards import IMAGE, TEXT, small_card
from flax import nnx

from hybridclip_jax import models, state
from hybridclip_jax.modelfolder import Card

SPEC = models.DualSpec(IMAGE, TEXT, context=12, embed_dim=32)


def weights(spec: models.DualSpec = SPEC, seed: int = 0) -> dict[str, np.ndarray]:
    """Random, and large enough that different inputs give clearly different embeddings."""
    _, shapes, _ = state.abstract(lambda: models.build(spec, models.Numerics(), nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(
            rng.normal(float(name.endswith("scale")), (leaf.shape[-2:-1] or (4,))[0] ** -0.5, leaf.shape),
            np.float32,
        )
        for name, leaf in shapes.items()
    }


def card(kind: str = "dual", *, colour: bool = False) -> Card:
    store = {"resize": "pad", "colour": colour}
    return small_card(kind, context=SPEC.context, embed_dim=SPEC.embed_dim, store=store)
