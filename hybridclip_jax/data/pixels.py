"""From a file to the pixels of a store, by stated rules that the manifest repeats.

Decoded by content, never by extension, DICOM too (see `dicom_levels`); first frame only; EXIF orientation applied;
alpha dropped; palettes and CMYK resolved to RGB; more than 8 bits a pixel scaled from the image's own minimum and
maximum to 0..255 (a constant image becomes 0). Made square by Lanczos, and padded, as CheXzero does.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps

from hybridclip_jax.data import dicom
from hybridclip_jax.data.study import RecordError

MAX_PIXELS = 64_000_000
# Named, because Pillow would also hand a file to programs outside Python (EPS to Ghostscript).
FILE_TYPES = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
RESIZE = ("pad", "crop", "stretch")
# Read back by people who ask why two stores differ.
RULES = {
    "resample": "Lanczos (Pillow)",
    "more_than_8_bits": "minimum to maximum of the image becomes 0 to 255",
    "alpha": "dropped",
    "exif_orientation": "applied",
    "grey": "ITU-R 601 luma",
    "polarity": "as in the file; TIFF white-is-zero inverted; DICOM by its header",
    "frames": "first",
    "dicom": "modality LUT or rescale, VOI LUT or first window, inversion of MONOCHROME1, 8 bits; without a usable"
    " window minimum to maximum becomes 0 to 255 (8 bits or fewer stored: the range of the bits); padding becomes 0",
}

_STRIP = 1 << 20  # pixels
_TIFF_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
_EXIF_ORIENTATION = 0x0112
_TOO_LARGE = f"image larger than {MAX_PIXELS // 1_000_000} megapixels"
_DAMAGED = "truncated or damaged image"
_EMPTY = "empty image file"
_FORBIDDEN = "image file may not be read (permissions)"


def open_image(path: Path) -> PIL.Image.Image:
    """The whole first frame of an image file, decoded, upright. A DICOM file comes in mode L or RGB.

    Raises:
        RecordError: the file is missing, unreadable, empty, no image, above 64 megapixels (known from the
            header, before any pixel is decoded), truncated or damaged. The reason names the fault and never
            the file.
    """
    try:
        size = path.stat().st_size
    except PermissionError as error:
        raise RecordError(_FORBIDDEN) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise RecordError("missing image file", unreadable=False) from error
    if path.is_dir():
        raise RecordError("a folder where an image file should be", unreadable=False)
    if size == 0:
        raise RecordError(_EMPTY)
    try:
        with path.open("rb") as file:
            return _decode(file)
    except PermissionError as error:
        raise RecordError(_FORBIDDEN) from error
    except OSError as error:
        raise RecordError("image file cannot be read (disk)") from error


def open_bytes(raw: bytes) -> PIL.Image.Image:
    """As `open_image`, of a file's bytes that are in memory already."""
    if not raw:
        raise RecordError(_EMPTY)
    return _decode(io.BytesIO(raw))


def _decode(file: BinaryIO) -> PIL.Image.Image:
    head = file.read(dicom.HEAD_BYTES)
    file.seek(0)
    if dicom.has_preamble(head):
        return dicom.decode(file, MAX_PIXELS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own cap is below Pillow's
            image = PIL.Image.open(file, formats=FILE_TYPES)
    except PIL.UnidentifiedImageError as error:
        raise RecordError("not an image of a known type") from error
    except PIL.Image.DecompressionBombError as error:
        raise RecordError(_TOO_LARGE) from error
    except Exception as error:  # a decoder given hostile bytes raises anything, struct.error to RecursionError
        raise RecordError(_DAMAGED) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise RecordError(_TOO_LARGE)
        if not _is_covered(image):
            raise RecordError(_DAMAGED)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
        except Exception as error:  # as above
            raise RecordError(_DAMAGED) from error
        return _upright(image)


def _is_covered(image: PIL.Image.Image) -> bool:
    """Whether the strips or tiles of a TIFF make up the whole picture; Pillow leaves black what they do not cover."""
    if image.format != "TIFF":
        return True
    boxes = [extents for _, extents, _, _ in getattr(image, "tile", ()) if extents is not None]
    return sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes) >= image.width * image.height


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    tiff_tags = getattr(image, "tag_v2", None)
    white_is_zero = tiff_tags is not None and tiff_tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    orientation = 1
    with contextlib.suppress(Exception):  # a damaged EXIF block says nothing about the pixels
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if white_is_zero and _is_wide(image):  # Pillow inverts the 8-bit ones itself
        values = np.asarray(image).astype(np.float32)
        image = PIL.Image.fromarray(np.negative(values, out=values))
    transpose = _TRANSPOSE.get(orientation)
    return image.transpose(transpose) if transpose is not None else image


