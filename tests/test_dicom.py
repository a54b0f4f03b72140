"""DICOM frames become the pictures the standard says, or a stated reason; nothing of the header is ever said."""

from __future__ import annotations

import io
import logging
import math
import struct
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from dicom_files import NATIVE, PATIENT, bare, compressed, dataset, lut, raw, save
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from hybridclip_jax.data import dicom, pixels
from hybridclip_jax.data.dicom_levels import window
from hybridclip_jax.data.study import RecordError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
WHOLE = raw(dataset(RAMP, bits=12))


def levels(it: Dataset | bytes) -> np.ndarray:
    """int [rows, columns(, 3)]"""
    content = it if isinstance(it, bytes) else raw(it)
    return np.asarray(pixels.open_bytes(content)).astype(int)


def reason(content: Dataset | bytes) -> str:
    with pytest.raises(RecordError) as caught:
        pixels.open_bytes(content if isinstance(content, bytes) else raw(content))
    assert PATIENT not in caught.value.reason
    return caught.value.reason


def ramp_error(found: np.ndarray) -> float:
    return float(np.abs(found.ravel() - np.linspace(0, 255, found.size)).max())


# --- the grey steps ---


def test_twelve_bits_in_sixteen_are_a_ramp_and_monochrome1_is_its_twin() -> None:
    two = levels(dataset(RAMP, bits=12))
    assert ramp_error(two) <= 0.5
    one = levels(dataset(4095 - RAMP, bits=12, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(one - two).max() <= 1
    window_two = levels(dataset(RAMP, bits=12, WindowCenter=1000, WindowWidth=600))
    window_one = levels(
        dataset(4095 - RAMP, bits=12, PhotometricInterpretation="MONOCHROME1", WindowCenter=3096, WindowWidth=600)
    )
    assert np.abs(window_one - window_two).max() <= 1


def test_the_range_is_that_of_the_frame_and_eight_bits_keep_their_own() -> None:
    assert ramp_error(levels(dataset(RAMP + 1000, bits=16))) <= 0.5
    eight = np.arange(50, 114, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(levels(dataset(eight)), eight)  # as a PNG of these values would be
    inverted = levels(dataset(255 - eight, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverted, eight)
    six = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert ramp_error(levels(dataset(six, bits=6))) <= 0.5


def test_a_constant_frame_is_black() -> None:
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        flat = np.full((4, 4), 700, np.uint16)
        assert not levels(dataset(flat, bits=12, PhotometricInterpretation=photometric)).any()


def test_signed_values_and_rescale_come_before_the_window() -> None:
    stored = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    assert ramp_error(levels(dataset(stored, bits=12))) <= 0.5
    found = levels(
        dataset(stored, bits=16, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[40, 500], WindowWidth=[400, 9])
    )
    units = stored * 2.0 - 1000
    expected = np.clip((units - 39.5) / 399 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1, the first window
    assert np.abs(found - expected).max() <= 0.5 + 1e-9
    assert ramp_error(levels(dataset(stored, RescaleSlope=-1, RescaleIntercept=0))[::-1, ::-1]) <= 0.5


def stated_window(x: float, centre: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, as the standard's pseudo code has them, to 0..255."""
    if function == "SIGMOID":
        return 255 / (1 + math.exp(-4 * (x - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if x <= centre - width / 2:
        return 0.0
    if x > centre + width / 2:
        return 255.0
    return ((x - centre) / width + 0.5) * 255


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_the_windows_of_the_standard(function: str | None) -> None:
    extra = {} if function is None else {"VOILUTFunction": function}
    found = levels(dataset(RAMP, bits=12, WindowCenter=2000.25, WindowWidth=1001.5, **extra))
    expected = [stated_window(float(x), 2000.25, 1001.5, function or "LINEAR") for x in RAMP.ravel()]
    assert np.abs(found.ravel() - expected).max() <= 0.5 + 1e-9


def test_a_window_of_width_one_is_a_threshold() -> None:
    found = levels(dataset(RAMP, bits=12, WindowCenter=100, WindowWidth=1)).ravel()
    np.testing.assert_array_equal(found, np.where(RAMP.ravel() > 99.5, 255, 0))


@pytest.mark.parametrize(
    ("centre", "width"), [(100, 0), (100, -5), (100, 0.5), (9000, 50), (-400, 100), ("", ""), (100, "")]
)
def test_a_window_that_cannot_be_used_is_left_out(centre: object, width: object) -> None:
    assert ramp_error(levels(dataset(RAMP, bits=12, WindowCenter=centre, WindowWidth=width))) <= 0.5


def test_a_window_of_words_is_left_out() -> None:
    whole = raw(dataset(RAMP, bits=12, WindowCenter="1024", WindowWidth="2048"))
    assert ramp_error(levels(whole.replace(b"1024", b"wide"))) <= 0.5
    assert ramp_error(levels(whole.replace(b"2048", b"nan "))) <= 0.5
    assert window(1, float("inf"), "NO SUCH FUNCTION") is None


def test_lookup_tables_come_first_and_the_first_of_them() -> None:
    squares = [round(i * i / 4095) for i in range(4096)]
    two = [lut(0, 12, squares), lut(0, 12, list(range(4096)))]
    found = levels(dataset(RAMP, bits=12, VOILUTSequence=two, WindowCenter=10, WindowWidth=20))
    assert np.abs(found.ravel() - np.array(squares) * 255 / 4095).max() <= 0.5 + 1e-9
    modality = levels(dataset(RAMP, bits=12, ModalityLUTSequence=[lut(0, 16, [9 * i for i in squares])]))
    assert np.abs(modality.ravel() - np.array(squares) * 255 / 4095).max() <= 0.5 + 1e-9
    # A table of fewer entries than values: its ends go on.
    short = levels(dataset(RAMP, bits=12, VOILUTSequence=[lut(1000, 8, list(range(256)))])).ravel()
    np.testing.assert_array_equal(short, np.clip(np.arange(4096) - 1000, 0, 255))


def test_a_lookup_table_kept_as_words_in_either_byte_order() -> None:
    for syntax in NATIVE:
        item = lut(0, 12, [4095 - i for i in range(4096)])
        order = ">" if syntax.endswith("2.2") else "<"
        item.add_new("LUTData", "OW", np.arange(4095, -1, -1, dtype=f"{order}u2").tobytes())
        assert ramp_error(levels(dataset(RAMP, bits=12, syntax=syntax, VOILUTSequence=[item]))[::-1, ::-1]) <= 0.5


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_counts_for_nothing_and_is_black(photometric: str) -> None:
    stored = RAMP + 1000
    stored[0, :10] = 65000
    stored[1, :10] = range(65001, 65011)
    both = levels(
        dataset(stored, PhotometricInterpretation=photometric, PixelPaddingValue=65000, PixelPaddingRangeLimit=65010)
    )
    assert not both[:2, :10].any()
    picture = both[2:].ravel() if photometric == "MONOCHROME2" else 255 - both[2:].ravel()
    least = 1010  # of what is left
    expected = (stored[2:].ravel() - float(least)) * 255 / (1000 + 4095 - least)
    assert np.abs(picture - expected).max() <= 1
    alone = dataset(np.full((4, 4), 7, np.uint16), PixelPaddingValue=7, PhotometricInterpretation=photometric)
    assert not levels(alone).any()


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_voi_table_may_begin_below_zero(syntax: str) -> None:
    item = lut(0, 12, [4095 - i for i in range(4096)])
    # In implicit VR nothing says that the second number is signed: a reader sees 64512.
    first = 65536 - 1024 if syntax == NATIVE[1] else -1024
    item.add_new("LUTDescriptor", "US" if syntax == NATIVE[1] else "SS", [4096, first, 12])
    falling = levels(
        dataset(RAMP, bits=12, syntax=syntax, RescaleIntercept=-1024, RescaleSlope=1, VOILUTSequence=[item])
    )
    assert ramp_error(falling[::-1, ::-1]) <= 0.5


def test_padding_at_the_end_of_8_bits_moves_no_other_level() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for padding in (0, 255):
        kept = stored.ravel() != padding
        np.testing.assert_array_equal(
            levels(dataset(stored, PixelPaddingValue=padding)).ravel()[kept], stored.ravel()[kept]
        )


def test_inverse_shape_inverts_and_never_twice() -> None:
    down = levels(dataset(RAMP, bits=12, PresentationLUTShape="INVERSE"))
    assert ramp_error(down[::-1, ::-1]) <= 0.5
    both = dataset(RAMP, bits=12, PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(levels(both), down)
    assert ramp_error(levels(dataset(RAMP, bits=12, PresentationLUTShape="IDENTITY"))) <= 0.5


def test_bits_that_are_not_stored_are_not_read() -> None:
    assert ramp_error(levels(dataset(RAMP | 0xA000, bits=12))) <= 0.5  # old files keep overlays there
    signed = np.arange(-2048, 2048).reshape(64, 64)
    assert ramp_error(levels(dataset((signed & 0x0FFF).astype(np.int16), bits=12))) <= 0.5
    assert (
        reason(dataset(RAMP << 4, bits=12, HighBit=15))
        == "DICOM image whose high bit is not the last of its stored bits"
    )


def test_wide_values() -> None:
    wide = (np.arange(4096, dtype=np.uint32) * 100_000).reshape(64, 64)
    assert ramp_error(levels(dataset(wide))) <= 0.5
    real = np.linspace(-3, 5, 4096, dtype=np.float32).reshape(64, 64)
    it = dataset(RAMP, BitsAllocated=32, PixelData=None, BitsStored=None, HighBit=None, PixelRepresentation=None)
    it.FloatPixelData = real.tobytes()
    assert ramp_error(levels(it)) <= 0.5
    real[3, 3] = np.nan
    it.FloatPixelData = real.tobytes()
    assert reason(it) == "pixel values that are not finite"


def test_one_bit_a_pixel() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (8, 16), dtype=np.uint8)
    it = dataset(
        bits, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=np.packbits(bits, bitorder="little").tobytes()
    )
    np.testing.assert_array_equal(levels(it), bits * 255)


@pytest.mark.parametrize("slope", [0, ""])
def test_a_rescale_without_slope(slope: object) -> None:
    it = dataset(RAMP, bits=12, RescaleSlope=slope, RescaleIntercept=5)
    if slope == 0:
        assert reason(it) == "DICOM rescale that cannot be used"
    else:
        assert ramp_error(levels(it)) <= 0.5


# --- colour ---


def colour_picture() -> np.ndarray:
    y, x = np.mgrid[:16, :24]
    return np.stack([x * 10, y * 15, 255 - x * 10], axis=-1).astype(np.uint8)


def test_colour_in_every_arrangement() -> None:
    rgb = colour_picture()
    np.testing.assert_array_equal(levels(dataset(rgb)), rgb)
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes()
    np.testing.assert_array_equal(levels(dataset(rgb, PlanarConfiguration=1, PixelData=planes)), rgb)
    deep = levels(dataset(rgb.astype(np.uint16) * 257))
    np.testing.assert_array_equal(deep, rgb)
    ybr = np.asarray(PIL.Image.fromarray(rgb).convert("YCbCr"))
    full = levels(dataset(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(full - rgb).max() <= 3  # there and back in 8 bits
    # 4:2:2: two luminances share their chrominance.
    shared = ybr.copy()
    shared[:, 1::2, 1:] = shared[:, ::2, 1:]
    packed = np.stack([shared[:, ::2, 0], shared[:, 1::2, 0], shared[:, ::2, 1], shared[:, ::2, 2]], axis=-1)
    half = levels(dataset(shared, PhotometricInterpretation="YBR_FULL_422", PixelData=packed.tobytes()))
    expected = np.asarray(PIL.Image.frombytes("YCbCr", (24, 16), shared.tobytes()).convert("RGB")).astype(int)
    assert np.abs(half - expected).max() <= 1


@pytest.mark.parametrize("words", [8, 16, "8 in 16"])
def test_palettes_are_applied(words: object) -> None:
    index = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tables = {
        "Red": np.arange(64) * 4,
        "Green": 255 - np.arange(64) * 4,
        "Blue": np.full(64, 9),
    }
    it = dataset(index, PhotometricInterpretation="PALETTE COLOR")
    for name, entries in tables.items():
        scale = 257 if words == 16 else 1
        kind = np.uint8 if words == 8 else np.uint16
        setattr(it, f"{name}PaletteColorLookupTableDescriptor", [64, 0, 8 if words == 8 else 16])
        setattr(it, f"{name}PaletteColorLookupTableData", (entries * scale).astype(kind).tobytes())
    found = levels(it)
    np.testing.assert_array_equal(found.reshape(64, 3), np.stack(list(tables.values()), axis=-1))


def test_samples_must_fit_what_they_are_called() -> None:
    fits = "DICOM image whose samples do not fit its photometric interpretation"
    assert reason(dataset(colour_picture(), PhotometricInterpretation="MONOCHROME2")) == fits
    assert reason(dataset(RAMP, PhotometricInterpretation="RGB")) == fits
    assert (
        reason(dataset(RAMP, PhotometricInterpretation=PATIENT)) == "DICOM photometric interpretation that has no rule"
    )


# --- files ---


@pytest.mark.parametrize("syntax", NATIVE)
def test_every_native_encoding_gives_the_same_picture(syntax: str) -> None:
    assert ramp_error(levels(dataset(RAMP, bits=12, syntax=syntax))) <= 0.5
    odd = np.arange(15, dtype=np.uint8).reshape(3, 5)
    np.testing.assert_array_equal(levels(dataset(odd, syntax=syntax)), odd)


def test_an_object_that_leaves_out_vrs_where_its_syntax_has_them() -> None:
    implicit = bare(dataset(RAMP, bits=12, syntax=NATIVE[1]))
    explicit = raw(dataset(RAMP, bits=12))
    start = 144 + int.from_bytes(explicit[140:144], "little")
    assert ramp_error(levels(explicit[:start] + implicit)) <= 0.5


def test_an_object_deflated_whole() -> None:
    assert ramp_error(levels(deflated(raw(dataset(RAMP, bits=12))))) <= 0.5
    assert ramp_error(np.asarray(dicom.decode(io.BytesIO(deflated(WHOLE)[132:]), 10**6, bare=True)).astype(int)) <= 0.5
    bomb = deflated(WHOLE + bytes(160_000_000))
    assert len(bomb) < 1_000_000
    assert reason(bomb) == "DICOM object that unpacks to more than 150 MB"
    with pytest.raises(RecordError, match="more than 150 MB"):
        dicom.read_fields(io.BytesIO(bomb[132:]), ["PatientID"], bare=True)
    assert reason(bomb[:132] + bomb[144:]) == "damaged DICOM header"  # does not say where the object begins


def deflated(whole: bytes) -> bytes:
    start = 144 + int.from_bytes(whole[140:144], "little")
    meta = whole[:start].replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99")
    meta = meta[:140] + struct.pack("<I", start - 144 + 2) + meta[144:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta + packer.compress(whole[start:]) + packer.flush()


@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_without_preamble_only_where_it_is_asked_for(tmp_path: Path, syntax: str) -> None:
    content = bare(dataset(RAMP, bits=12, syntax=syntax))
    assert dicom.may_be_bare(content[: dicom.HEAD_BYTES])
    path = tmp_path / "object"
    path.write_bytes(content)
    assert ramp_error(np.asarray(dicom.open_bare(path, pixels.MAX_PIXELS)).astype(int)) <= 0.5
    assert reason(content) == "not an image of a known type"


def test_of_several_frames_the_first() -> None:
    frames = np.stack([RAMP, 4095 - RAMP, RAMP])
    it = dataset(RAMP, bits=12, NumberOfFrames=3, PixelData=frames.tobytes())
    assert ramp_error(levels(it)) <= 0.5
    eight = [np.full((16, 16), value, np.uint8) for value in (10, 20, 30)]
    assert np.unique(levels(compressed(eight, JPEGBaseline8Bit))).size == 1  # constant, and so black
    shades = [np.tile(np.arange(16, dtype=np.uint8) + value, (16, 1)) for value in (10, 20, 30)]
    np.testing.assert_array_equal(levels(compressed(shades, RLELossless)), shades[0])


def test_the_compressed_kinds_that_are_always_there() -> None:
    smooth = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    np.testing.assert_array_equal(levels(compressed([smooth], RLELossless)), smooth)
    assert np.abs(levels(compressed([smooth], JPEGBaseline8Bit)) - smooth).max() <= 4
    np.testing.assert_array_equal(levels(compressed([smooth], JPEG2000Lossless)), smooth)
    assert ramp_error(levels(compressed([RAMP * 16], JPEG2000Lossless))) <= 0.5
    rgb = colour_picture()
    for photometric in ("YBR_FULL_422", "RGB"):  # many writers call a YBR codestream RGB
        found = levels(compressed([rgb], JPEGBaseline8Bit, PhotometricInterpretation=photometric))
        as_jpeg = io.BytesIO()
        PIL.Image.fromarray(rgb).save(as_jpeg, "JPEG", quality=95)
        assert np.abs(found - np.asarray(PIL.Image.open(as_jpeg)).astype(int)).max() <= 2
    found = levels(compressed([rgb], JPEG2000Lossless, PhotometricInterpretation="YBR_RCT"))
    np.testing.assert_array_equal(found, rgb)


def test_a_syntax_without_decoder_is_named_and_a_strange_one_is_not() -> None:
    # None of the libraries that pydicom can use decodes films.
    assert reason(compressed([RAMP], MPEG2MPML, [b"\0\0\1\xb3"])) == (
        "DICOM transfer syntax MPEG2 Main Profile / Main Level (1.2.840.10008.1.2.4.100) needs a decoder that is not"
        " installed"
    )
    twelve = reason(compressed([RAMP], JPEGExtended12Bit, [b"\xff\xd8\xff\xd9"], bits=12))
    # Pillow cannot; where pylibjpeg or GDCM is installed too, it is asked and finds nothing.
    assert "1.2.840.10008.1.2.4.51) needs a decoder" in twelve or twelve == "truncated or damaged DICOM image"
    private = compressed([RAMP], "1.2.3.7731", [b"\xff\xd8\xff\xd9"])
    assert reason(private) == "DICOM transfer syntax of unknown name needs a decoder that is not installed"


def test_objects_that_are_no_pictures() -> None:
    report = Dataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.PatientName = PATIENT
    for uid, name in (
        ("1.2.840.10008.5.1.4.1.1.88.11", "Basic Text SR Storage"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF Storage"),
        (f"{PATIENT} Storage", "of unknown kind"),
        ("1.2.3.7731", "of unknown kind"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = uid
            report.file_meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID = "1.2"
            whole = raw(report)
        assert reason(whole) == f"DICOM object without an image ({name})"
    with pytest.raises(RecordError) as caught:
        pixels.open_bytes(raw(report))
    assert not caught.value.unreadable  # nothing is wrong with it: the cap on unreadable images does not count it
    del report.SOPClassUID  # a DICOMDIR says what it is in its meta information alone
    report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    assert reason(report) == "DICOM object without an image (Media Storage Directory Storage)"
    mask = dataset(RAMP, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    assert reason(mask) == "DICOM object that is no picture (Segmentation Storage)"


def test_damage_has_a_reason() -> None:
    whole = raw(dataset(RAMP, bits=12))
    assert reason(whole[:-2]) == "truncated or damaged DICOM image"
    assert reason(whole[: len(whole) // 2]) == "truncated or damaged DICOM image"
    assert reason(dataset(RAMP, PixelData=None)) == "DICOM image without pixel data"
    assert reason(dataset(RAMP, Rows=None)) == "truncated or damaged DICOM image"
    assert reason(dataset(RAMP, Rows=None, Columns=None)) == "damaged DICOM header"
    assert reason(dataset(RAMP, BitsAllocated=None)) == "truncated or damaged DICOM image"
    assert reason(dataset(RAMP, PhotometricInterpretation=None)) == "truncated or damaged DICOM image"
    assert reason(dataset(RAMP, Rows=0)) == "truncated or damaged DICOM image"
    assert reason(whole[:132] + b"\xff" * 300) == "damaged DICOM header"
    assert reason(whole[:200]) == "damaged DICOM header"
    jpeg = compressed([np.zeros((64, 64), np.uint8)], JPEGBaseline8Bit)
    assert reason(jpeg[: len(jpeg) // 2 + 300]) == "truncated or damaged DICOM image"


def test_sizes_are_capped_before_anything_is_decoded() -> None:
    assert reason(dataset(RAMP, Rows=60_000, Columns=60_000)) == "image larger than 64 megapixels"
    small = np.zeros((16, 16), np.uint8)
    code = io.BytesIO()
    PIL.Image.new("L", (12_000, 12_000)).save(code, "JPEG")
    bomb = compressed([small], JPEGBaseline8Bit, [code.getvalue()])
    assert reason(bomb) == "DICOM image whose compressed size is not that of its header"


def test_nothing_of_the_header_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    whole = raw(dataset(RAMP, bits=12, StudyDate="20200101", WindowCenter="1024", WindowWidth="2048"))
    odd = (
        whole.replace(b"20200101", b"CANARY!!")
        .replace(b"1024", b"CNRY")
        .replace(PATIENT.encode(), b"\xff\xfeCANARY<>\xe9")
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        levels(odd)
        reason(odd[:-9])
        reason(compressed([RAMP], JPEG2000Lossless, [b"CANARY" * 20]))
        assert dicom.read_fields(io.BytesIO(odd), ["PatientID", "StudyInstanceUID"])["PatientID"]
    said = capfd.readouterr()
    assert (said.out, said.err, caplog.text, caught) == ("", "", "", [])


def test_without_the_library_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)  # as Python itself marks what cannot be imported
    assert reason(WHOLE) == "DICOM file, and pydicom is not installed"


def test_a_name_says_nothing_about_the_content(tmp_path: Path) -> None:
    path = save(tmp_path / "picture.png", RAMP, bits=12)
    stored = pixels.store_pixels(pixels.open_image(path), side=320, channels=1, resize="pad")
    assert stored.shape == (320, 320, 1)
    assert (stored[0, 0], stored[-1, -1]) == (0, 255)


def test_flipped_bytes_never_escape_as_another_error() -> None:
    rng = np.random.default_rng(3)
    small = RAMP[:8, :8]
    seeds: Sequence[bytes] = (
        raw(dataset(small, bits=12, WindowCenter=30, WindowWidth=40, VOILUTSequence=[lut(0, 12, range(64))])),
        compressed([small.astype(np.uint8)], JPEGBaseline8Bit),
        compressed([small.astype(np.uint8)], RLELossless),
        compressed([small], JPEG2000Lossless),
    )
    for whole in seeds:
        for _ in range(80):
            damaged = bytearray(whole)
            for at in rng.integers(132, len(damaged), 3):
                damaged[at] = rng.integers(0, 256)
            try:
                picture = pixels.open_bytes(bytes(damaged))
                assert pixels.store_pixels(picture, side=320, channels=1, resize="pad").shape == (320, 320, 1)
            except RecordError as error:
                assert error.reason  # a counted skip; anything else fails the test
