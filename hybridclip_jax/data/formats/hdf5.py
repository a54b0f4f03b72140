"""The images in an HDF5 file: one dataset [N, H, W] or [N, H, W, 1 or 3] with values from 0 to 255.

Legend: N images, H x W pixels, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from hybridclip_jax.data import pixels
from hybridclip_jax.data.study import RecordError
from hybridclip_jax.errors import UserError

_DATASET = "cxr"  # CheXzero's name
_MOST_CACHED = 512 << 20  # bytes a process
_LARGEST_CHUNK = 1 << 30  # bytes; the largest in use, 1000 x 320 x 320 of float32, has 0.4 of it
_MANY_ROWS = 16  # of one chunk: what a worker reads at a time
_SIZES = re.compile(r"eof = (\d+).*stored_eof = (\d+)")
_ELSEWHERE = "keeps its images in other files: give the file that has them"


@dataclasses.dataclass(frozen=True)
class Images:
    """Where the images are and how they are stored."""

    path: Path
    dataset: str
    shape: tuple[int, ...]  # N, H, W[, C]
    dtype: str
    chunk_rows: int  # rows that are read and unpacked together; 1 when rows lie apart
    chunk_bytes: int

    @property
    def cost_note(self) -> str:
        """What reading a row costs, "" when nothing out of the ordinary."""
        notes = []
        if self.chunk_rows > _MANY_ROWS:
            notes.append(
                f"reading one row unpacks {self.chunk_rows} rows ({self.chunk_bytes / 1e6:.0f} MB), in every worker"
            )
        if self.dtype.startswith("float"):
            notes.append(f"{self.dtype} holds 0 to 255 in {np.dtype(self.dtype).itemsize} bytes where one would do")
        return "; ".join(notes)

    def load(self, row: int) -> functools.partial[PIL.Image.Image]:
        """A picklable `load_image` for row `row`, counted from 0."""
        cache = min(self.chunk_bytes, _MOST_CACHED)
        return functools.partial(_load_row, self.path, self.dataset, cache, row)


def find_images(path: Path) -> Images:
    """The dataset `cxr` of a file, or else its only one with 3 or 4 dimensions; nothing is read but the headers.

    Raises:
        UserError: the file is missing, truncated or no HDF5, has no such dataset of numbers, or one that only an
            attack has: images of more than 64 megapixels, chunks of more than 1 GB.
    """
    import h5py

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; give --source the HDF5 file, such as cxr.h5")
    try:
        with h5py.File(path, "r", locking=False) as file:
            name = _find_dataset(path, file)
            return _describe(path, name, file[name])
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error


def _find_dataset(path: Path, file: Any) -> str:
    import h5py

    links = {name: file.get(name, getlink=True) for name in file}
    if any(isinstance(link, h5py.ExternalLink) for link in links.values()):
        raise UserError(f"{path} {_ELSEWHERE}")
    shapes = {name: item.shape for name in file if isinstance(item := file[name], h5py.Dataset) and item.shape}
    if _DATASET in shapes:
        return _DATASET
    found = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items()) or "nothing at its top"
    raise UserError(f"{path} has no dataset {_DATASET!r} of images [N, H, W]. It has {listed}")


def _describe(path: Path, name: str, dataset: Any) -> Images:
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{path} {_ELSEWHERE}")
    shape = dataset.shape
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))) or min(shape) == 0:
        raise UserError(f"{path}: {name!r} is {list(shape)}, not images [N, H, W] or [N, H, W, 3]")
    if dataset.dtype.kind not in "uif":
        raise UserError(f"{path}: {name!r} holds {dataset.dtype}, not numbers from 0 to 255")
    if shape[1] * shape[2] > pixels.MAX_PIXELS:
        raise UserError(f"{path}: {name!r} has images of more than {pixels.MAX_PIXELS // 1_000_000} megapixels")
    if dataset.chunks is not None and math.prod(dataset.chunks) * dataset.dtype.itemsize > _LARGEST_CHUNK:
        raise UserError(
            f"{path}: {name!r} is stored in chunks {list(dataset.chunks)} of more than 1 GB, which every worker would"
            " have to unpack whole: store it anew in smaller ones (h5repack)"
        )
    rows = dataset.chunks[0] if dataset.chunks is not None else 1
    # A row cut into several chunks needs them all at hand.
    return Images(path, name, shape, str(dataset.dtype), rows, rows * math.prod(shape[1:]) * dataset.dtype.itemsize)


def _unreadable(path: Path, error: Exception) -> UserError:
    sizes = _SIZES.search(str(error))
    if sizes:
        return UserError(f"{path} is truncated: it has {sizes[1]} of {sizes[2]} bytes: copy it again")
    if "signature" in str(error):
        return UserError(f"{path} is not an HDF5 file")
    return UserError(f"{path} is damaged, or an HDF5 file of an unknown kind: copy it again")


@functools.lru_cache(maxsize=2)
def _dataset(path: Path, name: str, cache: int) -> Any:
    import h5py  # kept open: one handle a process, for opening costs more than a row

    return h5py.File(path, "r", locking=False, rdcc_nbytes=max(cache, 1 << 20))[name]


def _load_row(path: Path, name: str, cache: int, row: int) -> PIL.Image.Image:
    """Row `row` as a picture of mode L or RGB; values are rounded to whole levels.

    Raises:
        RecordError: damaged, all zeros (how CheXzero leaves an image it could not read), not finite, or values
            that are not 0 to 255.
    """
    try:
        values = _dataset(path, name, cache)[row]
    except (OSError, RuntimeError) as error:
        raise RecordError("damaged row of the HDF5 file") from error
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise RecordError("pixel values that are not finite")
    if low == high == 0:
        raise RecordError("all-zero image row")
    if low < 0 or high > 255:
        raise RecordError("pixel values outside 0 to 255")
    if high <= 1 and values.dtype.kind == "f":
        raise RecordError("pixel values from 0 to 1, not 0 to 255")
    levels = np.rint(values).astype(np.uint8)
    return PIL.Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels)
