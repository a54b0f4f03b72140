"""A model folder's card as a run of the small towers writes it."""

from __future__ import annotations

from typing import Any

from hybridclip_jax.config import CLIP_MEAN, CLIP_STD
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.modelfolder import Card
from hybridclip_jax.models import TEXT_ENCODERS

IMAGE, TEXT = "dinov3_tiny32", "clip_text_tiny"
VOCABULARY = TEXT_ENCODERS[TEXT][1].vocab_size
HELD = {
    "dual": ("image", "text", "context", "embed_dim"),
    "image": ("image",),
    "text": ("text", "context", "embed_dim"),
}


def small_card(kind: str, *, context: int, embed_dim: int, **preparation: Any) -> Card:
    """`preparation` joins the size, mean and deviation of the preprocessing card."""
    whole = {"image": IMAGE, "text": TEXT, "context": context, "embed_dim": embed_dim}
    return Card(
        kind=kind,
        architecture={name: whole[name] for name in HELD[kind]},
        preprocessing={"image_size": 64, "mean": list(CLIP_MEAN), "std": list(CLIP_STD), **preparation},
        tokenizer=Tokenizer(VOCABULARY).card(),
        source={"file": "x.pth", "sha256": "ab"},
        licence="MIT",
        synthetic=True,
    )
