"""The hybrid as transformers keeps it, a VisionTextDualEncoderModel of DINOv3 and CLIP's text tower."""

from __future__ import annotations

import dataclasses

from converters.layouts import clip, dinov3
from converters.layouts.base import LINEAR, Plan, leaf
from converters.sources import Source


def plan_hub(source: Source) -> Plan:
    """What `to-hf` writes, or what was trained on in PyTorch from there."""
    vision = dataclasses.replace(source, config=source.part("vision_config"))
    image, text = dinov3.plan_hub(vision), clip.plan_hub_text(source)
    projection = leaf("visual_projection.weight", "image_projection/kernel", LINEAR)
    return Plan(
        "dual",
        {**image.architecture, **text.architecture},
        [*image.leaves, *text.leaves, projection, leaf("logit_scale", "logit_scale")],
        {**image.left_out, **text.left_out},
        trained_with="clip",
        licence=image.licence,
    )
