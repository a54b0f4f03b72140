"""The stored values of a DICOM object's first frame, decoded by pydicom; nothing of the other frames is read."""

from __future__ import annotations

import io
import math
import struct
from typing import Any, BinaryIO

import numpy as np
import PIL.Image

from hybridclip_jax.data.study import RecordError

_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_PIXELS = {(0x7FE0, 0x0010): "PixelData", (0x7FE0, 0x0008): "FloatPixelData", (0x7FE0, 0x0009): "DoubleFloatPixelData"}
_PIXEL_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")


def meta(header: Any, keyword: str) -> Any:
    """An element of the meta information that stands before the object; None where there is none."""
    return getattr(header, "file_meta", {}).get(keyword)


def decodable_syntax(header: Any) -> str:
    """The transfer syntax of an object; RecordError where nothing installed decodes it."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID_dictionary

    syntax = meta(header, "TransferSyntaxUID")
    if not syntax:
        implicit, little = header.original_encoding
        return _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
    known = syntax in UID_dictionary
    try:
        decoder = get_decoder(syntax)
        installed = decoder.is_available
        if syntax == _JPEG_EXTENDED and int(header.BitsStored) > 8:  # Pillow reads those of 8 bits only
            installed = any(plugin != "pillow" for plugin in decoder.available_plugins)
    except NotImplementedError:
        installed = False
    if installed:
        return str(syntax)
    # A header's own words are not repeated: only what the standard's list knows has a name.
    name = f"{syntax.name} ({syntax})" if known else "of unknown name"
    raise RecordError(f"DICOM transfer syntax {name} needs a decoder that is not installed")


def first_frame(file: BinaryIO, header: Any, syntax: str) -> tuple[np.ndarray, str]:
    """Stored values [rows, columns(, 3)] and the photometric interpretation they came out in.

    `file` stands before the element of the pixels, `header` is what came before it, which this writes to. Raises
    RecordError, or anything for damage.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    uid = UID(syntax)
    keyword, vr = _pixel_element(file, header.original_encoding[1])
    if uid.is_encapsulated:
        data = get_frame(file, 0, number_of_frames=max(1, _integer(header, "NumberOfFrames", 1)))
        _check_codestream(data, int(header.Columns), int(header.Rows))
        data = encapsulate([data], has_bot=False)
    else:
        data = _native_frame(file, header, keyword)
    header.NumberOfFrames = 1
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid
    header.add_new(keyword, vr, data)
    header[keyword].is_undefined_length = uid.is_encapsulated
    # Decoders round lossy JPEG differently: the one that is always there, so that stores are equal everywhere.
    plugin = "pillow" if uid == _JPEG_BASELINE else ""
    frame, properties = get_decoder(uid).as_array(header, index=0, raw=True, decoding_plugin=plugin)
    return frame, str(properties["photometric_interpretation"])


def _pixel_element(file: BinaryIO, little: bool) -> tuple[str, str]:
    """Keyword and VR of the element `file` stands before; moves behind its head."""
    head = file.read(8)
    if len(head) < 8:
        raise RecordError("DICOM image without pixel data")
    group, element = struct.unpack("<HH" if little else ">HH", head[:4])
    if (group, element) not in _PIXELS:
        raise RecordError("DICOM image without pixel data")
    # Some writers leave VRs out though their transfer syntax has them. An even length never begins like a VR.
    if head[4:6] not in _PIXEL_VRS:
        return _PIXELS[group, element], "OW"
    file.read(4)
    return _PIXELS[group, element], head[4:6].decode("ascii")


def _native_frame(file: BinaryIO, header: Any, keyword: str) -> bytes:
    allocated, stored = int(header.BitsAllocated), int(header.get("BitsStored", header.BitsAllocated))
    if keyword == "PixelData" and _integer(header, "HighBit", stored - 1) != stored - 1:
        raise RecordError("DICOM image whose high bit is not the last of its stored bits")
    samples = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel)
    if header.PhotometricInterpretation == "YBR_FULL_422":
        samples = samples * 2 // 3
    need = math.ceil(samples * allocated / 8)
    data = file.read(need)
    if len(data) < need:
        raise EOFError("fewer bytes than the frame has")
    return data + b"\0" * (need % 2)


def _check_codestream(frame: bytes, columns: int, rows: int) -> None:
    """Refuses a compressed frame that would unpack to another size than the header's, which was capped."""
    try:
        with PIL.Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            size = image.size
    except PIL.UnidentifiedImageError:
        return  # RLE, or a kind that Pillow does not know; its own decoder checks it
    if size != (columns, rows):
        raise RecordError("DICOM image whose compressed size is not that of its header")


def _integer(header: Any, keyword: str, default: int) -> int:
    value = header.get(keyword)
    return default if value is None or value == "" else int(value)
