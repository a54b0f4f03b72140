"""A DICOM object's first frame as an 8-bit picture.

Grey frames go through `dicom_levels`. Palettes are applied, YBR becomes RGB, colours of more than 8 bits are scaled by
the range of the stored bits. Not read: overlays, ICC profiles, and the functional groups of enhanced multi-frame
objects (where these keep window and rescale).

pydicom parses and decodes; it is imported on first use. Its warnings and log lines quote header values, so neither
is let through.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image

from hybridclip_jax.data import dicom_frames, dicom_levels
from hybridclip_jax.data.study import RecordError

HEAD_BYTES = 132
_META_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"  # the element that tells the length of the meta information
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_HEAD_SEARCHED = 1 << 16  # bytes; meta information has some hundred

# Objects whose pixels are no picture to look at: masks, doses, measured quantities.
_NO_PICTURES = (
    "Segmentation Storage",
    "Label Map Segmentation Storage",
    "Height Map Segmentation Storage",
    "RT Dose Storage",
    "Parametric Map Storage",
)
_MAX_FRAME = 256_000_000  # bytes, unpacked
_MAX_INFLATED = 150_000_000  # bytes
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_UNKNOWN = "of unknown kind"
_PALETTE = "PALETTE COLOR"
_DAMAGED_HEADER = "damaged DICOM header"
_DAMAGED = "truncated or damaged DICOM image"
_PALETTE_TAGS = (
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)
_OBJECT_TAGS = ("SOPClassUID", "Rows", "Columns")  # what `_refuse_no_picture` asks for
_TAGS = (
    *_OBJECT_TAGS,
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PresentationLUTShape",
    *_PALETTE_TAGS,
)


def has_preamble(head: bytes) -> bool:
    """Whether a file that begins with these HEAD_BYTES is DICOM in the form of the standard."""
    return head[128:132] == b"DICM"


def may_be_bare(head: bytes) -> bool:
    """Whether a file that begins so may be DICOM without preamble: with an element of group 0002 or 0008."""
    return head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and not has_preamble(head)


def read_fields(file: BinaryIO, fields: Sequence[str], *, bare: bool = False) -> dict[str, str]:
    """The header's elements of these keywords as stripped text, "" where there is none. No pixel is touched.

    `file` stands at its beginning; `bare`: it has no preamble.

    Raises:
        RecordError: damaged, not DICOM, or an object that `decode` refuses for what it is.
    """
    try:
        with _quiet_pydicom():
            file, bare = _inflated(file, bare)
            header = _header(file, (*_OBJECT_TAGS, "SpecificCharacterSet", *fields), bare)
            if bare and _kind(header) == _UNKNOWN:  # then it only began as an object does
                raise RecordError("not a DICOM file", unreadable=False)
            _refuse_no_picture(header)
            return {field: _text(header, field) for field in fields}
    except RecordError:
        raise
    except Exception as error:  # hostile bytes make a parser raise anything, struct.error to RecursionError
        raise RecordError(_DAMAGED_HEADER) from error


def decode(file: BinaryIO, max_pixels: int, *, bare: bool = False) -> PIL.Image.Image:
    """The first frame, mode L or RGB. `file` stands at its beginning; `bare`: it has no preamble.

    Raises:
        RecordError: no picture, one above `max_pixels` (known from the header, before any pixel is decoded),
            truncated, damaged, or in a transfer syntax that has no decoder here.
    """
    try:
        with _quiet_pydicom():
            return _decode(file, max_pixels, bare)
    except RecordError:
        raise
    except Exception as error:  # as above
        raise RecordError(_DAMAGED) from error


def open_bare(path: Path, max_pixels: int) -> PIL.Image.Image:
    """`decode` of a file without preamble; no other reader takes those, as nothing but a guess says what they are."""
    try:
        with path.open("rb") as file:
            return decode(file, max_pixels, bare=True)
    except OSError as error:
        raise RecordError("image file cannot be read (disk)") from error


@contextlib.contextmanager
def _quiet_pydicom() -> Iterator[None]:
    """Keeps the library silent: what it would say quotes header values, which name patients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import pydicom  # noqa: F401  (its import sets the logger's level)
        except ImportError as error:
            raise RecordError("DICOM file, and pydicom is not installed") from error
        logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
        yield