_TRANSPOSE = {  # EXIF 2.3 table of orientations
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def _is_wide(image: PIL.Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def to_uint8(image: PIL.Image.Image, channels: int) -> PIL.Image.Image:
    """The same picture in mode L (`channels` 1) or RGB (3).

    Raises:
        RecordError: values that are not finite, or a colour mode that has no rule.
    """
    if _is_wide(image):
        image = _scaled_by_range(image)
    if image.mode == "L" and channels == 1:
        return image
    try:
        if image.mode in ("PA", "LA", "La", "RGBa"):
            image = image.convert("RGBA")
        if image.mode != "RGB":
            image = image.convert("RGB")
    except ValueError as error:
        raise RecordError("unsupported colour mode") from error
    return image if channels == 3 else image.convert("L")


def _scaled_by_range(image: PIL.Image.Image) -> PIL.Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise RecordError("pixel values that are not finite")
    scale = 255.0 / (high - low) if high > low else 0.0
    out = np.empty(values.shape, np.uint8)
    step = max(1, _STRIP // values.shape[1])
    for top in range(0, values.shape[0], step):  # the whole in float64 would be half a gigabyte
        out[top : top + step] = np.rint((values[top : top + step].astype(np.float64) - low) * scale)
    return PIL.Image.fromarray(out)


def to_square(image: PIL.Image.Image, side: int, resize: str) -> PIL.Image.Image:
    """`image` (mode L or RGB) as side x side pixels, Lanczos.

    `pad`: the longer side becomes `side`, zeros fill the rest, picture in the middle. `crop`: the largest
    centred square. `stretch`: aspect not kept.
    """
    lanczos = PIL.Image.Resampling.LANCZOS
    width, height = image.size
    if resize == "stretch":
        return image.resize((side, side), lanczos)
    if resize == "crop":
        shorter = min(width, height)
        left, top = (width - shorter) / 2, (height - shorter) / 2
        return image.resize((side, side), lanczos, box=(left, top, left + shorter, top + shorter))
    # CheXzero's arithmetic to the letter, so that its stores and ours hold the same pixels: sides are cut to whole
    # pixels, which for some lengths (77, 303) makes even the longer one a pixel less than `side`.
    ratio = side / max(width, height)
    inner = (max(1, int(width * ratio)), max(1, int(height * ratio)))
    small = image.resize(inner, lanczos)
    if inner == (side, side):
        return small
    square = PIL.Image.new(image.mode, (side, side))
    square.paste(small, ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return square


def store_pixels(image: PIL.Image.Image, *, side: int, channels: int, resize: str) -> np.ndarray:
    """uint8 [side, side, channels] of a decoded image; raises RecordError as `to_uint8` does."""
    if image.width == 0 or image.height == 0:
        raise RecordError("image without pixels")
    square = to_square(to_uint8(image, channels), side, resize)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).reshape(side, side, channels))


def lazy(path: Path) -> functools.partial[PIL.Image.Image]:
    """A picklable `load_image` for a file."""
    return functools.partial(open_image, path)
