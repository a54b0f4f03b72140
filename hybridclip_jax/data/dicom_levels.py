"""From the stored values of a grey DICOM frame to 8 bits, by the standard's steps in the standard's order.

Modality LUT or rescale; then VOI LUT or window (LUT before window, the first of several); then inversion where
MONOCHROME1 or PresentationLUTShape INVERSE says so (once, where both do); then 8 bits.

Without a VOI LUT or window that can be used, minimum to maximum of what the frame holds becomes 0 to 255, or, where
8 bits or fewer are stored, the whole range of the stored bits: as PNG files of those depths are read. A window cannot
be used when its numbers are none, its width is one the standard forbids, or it leaves a single level of a frame that
has more. Pixels of the padding value or range are left out of minimum and maximum and become 0, after inversion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hybridclip_jax.data.study import RecordError

PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2")
_STRIP = 1 << 20  # pixels at a time: as an index NumPy turns each into 8 bytes

Curve = Callable[[np.ndarray], np.ndarray]  # float64 to float64, value by value


def grey_levels(stored: np.ndarray, header: Any) -> np.ndarray:
    """uint8 [rows, columns] of the stored values [rows, columns] and pydicom's Dataset.

    Raises:
        RecordError: values that are not finite, or a rescale that cannot be used; anything else for a header
            that is damaged.
    """
    pipeline = _Pipeline(_modality(header), _inverted(header), _padding(header))
    low, high = pipeline.span(_pieces(stored))
    if low >= high:
        return np.zeros(stored.shape, np.uint8)
    voi = _voi(header, low)
    if voi is not None:
        window = dataclasses.replace(pipeline, voi=voi)
        ends = window.ends(_pieces(stored))
        if ends[0] < ends[1]:
            return _mapped(stored, window)
    if _narrow(stored) and int(header.BitsStored) <= 8:
        low, high = dataclasses.replace(pipeline, padding=None).span(iter([_possible(header)]))
    return _mapped(stored, dataclasses.replace(pipeline, voi=lambda values: (values - low) / (high - low)))


def every_value(dtype: np.dtype) -> np.ndarray:
    """Each value an integer type of 1 or 2 bytes has, in the order of its bits read as unsigned."""
    return np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)


def looked_up(stored: np.ndarray, table: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns(, C)]: `table` has a row for each of `every_value`."""
    index = stored.view(f"u{stored.dtype.itemsize}").reshape(-1)
    out = np.empty((index.size, *table.shape[1:]), table.dtype)
    for start in range(0, index.size, _STRIP):
        out[start : start + _STRIP] = table[index[start : start + _STRIP]]
    return out.reshape(*stored.shape, *table.shape[1:])


@dataclasses.dataclass(frozen=True)
class _Pipeline:
    modality: Curve
    inverted: bool
    padding: tuple[float, float] | None  # stored values from the first to the second are no part of the picture
    voi: Curve | None = None  # to 0..1

    def span(self, pieces: Iterator[np.ndarray]) -> tuple[float, float]:
        """Least and largest value behind the modality step; (0, 0) where all is padding."""
        return _extremes(self.modality(values[~self._is_padding(values)]) for values in pieces)

    def ends(self, pieces: Iterator[np.ndarray]) -> tuple[float, float]:
        """The same of the 8-bit levels."""
        return _extremes(self(values)[~self._is_padding(values)] for values in pieces)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """uint8 of stored values in float64."""
        assert self.voi is not None
        shares = np.clip(self.voi(self.modality(values)), 0.0, 1.0)
        levels = np.rint(255.0 * (1.0 - shares if self.inverted else shares)).astype(np.uint8)
        levels[self._is_padding(values)] = 0
        return levels

    def _is_padding(self, values: np.ndarray) -> np.ndarray:
        if self.padding is None:
            return np.zeros(values.shape, bool)
        return (values >= self.padding[0]) & (values <= self.padding[1])


def _extremes(pieces: Iterator[np.ndarray]) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for values in pieces:
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise RecordError("pixel values that are not finite")
    return (low, high) if low <= high else (0.0, 0.0)


def _narrow(stored: np.ndarray) -> bool:
    return stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2


