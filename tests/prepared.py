"""What the tests of dataset readers share: `prepare` in this process, small pictures, and a look into the store."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hybridclip_jax import cli
from hybridclip_jax.data import pixels
from hybridclip_jax.data.store import Store, read_manifest
from hybridclip_jax.errors import run_or_exit


def prepare(name: str, *arguments: object) -> int:
    """The exit code of `hybridclip prepare --format NAME ...`."""
    parsed = cli.parse(["prepare", "--format", name, *map(str, arguments)])
    return run_or_exit(lambda: parsed.run(parsed))


def picture(seed: int, mode: str = "L", size: tuple[int, int] = (24, 20)) -> PIL.Image.Image:
    """Noise, another for each seed; `size` is width, height."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))


def encoded(image: PIL.Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def save(path: Path, seed: int, mode: str = "L") -> Path:
    """Writes `picture(seed)` as an image file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    path.write_bytes(encoded(picture(seed, mode), kind))
    return path


def write(path: Path, lines: Iterable[str]) -> Path:
    """Writes a text file with these lines, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def stored(image: PIL.Image.Image, channels: int = 1) -> np.ndarray:
    """What a store holds of an image: uint8 [320, 320, C]."""
    return pixels.store_pixels(image, side=320, channels=channels, resize="pad")


def split(out: Path, name: str = "all") -> Store:
    """One split of a store."""
    return Store.open(f"{out}:{name}")


def skipped(out: Path) -> dict[str, int]:
    """How many rows were left out, by reason."""
    counts: dict[str, int] = read_manifest(out)[0]["source"]["skipped"]
    return counts


def notes(out: Path) -> dict[str, str]:
    """How the source was read, by the manifest."""
    said: dict[str, str] = read_manifest(out)[0]["source"]["notes"]
    return said


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that an error is."""
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    return err
