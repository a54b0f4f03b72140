"""sha256 of published files by name: a file of such a name that has another is damaged, or is not what it says."""

from __future__ import annotations

import re
from pathlib import Path

from hybridclip_jax.data.store import file_sha256
from hybridclip_jax.errors import UserError

# OpenAI publishes each digest in the address of its file (openai/CLIP, clip.py).
WHOLE = {
    "ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16.pt": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14-336px.pt": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    "RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN50x4.pt": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
}
# Meta ends a file's name with the first eight digits of its digest.
_META = re.compile(r"dinov3_vit\w*_pretrain\w*-([0-9a-f]{8})\.pth")


def checked_sha256(path: Path) -> str:
    """The file's sha256. Raises UserError where its published name promises another."""
    digest = file_sha256(path)
    meta = _META.fullmatch(path.name)
    promised = WHOLE.get(path.name, meta[1] if meta else "")
    if not digest.startswith(promised):
        raise UserError(
            f"{path}: sha256 begins with {digest[:8]}, the published file of that name has {promised[:8]}; "
            "download it again, or rename it if it is another model"
        )
    return digest
