"""Writes small DICOM files as modalities do, and the damaged ones that no writer would agree to write."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

PATIENT = "CANARY-7731"
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def dataset(
    stored: np.ndarray, *, bits: int | None = None, syntax: str = ExplicitVRLittleEndian, **elements: object
) -> Dataset:
    """A radiograph of `stored` values [rows, columns(, 3)]; `elements` by keyword replace or add to the header,
    None takes one away.
    """
    it = Dataset()
    it.file_meta = FileMetaDataset()
    it.file_meta.TransferSyntaxUID = syntax
    it.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    it.SOPClassUID = DigitalXRayImageStorageForPresentation
    it.SOPInstanceUID = "1.2.826.0.1.3680043.9.1"
    it.PatientID = PATIENT
    it.PatientName = f"{PATIENT}^Name"
    it.StudyInstanceUID = "1.2.826.0.1.3680043.9.2"
    it.Rows, it.Columns = stored.shape[:2]
    it.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    it.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        it.PlanarConfiguration = 0
    it.BitsAllocated = 8 * stored.dtype.itemsize
    it.BitsStored = bits or it.BitsAllocated
    it.HighBit = it.BitsStored - 1
    it.PixelRepresentation = int(stored.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    it.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    if stored.size * stored.itemsize % 2:
        it.PixelData += b"\0"
    it["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 and syntax != ImplicitVRLittleEndian else "OW"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that no modality should write
        for keyword, value in elements.items():
            if value is None:
                delattr(it, keyword)
            else:
                setattr(it, keyword, value)
    it.file_meta.MediaStorageSOPInstanceUID = it.get("SOPInstanceUID") or "1.2"
    return it


def raw(it: Dataset) -> bytes:
    """The bytes of the file, with preamble."""
    buffer = io.BytesIO()
    private = it.file_meta.TransferSyntaxUID.is_private
    encoding = {"implicit_vr": False, "little_endian": True} if private else {}
    it.save_as(buffer, enforce_file_format=True, **encoding)
    return buffer.getvalue()


def bare(it: Dataset) -> bytes:
    """The same without preamble and meta information, as old archives keep objects."""
    whole = raw(it)
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def save(path: Path, stored: np.ndarray, **elements: object) -> Path:
    """`dataset` as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw(dataset(stored, **elements)))
    return path


def compressed(frames: Sequence[np.ndarray], syntax: str, codes: Sequence[bytes] = (), **elements: object) -> bytes:
    """A file of compressed frames; without `codes` the frames' own."""
    it = dataset(frames[0], syntax=ExplicitVRLittleEndian, **elements)
    it.file_meta.TransferSyntaxUID = syntax
    it.PixelData = encapsulate([*codes] or [_code(frame, syntax) for frame in frames])
    it["PixelData"].VR = "OB"
    it["PixelData"].is_undefined_length = True
    if len(frames) > 1:
        it.NumberOfFrames = len(frames)
    return raw(it)


def _code(frame: np.ndarray, syntax: str) -> bytes:
    if syntax == RLELossless:
        it = dataset(frame)
        it.compress(RLELossless)
        from pydicom.encaps import get_frame

        return get_frame(it.PixelData, 0, number_of_frames=1)
    buffer = io.BytesIO()
    kind = {JPEGBaseline8Bit: "JPEG", JPEG2000Lossless: "JPEG2000"}[syntax]
    options = {"quality": 95} if kind == "JPEG" else {"irreversible": False, "no_jp2": True}
    PIL.Image.fromarray(frame).save(buffer, kind, **options)
    return buffer.getvalue()


def lut(first: int, bits: int, entries: Sequence[int]) -> Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US" if first >= 0 else "SS"
    item.LUTData = list(entries)
    item["LUTData"].VR = "US"
    return item
