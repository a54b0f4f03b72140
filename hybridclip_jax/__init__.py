"""hybridclip_jax: chest X-rays and reports on disk to a zero-shot classifier that can be defended.

import hybridclip_jax as hc
model = hc.load("runs/x/best")
z = model.encode_image(images)
scores = model.zero_shot(images, ["Edema", "Pleural Effusion"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridclip_jax.inference import LoadedModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(folder: Any, batch_size: int = 64) -> LoadedModel:
    """The model of a model folder or of a run's chosen step; see hybridclip_jax.inference.LoadedModel."""
    from hybridclip_jax import inference  # here: commands that need no model start without jax

    return inference.load(folder, batch_size)
