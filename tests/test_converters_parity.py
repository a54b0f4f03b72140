"""Block by block through the file: mild and peaked attention, float32 and float64, a tiny tower and B/16 itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import parity
import pytest
import torch
from test_converters import convert, images, small_sizes, to_torch, worst, write
from test_models import (
    CLIP_TEXT_SIZES,
    DINO,
    ENDS,
    TEXT,
    ClipText,
    DinoV3Config,
    dino,
    dino_params,
    dino_reference,
    ids_of,
    text,
    text_params,
    text_reference,
    torch_dino,
    torch_text,
)

from hybridclip_jax import modelfolder, models

__all__ = ["small_sizes"]  # the fixture that puts the small towers into the tables


def read(folder: Path, tower: str) -> dict[str, np.ndarray]:
    """A converted tower's parameters under the names they have within it."""
    params, _ = modelfolder.load(folder)
    return {name.removeprefix(f"{tower}/"): v for name, v in params.items() if name.startswith(f"{tower}/")}


@pytest.mark.parametrize("init", parity.TOLERANCE)
@pytest.mark.parametrize("layout", ["hub", "meta", "timm"])
def test_a_dinov3_file_gives_every_block_of_torch(layout: str, init: str, tmp_path: Path) -> None:
    convert(write(layout, torch_dino(DINO, init), tmp_path / "source"), tmp_path / "out")
    params = read(tmp_path / "out", "image")
    by_hand = dino_params(torch_dino(DINO, init))
    assert params.keys() == by_hand.keys()
    assert all(np.array_equal(params[name], by_hand[name]) for name in by_hand), "float64 parity is test_models'"
    with jax.default_matmul_precision("highest"):
        found = parity.worst(dino(DINO)(params, images()), dino_reference(DINO, init, images()))
    print(f"{layout} {init}: {', '.join(f'{d:.1e}' for d in found)}")
    assert max(found) < parity.TOLERANCE[init]


@pytest.mark.parametrize("init", parity.TOLERANCE)
def test_a_clip_text_file_gives_every_block_of_torch(
    init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLIP_TEXT_SIZES, "test_wide", TEXT)
    monkeypatch.setitem(models.TEXT_ENCODERS, "test_wide", (ClipText, TEXT))
    torch_text(TEXT, init).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out")
    params, (by_hand, projection) = read(tmp_path / "out", "text"), text_params(torch_text(TEXT, init))
    assert all(np.array_equal(params[name], by_hand[name]) for name in by_hand)
    assert np.array_equal(read(tmp_path / "out", "text_projection")["kernel"], projection)
    for case in ENDS.values():
        with jax.default_matmul_precision("highest"):
            *found, pooled = text(TEXT)(params, ids_of(*case))
        far = parity.worst([*found, pooled @ projection], text_reference(TEXT, init, ids_of(*case)))
        assert max(far) < parity.TOLERANCE[init]


@pytest.mark.slow
def test_a_full_size_b16_file_equals_torch(tmp_path: Path) -> None:
    model: Any = torch_dino(DinoV3Config(), "mild")
    found = convert(write("hub", model, tmp_path / "source"), tmp_path / "out")
    x = images(224, 224)
    with torch.no_grad():
        wanted = model(to_torch(x)).pooler_output.numpy()
    assert found.card.architecture == {"image": "dinov3_vitb16"}
    assert worst(found.image_features(x), wanted) < parity.TOLERANCE["mild"]
