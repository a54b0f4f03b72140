"""Pictures, copies of them as people make them, and stores prepared from both."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from hybridclip_jax import cli
from hybridclip_jax.data.phantom import phantom
from hybridclip_jax.data.phantom_findings import DIFFICULTIES
from hybridclip_jax.data.store import SIDE


@functools.cache
def chest(index: int) -> np.ndarray:
    """A drawn chest, uint8 [320, 320]; each index another patient."""
    return phantom(17, 3 * index, DIFFICULTIES["easy"])[0]


@functools.cache
def clouds(seed: int) -> np.ndarray:
    """Noise whose power falls with the cube of the frequency, uint8 [320, 320]; two seeds have nothing in common."""
    white = np.fft.rfft2(np.random.default_rng(seed).standard_normal((SIDE, SIDE)))
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    values = np.fft.irfft2(white / (frequency + 0.01) ** 1.5, s=(SIDE, SIDE))
    return ((values - values.min()) / np.ptp(values) * 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 50) -> np.ndarray:
    """Encoded again, and brought to 320 x 320 where it is not."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file).resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS))


def crop(image: np.ndarray, top: float, left: float, height: float = 0.9, width: float = 0.9) -> np.ndarray:
    """A part of the image, in shares of its side, enlarged to the whole."""
    y, x = round(top * SIDE), round(left * SIDE)
    part = image[y : y + round(height * SIDE), x : x + round(width * SIDE)]
    return np.asarray(PIL.Image.fromarray(part).resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS))


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moved by pixels, zeros where nothing was."""
    out = np.zeros_like(image)
    inner = image[max(-down, 0) : SIDE - max(down, 0), max(-right, 0) : SIDE - max(right, 0)]
    out[max(down, 0) : SIDE + min(down, 0), max(right, 0) : SIDE + min(right, 0)] = inner
    return out


def exposed(image: np.ndarray, contrast: float, brightness: float) -> np.ndarray:
    values = (image.astype(float) - 128) * contrast + 128 + brightness
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def prepared(folder: Path, rows: Sequence[Mapping[str, object]], *flags: str) -> Path:
    """A store made by `hybridclip prepare --format csv` of rows with an array under "image" and other cells."""
    folder.mkdir(parents=True)
    cells = []
    for row, values in enumerate(rows, start=1):
        PIL.Image.fromarray(values["image"]).save(folder / f"{row}.png")  # type: ignore[arg-type]
        cells.append({**values, "image": f"{row}.png"})
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)
    store = folder / "store"
    arguments = ["prepare", "--format", "csv", "--source", str(folder / "table.csv"), "--namespace", "hospital"]
    parsed = cli.parse([*arguments, *flags, "--out", str(store)])
    assert not parsed.run(parsed)
    return store
