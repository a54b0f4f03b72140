"""How a store keeps its pictures: `raw` pixels that are mapped into memory, or `jpeg`, about three times smaller.

Both number their files alike, give each record by its place in its file, and take equal pixels to equal bytes
(of one Pillow version). JPEG has quality 95 and full colour resolution; what it loses is small and is lost once,
in `prepare`. A file is filled record by record and then sealed; a filling file can be cut back to any record.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import PIL.Image

SIDE = 320
JPEG_QUALITY = 95
_HEADER_BYTES = 128
# One record a chunk, for reading in any order; JPEG does not compress again.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READ_BUFFER = 1 << 16


class Shard(Protocol):
    """One sealed file of pictures, open for reading in any order."""

    def stored(self, place: int) -> bytes:
        """The record's bytes as they are kept."""
        ...

    def image(self, place: int) -> np.ndarray:
        """uint8 [320, 320, C]."""
        ...


class Encoding(Protocol):
    """One way to keep pictures."""

    suffix: str  # of a sealed file
    filling_suffix: str  # of one that is being filled; where it is the same, sealing leaves the file in place
    head_bytes: int  # left free at the start of a filling file
    card: ClassVar[dict[str, object]]  # what the manifest says of it

    def encode(self, pixels: np.ndarray) -> bytes:
        """The bytes to keep of uint8 [320, 320, C]."""
        ...

    def seal(self, filling: Path, sizes: Sequence[int], channels: int, out: Path) -> None:
        """Makes of records of `sizes` bytes a file that `open` reads; may be done again after it was broken off."""
        ...

    def open(self, path: Path, channels: int) -> Shard:
        """Raises OSError or ValueError for a file that is no such file, or damaged where its records are listed."""
        ...


class _RawShard:
    def __init__(self, path: Path, channels: int) -> None:
        self._pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        # Grey pixels would spread over three channels without a word.
        if self._pixels.shape[1:] != (SIDE, SIDE, channels) or self._pixels.dtype != np.uint8:
            raise ValueError(f"{self._pixels.dtype} {self._pixels.shape} is not uint8 with {channels} channels")

    def stored(self, place: int) -> bytes:
        return self._pixels[place].tobytes()

    def image(self, place: int) -> np.ndarray:
        return self._pixels[place]


class _Raw:
    suffix = filling_suffix = ".npy"
    head_bytes = _HEADER_BYTES
    card: ClassVar[dict[str, object]] = {}

    def encode(self, pixels: np.ndarray) -> bytes:
        return pixels.tobytes()

    def seal(self, filling: Path, sizes: Sequence[int], channels: int, out: Path) -> None:
        header = io.BytesIO()
        shape = (len(sizes), SIDE, SIDE, channels)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        assert header.tell() == _HEADER_BYTES  # numpy pads headers to 64 bytes; this one fits in two of them
        with filling.open("r+b") as file:
            file.write(header.getvalue())
            file.flush()
            os.fsync(file.fileno())

    def open(self, path: Path, channels: int) -> Shard:
        return _RawShard(path, channels)


class _JpegShard:
    def __init__(self, path: Path, channels: int) -> None:
        self._path, self._channels = path, channels
        self._reader = self._open()

    def _open(self) -> Any:
        from array_record.python import array_record_module  # here, because only such stores need it

        try:
            reader = array_record_module.ArrayRecordReader(
                str(self._path), _READER_OPTIONS, file_reader_buffer_size=_READ_BUFFER
            )
            reader.num_records()  # asked, because a file that is not there or no such file is found out only now
        except RuntimeError as error:
            raise ValueError("no ArrayRecord file") from error
        return reader

    def stored(self, place: int) -> bytes:
        try:
            return bytes(self._reader.read([place])[0])
        except RuntimeError as error:
            self._reader = self._open()  # a reader that met damage gives nothing more
            raise ValueError("damaged record") from error

    def image(self, place: int) -> np.ndarray:
        with PIL.Image.open(io.BytesIO(self.stored(place)), formats=("JPEG",)) as picture:
            pixels = np.asarray(picture)
        return pixels.reshape(SIDE, SIDE, self._channels)


class _Jpeg:
    suffix, filling_suffix = ".array_record", ".jpegs"
    head_bytes = 0
    card: ClassVar[dict[str, object]] = {"quality": JPEG_QUALITY, "chroma_subsampling": "none (4:4:4)"}

    def encode(self, pixels: np.ndarray) -> bytes:
        picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return out.getvalue()

    def seal(self, filling: Path, sizes: Sequence[int], channels: int, out: Path) -> None:
        from array_record.python import array_record_module

        out.unlink(missing_ok=True)
        try:
            writer = array_record_module.ArrayRecordWriter(str(out), _WRITER_OPTIONS)
            with filling.open("rb") as file:
                for size in sizes:
                    writer.write(file.read(size))
            writer.close()
        except RuntimeError as error:  # the library has one error for everything, a full disk among them
            raise OSError(f"{out.name} could not be written, most often for want of space") from error
        with out.open("rb") as sealed:
            os.fsync(sealed.fileno())

    def open(self, path: Path, channels: int) -> Shard:
        return _JpegShard(path, channels)


ENCODINGS: dict[str, Encoding] = {"raw": _Raw(), "jpeg": _Jpeg()}


def shard_name(index: int, suffix: str) -> str:
    """File name of the `index`-th file of pictures."""
    return f"images-{index:05d}{suffix}"


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def split_records(file: Any, sizes: Sequence[int]) -> Iterator[bytes]:
    """The records of a filling file, one after the other, as far as they are there whole."""
    for size in sizes:
        data = file.read(size)
        if len(data) < size:
            return
        yield data
