"""The towers by name, and the one function that builds a model from a specification."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from flax import nnx

from hybridclip_jax.models.clip_resnet import CLIP_RESNET_SIZES, ClipResNetConfig, ModifiedResNet
from hybridclip_jax.models.clip_text import CLIP_TEXT_SIZES, ClipText, ClipTextConfig
from hybridclip_jax.models.clip_vit import CLIP_VIT_SIZES, ClipVit, ClipVitConfig
from hybridclip_jax.models.dinov3 import DINOV3_SIZES, DinoV3, DinoV3Config
from hybridclip_jax.models.dual import DualEncoder
from hybridclip_jax.models.layers import Encoded, Numerics
from hybridclip_jax.tally import Tally

__all__ = [
    "IMAGE_ENCODERS",
    "TEXT_ENCODERS",
    "ClipResNetConfig",
    "ClipTextConfig",
    "ClipVitConfig",
    "DinoV3Config",
    "DualEncoder",
    "DualSpec",
    "Encoded",
    "ImageSizes",
    "Numerics",
    "build",
]


class ImageSizes(Protocol):
    """What the sizes of any image tower say of it, so that nothing else has to know which tower it is."""

    @property
    def depth(self) -> int:
        """Blocks."""
        ...

    @property
    def pooled_width(self) -> int: ...

    @property
    def projection_bias(self) -> bool: ...

    def wrong_size(self, image_size: int) -> str:
        """Why images of this side do not go in, as in "data.image_size = 225: ..."; empty where they do."""
        ...

    def count(self, tally: Tally, *, batch: int, image_size: int) -> bool:
        """Tells `tally` every product of the forward pass; whether the pooled output's gradient is wanted."""
        ...


# name -> (module, sizes)
IMAGE_ENCODERS: dict[str, tuple[Callable[..., nnx.Module], Any]] = {
    **{name: (DinoV3, sizes) for name, sizes in DINOV3_SIZES.items()},
    **{name: (ClipVit, sizes) for name, sizes in CLIP_VIT_SIZES.items()},
    **{name: (ModifiedResNet, sizes) for name, sizes in CLIP_RESNET_SIZES.items()},
}
TEXT_ENCODERS: dict[str, tuple[Callable[..., nnx.Module], Any]] = {
    name: (ClipText, sizes) for name, sizes in CLIP_TEXT_SIZES.items()
}


@dataclasses.dataclass(frozen=True)
class DualSpec:
    """Everything that decides a model's shapes, in plain values: what a model folder's card holds."""

    image: str = "dinov3_vitb16"
    text: str = "clip_text_b"
    context: int = 512
    embed_dim: int = 512
    temperature: float = 0.07

    @property
    def image_arch(self) -> ImageSizes:
        return IMAGE_ENCODERS[self.image][1]

    @property
    def text_arch(self) -> Any:
        return dataclasses.replace(TEXT_ENCODERS[self.text][1], context=self.context)


def build(spec: DualSpec, numerics: Numerics, rngs: nnx.Rngs) -> DualEncoder:
    """A freshly initialised model of the named towers."""
    return DualEncoder(
        IMAGE_ENCODERS[spec.image][0](spec.image_arch, numerics, rngs),
        TEXT_ENCODERS[spec.text][0](spec.text_arch, numerics, rngs),
        image_width=spec.image_arch.pooled_width,
        text_width=spec.text_arch.width,
        embed_dim=spec.embed_dim,
        image_bias=spec.image_arch.projection_bias,
        temperature=spec.temperature,
        numerics=numerics,
        rngs=rngs,
    )
