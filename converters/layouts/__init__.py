"""The layouts by name. A new one is a function and one line in this table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from converters.layouts import clip, dinov3, hybrid
from converters.layouts.base import Plan
from converters.sources import Source
from converters.torch_zip import shown
from hybridclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """marks: endings of names that all have to be there for a source to be of this layout."""

    what: str
    marks: tuple[str, ...]
    plan: Callable[[Source], Plan]


# The first whose marks are all found is taken: what holds more comes first.
LAYOUTS = {
    "hybrid-hf": Layout(
        "this project's hybrid in transformers (VisionTextDualEncoderModel)",
        ("vision_model.embeddings.register_tokens", "visual_projection.weight", "text_projection.weight"),
        hybrid.plan_hub,
    ),
    "dinov3-hf": Layout(
        "DINOv3 of transformers",
        ("embeddings.register_tokens", "layer.0.attention.o_proj.weight"),
        dinov3.plan_hub,
    ),
    "dinov3-meta": Layout("DINOv3 as Meta ships it", ("storage_tokens",), dinov3.plan_meta),
    "dinov3-timm": Layout("DINOv3 of timm", ("reg_token", "blocks.0.gamma_1"), dinov3.plan_timm),
    "clip-openai": Layout(
        "CLIP in OpenAI's names (archives, CheXzero, PubMedCLIP, Long-CLIP)",
        ("visual.conv1.weight", "text_projection", "ln_final.weight"),
        clip.plan_openai,
    ),
    "clip-hf": Layout(
        "CLIPModel of transformers (PLIP)", ("visual_projection.weight", "text_projection.weight"), clip.plan_hub
    ),
    "clip-text-hf": Layout(
        "CLIPTextModelWithProjection or CLIPTextModel of transformers",
        ("embeddings.token_embedding.weight", "final_layer_norm.weight"),
        clip.plan_hub_text,
    ),
}


def detect(source: Source) -> str:
    """The name of the source's layout. Raises UserError where it has none of them."""
    for name, layout in LAYOUTS.items():
        if all(any(key == mark or key.endswith(f".{mark}") for key in source.tensors) for mark in layout.marks):
            return name
    some = ", ".join(map(shown, sorted(source.tensors)[:3]))
    raise UserError(
        f"{source.name}: {len(source.tensors)} arrays in no known layout (such as {some}); `python -m converters list` "
        "names the layouts, --layout forces one"
    )