def _decode(file: BinaryIO, max_pixels: int, bare: bool) -> PIL.Image.Image:
    file, bare = _inflated(file, bare)
    header = _header(file, _TAGS, bare)
    _refuse_no_picture(header)
    rows, columns = int(header.Rows), int(header.Columns)
    if rows * columns > max_pixels:
        raise RecordError(f"image larger than {max_pixels // 1_000_000} megapixels")
    samples, photometric = int(header.SamplesPerPixel), str(header.PhotometricInterpretation)
    if rows * columns * samples * int(header.BitsAllocated) > 8 * _MAX_FRAME:
        raise RecordError(f"image larger than {_MAX_FRAME // 1_000_000} MB")
    if (samples, photometric in _COLOURS) not in ((1, False), (3, True)):
        raise RecordError("DICOM image whose samples do not fit its photometric interpretation")
    if samples == 1 and photometric != _PALETTE and photometric not in dicom_levels.PHOTOMETRIC:
        raise RecordError("DICOM photometric interpretation that has no rule")
    syntax = dicom_frames.decodable_syntax(header)
    stored, photometric = dicom_frames.first_frame(file, header, syntax)
    if stored.shape[:2] != (rows, columns):
        raise RecordError(_DAMAGED)
    if samples == 3:
        return _colours(stored, photometric, int(header.BitsStored))
    if photometric == _PALETTE:
        return _palette_applied(stored, header)
    return PIL.Image.fromarray(dicom_levels.grey_levels(stored, header))


def _refuse_no_picture(header: Any) -> None:
    kind = _kind(header)
    if kind in _NO_PICTURES:
        raise RecordError(f"DICOM object that is no picture ({kind})", unreadable=False)
    if header.get("Rows") is None and header.get("Columns") is None:
        if (kind == _UNKNOWN and header.get("SOPClassUID") is None) or "Image" in kind:
            raise RecordError(_DAMAGED_HEADER)
        raise RecordError(f"DICOM object without an image ({kind})", unreadable=False)


def _text(header: Any, field: str) -> str:
    value = header.get(field)
    return "" if value is None else str(value).replace("\0", "").strip()


def _header(file: BinaryIO, tags: Sequence[str], bare: bool) -> Any:
    import pydicom

    return pydicom.dcmread(file, stop_before_pixels=True, force=bare, specific_tags=list(tags))


def _kind(header: Any) -> str:
    """The name of the SOP class: from the standard's list, never what the header says."""
    from pydicom.uid import UID_dictionary

    uid = header.get("SOPClassUID") or dicom_frames.meta(header, "MediaStorageSOPClassUID")
    return str(uid.name) if uid in UID_dictionary and "Storage" in uid.name else _UNKNOWN


def _inflated(file: BinaryIO, bare: bool) -> tuple[BinaryIO, bool]:
    """The file itself, or, of one compressed whole, its unpacked object, which has no preamble; and whether bare."""
    head = file.read(_HEAD_SEARCHED)
    file.seek(0)
    if _DEFLATED not in head:
        return file, bare
    # pydicom would unpack without a limit.
    start = 0 if bare else HEAD_BYTES
    meta_end = start + 12 + int.from_bytes(head[start + 8 : start + 12], "little")
    if head[start : start + 8] != _META_LENGTH or _DEFLATED not in head[:meta_end]:
        raise RecordError(_DAMAGED_HEADER)
    file.seek(meta_end)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacked = inflater.decompress(file.read(_MAX_INFLATED), _MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise RecordError(f"DICOM object that unpacks to more than {_MAX_INFLATED // 1_000_000} MB")
    return io.BytesIO(unpacked), True


def _colours(stored: np.ndarray, photometric: str, bits: int) -> PIL.Image.Image:
    if bits > 8:
        stored = (stored >> (bits - 8)).clip(0, 255)
    values = np.ascontiguousarray(stored, dtype=np.uint8)
    if photometric.startswith("YBR"):
        return PIL.Image.frombytes("YCbCr", (values.shape[1], values.shape[0]), values.tobytes()).convert("RGB")
    return PIL.Image.fromarray(values)


def _palette_applied(stored: np.ndarray, header: Any) -> PIL.Image.Image:
    from pydicom.pixels import apply_color_lut

    if stored.dtype.itemsize > 2:
        raise RecordError(_DAMAGED)
    every = dicom_levels.every_value(stored.dtype)
    colours = apply_color_lut(every, header)[:, :3]
    if colours.dtype.itemsize > 1 and colours.max() > 255:  # some writers put 8-bit entries in 16-bit words
        colours = colours >> 8
    return PIL.Image.fromarray(dicom_levels.looked_up(stored, colours.astype(np.uint8)))