def _pieces(stored: np.ndarray) -> Iterator[np.ndarray]:
    """All that the frame holds as float64, a piece at a time; of narrow integers each value once."""
    if _narrow(stored):
        held = np.zeros(256**stored.dtype.itemsize, bool)
        index = stored.view(f"u{stored.dtype.itemsize}").reshape(-1)
        for start in range(0, index.size, _STRIP):
            held[index[start : start + _STRIP]] = True
        yield every_value(stored.dtype)[held].astype(np.float64)
        return
    flat = stored.reshape(-1)
    for start in range(0, flat.size, _STRIP):
        values = flat[start : start + _STRIP].astype(np.float64)
        if not np.isfinite(values).all():
            raise RecordError("pixel values that are not finite")
        yield values


def _possible(header: Any) -> np.ndarray:
    """Every value the stored bits can hold."""
    bits = int(header.BitsStored)
    first = -(2 ** (bits - 1)) if int(header.PixelRepresentation) else 0
    return np.arange(first, first + 2**bits, dtype=np.float64)


def _mapped(stored: np.ndarray, pipeline: _Pipeline) -> np.ndarray:
    if _narrow(stored):
        return looked_up(stored, pipeline(every_value(stored.dtype).astype(np.float64)))
    out = np.empty(stored.size, np.uint8)
    flat = stored.reshape(-1)
    for start in range(0, flat.size, _STRIP):
        out[start : start + _STRIP] = pipeline(flat[start : start + _STRIP].astype(np.float64))
    return out.reshape(stored.shape)


def _modality(header: Any) -> Curve:
    items = header.get("ModalityLUTSequence")
    if items:
        return _lut(items[0], header, bool(header.PixelRepresentation))[0]
    try:
        slope = _number(header, "RescaleSlope")
        intercept = _number(header, "RescaleIntercept")
    except (TypeError, ValueError) as error:
        raise RecordError("DICOM rescale that cannot be used") from error
    if slope == 0:
        raise RecordError("DICOM rescale that cannot be used")
    scale, offset = 1.0 if slope is None else slope, intercept or 0.0
    return lambda values: values * scale + offset


def _voi(header: Any, low: float) -> Curve | None:
    """To 0..1, or None where the header says nothing that can be used. `low` is the least value behind modality."""
    items = header.get("VOILUTSequence")
    if items:
        curve, top = _lut(items[0], header, low < 0)
        return lambda values: curve(values) / top
    try:
        centre, width = _number(header, "WindowCenter"), _number(header, "WindowWidth")
    except (TypeError, ValueError):
        return None
    if centre is None or width is None:
        return None
    return window(centre, width, str(header.get("VOILUTFunction") or "LINEAR"))


def window(centre: float, width: float, function: str) -> Curve | None:
    """The window functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..1; None for a width they forbid."""
    if function == "SIGMOID" and width > 0:
        return lambda values: 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
    if function == "LINEAR_EXACT" and width > 0:
        return lambda values: np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if function == "LINEAR" and width > 1:
        return lambda values: np.clip((values - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)
    if function == "LINEAR" and width == 1:
        return lambda values: (values > centre - 0.5).astype(np.float64)
    return None


def _lut(item: Any, header: Any, signed: bool) -> tuple[Curve, float]:
    """A lookup table and the largest value its bits can hold. `signed`: what it is applied to can be negative."""
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    if signed and first >= 32768:  # implicit VR does not say that the first value is signed
        first -= 65536
    entries = entries or 65536
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if header.original_encoding[1] else ">"
        table = np.frombuffer(data, "u1" if len(data) < 2 * entries else f"{order}u2")
    else:
        table = np.atleast_1d(np.asarray(data))
    table = table[:entries].astype(np.float64)
    if not 1 <= bits <= 16 or not table.size:
        raise ValueError("not a lookup table")
    return lambda values: table[np.clip(values - first, 0, table.size - 1).astype(np.int64)], 2.0**bits - 1


def _inverted(header: Any) -> bool:
    return header.PhotometricInterpretation == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE"


def _padding(header: Any) -> tuple[float, float] | None:
    value = header.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = header.get("PixelPaddingRangeLimit")
    other = value if limit is None or limit == "" else limit
    return float(min(value, other)), float(max(value, other))


def _number(header: Any, keyword: str) -> float | None:
    """The first value; None where there is none. ValueError or TypeError where it is no finite number."""
    value = header.get(keyword)
    if value is None or value == "":
        return None
    if not isinstance(value, str) and hasattr(value, "__getitem__"):
        value = value[0]
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number
