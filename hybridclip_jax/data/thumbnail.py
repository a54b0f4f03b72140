"""Small pictures of a store's images, as text that a page can hold."""

from __future__ import annotations

import base64
import io

import PIL.Image

from hybridclip_jax.data.store import Store

SIDE = 128  # pixels


def data_url(store: Store, row: int) -> str:
    """A JPEG of SIDE x SIDE as a data: URL. Raises UserError where the record is damaged."""
    pixels = store.image(row)
    image = PIL.Image.fromarray(pixels[..., 0] if store.channels == 1 else pixels)
    file = io.BytesIO()
    image.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
