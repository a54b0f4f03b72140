"""Malformed inputs through the real `hybridclip prepare`: each a counted skip or one clear line, soon and in little
memory.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from dicom_files import compressed, dataset, raw
from prepared import encoded, error_line, prepare, save, write
from pydicom.dataset import Dataset
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

SECONDS = 5
MEGABYTES = 1000
# getrusage would count what the process was before it became this program, a copy of the test's own.
PEAK = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024"
DAMAGED = "truncated or damaged image"
UNKNOWN = "not an image of a known type"
TOO_LARGE = "image larger than 64 megapixels"
DICOM_DAMAGED = "truncated or damaged DICOM image"

VALUES = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
NOISE = PIL.Image.fromarray(VALUES)
WIDE = VALUES.astype(np.uint16) * 16


def cut(kind: str, share: float = 0.5) -> bytes:
    whole = encoded(NOISE, kind)
    return whole[: int(len(whole) * share)]


def flipped(content: bytes, at: int, by: int = 0xFF) -> bytes:
    return content[:at] + bytes([content[at] ^ by]) + content[at + 1 :]


def patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def tiff(entries: dict[int, tuple[int, int, int]], *, next_folder: int = 0, data: bytes = b"") -> bytes:
    """A little-endian TIFF of one folder: tag -> (type, count, value or offset)."""
    body = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", next_folder) + data


GREY_TIFF = {
    256: (4, 1, 40),
    257: (4, 1, 40),
    258: (3, 1, 8),
    259: (3, 1, 1),
    262: (3, 1, 1),
    273: (4, 1, 200),
    277: (3, 1, 1),
    278: (4, 1, 40),
    279: (4, 1, 1600),
}


def jpeg_of_size(width: int, height: int) -> bytes:
    whole = encoded(NOISE, "JPEG")
    return patched(whole, whole.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def floats(value: float) -> bytes:
    values = np.ones((8, 8), np.float32)
    values[2, 2] = value
    return encoded(PIL.Image.fromarray(values), "TIFF")


def nested(depth: int) -> bytes:
    """A DICOM header that opens sequences within sequences."""
    item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return DICOM[: 144 + int.from_bytes(DICOM[140:144], "little")] + item * depth


def of_length(content: bytes, element: bytes, length: int) -> bytes:
    """The content with another 32-bit length written to an explicit element with a long head."""
    return patched(content, content.index(element) + 8, struct.pack("<I", length))


def deflate_bomb() -> bytes:
    start = 144 + int.from_bytes(DICOM[140:144], "little")
    meta = DICOM[:start].replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(DICOM[start:] + bytes(160_000_000)) + packer.flush()
    return meta[:140] + struct.pack("<I", start - 142) + meta[144:] + packed


def report_object() -> bytes:
    it = dataset(WIDE, Rows=None, Columns=None, PixelData=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    return raw(it)


def float_dicom(value: float) -> bytes:
    it: Dataset = dataset(
        WIDE, PixelData=None, BitsAllocated=32, BitsStored=None, HighBit=None, PixelRepresentation=None
    )
    it.FloatPixelData = np.full(WIDE.shape, value, np.float32).tobytes()
    return raw(it)


DICOM = raw(dataset(WIDE, bits=12))
PNG, JPEG, GIF, BMP, WEBP, J2K = (encoded(NOISE, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "JPEG2000"))
EIGHT = [VALUES]

# name: (the file's bytes, the reason it is left out for)
IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty image file"),
    "html": (b"<html>404 Not Found</html>", UNKNOWN),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", UNKNOWN),
    "zero bytes": (bytes(5000), UNKNOWN),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\n", UNKNOWN),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNKNOWN),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN),
    "zip": (b"PK\x03\x04" + bytes(60), UNKNOWN),
    "gzipped png": (gzip.compress(PNG), UNKNOWN),
    "png signature alone": (PNG[:8], UNKNOWN),
    "png cut": (cut("PNG"), DAMAGED),
    "png flipped header": (flipped(PNG, 20), UNKNOWN),
    "png flipped pixels": (flipped(PNG, 60), DAMAGED),
    "png without pixels": (png(40, 40), DAMAGED),
    "png of no width": (png(0, 40), UNKNOWN),
    "png of a wrong mode": (png(40, 40, chunk(b"IDAT", zlib.compress(bytes(1640))), depth=3, colour=7), UNKNOWN),
    "png of 100 megapixels": (
        png(10_000, 10_000, chunk(b"IDAT", zlib.compress(bytes(12_510_000))), depth=1),
        TOO_LARGE,
    ),
    "png of 3600 megapixels": (png(60_000, 60_000), TOO_LARGE),
    "png with a text of 200 MB": (
        png(40, 40, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))),
        DAMAGED,
    ),
    "jpeg cut": (cut("JPEG"), DAMAGED),
    "jpeg cut in its header": (JPEG[:30], DAMAGED),
    "jpeg start alone": (JPEG[:3], UNKNOWN),
    "jpeg of 4000 megapixels": (jpeg_of_size(65_000, 65_000), TOO_LARGE),
    "gif cut": (GIF[:1000], DAMAGED),
    "gif cut in its header": (GIF[:20], UNKNOWN),
    "gif of 4000 megapixels": (patched(GIF, 6, b"\xff\xff\xff\xff"), TOO_LARGE),
    "bmp cut": (cut("BMP"), DAMAGED),
    "bmp of absurd width": (patched(BMP, 18, struct.pack("<i", 2**31 - 1)), TOO_LARGE),
    "bmp of negative width": (patched(BMP, 18, struct.pack("<i", -40)), TOO_LARGE),
    "webp cut": (WEBP[: len(WEBP) // 2], DAMAGED),
    "jpeg2000 cut": (J2K[: len(J2K) // 2], DAMAGED),
    "ppm of absurd size": (b"P5 99999999 99999999 255\n" + bytes(9), TOO_LARGE),
    "ppm of words": (b"P5 wide high 255\n" + bytes(9), DAMAGED),
    "ppm cut": (b"P5 40 40 255\n" + bytes(800), DAMAGED),
    "tiff header alone": (b"II*\0\x08\0\0\0", UNKNOWN),
    "tiff with 65535 tags": (b"II*\0\x08\0\0\0\xff\xff" + bytes(300), UNKNOWN),
    "tiff whose folders are a ring": (tiff(GREY_TIFF, next_folder=8), DAMAGED),
    "tiff with strips beyond its end": (tiff(GREY_TIFF, data=bytes(50)), DAMAGED),
    "tiff taller than its strips": (tiff({**GREY_TIFF, 257: (4, 1, 4000)}, data=bytes(2000)), DAMAGED),
    "tiff of absurd width": (tiff({**GREY_TIFF, 256: (4, 1, 2**31)}, data=bytes(2000)), TOO_LARGE),
    "tiff with a tag of 4 GB": (tiff({**GREY_TIFF, 273: (4, 2**30, 8)}, data=bytes(2000)), UNKNOWN),
    "tiff of an unknown compression": (tiff({**GREY_TIFF, 259: (3, 1, 999)}, data=bytes(2000)), UNKNOWN),
    "tiff of bad lzw": (tiff({**GREY_TIFF, 259: (3, 1, 5)}, data=b"\xff" * 2000), DAMAGED),
    "tiff holding NaN": (floats(np.nan), "pixel values that are not finite"),
    "tiff holding infinity": (floats(np.inf), "pixel values that are not finite"),
    "dicom cut": (DICOM[:-2], DICOM_DAMAGED),
    "dicom cut in its header": (DICOM[:220], "damaged DICOM header"),
    "dicom preamble alone": (DICOM[:132], "damaged DICOM header"),
    "dicom without pixels": (raw(dataset(WIDE, PixelData=None)), "DICOM image without pixel data"),
    "dicom of 3600 megapixels": (raw(dataset(WIDE, Rows=60_000, Columns=60_000)), TOO_LARGE),
    "dicom of too many rows": (raw(dataset(WIDE, Rows=7_000, Columns=7_000)), DICOM_DAMAGED),
    "dicom of no rows": (raw(dataset(WIDE, Rows=0)), DICOM_DAMAGED),
    "dicom of 2 billion frames": (
        compressed([VALUES], JPEG2000Lossless, [b"\xff\x4f\xff\x51"], NumberOfFrames=2**31 - 1),
        DICOM_DAMAGED,
    ),
    "dicom report": (report_object(), "DICOM object without an image (Basic Text SR Storage)"),
    "dicom in an unknown syntax": (
        compressed(EIGHT, "1.2.3.4", [b"\xff\xd8"]),
        "DICOM transfer syntax of unknown name needs a decoder that is not installed",
    ),
    "dicom in a syntax without decoder": (
        compressed(EIGHT, MPEG2MPML, [b"\0\0\1\xb3"]),
        "DICOM transfer syntax MPEG2 Main Profile / Main Level (1.2.840.10008.1.2.4.100) needs a decoder that is not"
        " installed",
    ),
    "dicom with broken jpeg": (compressed(EIGHT, JPEGBaseline8Bit, [JPEG[:300]]), DICOM_DAMAGED),
    "dicom with broken rle": (compressed(EIGHT, RLELossless, [b"\xff" * 80]), DICOM_DAMAGED),
    "dicom with a jpeg of 144 megapixels": (
        compressed(EIGHT, JPEGBaseline8Bit, [jpeg_of_size(12_000, 12_000)]),
        "DICOM image whose compressed size is not that of its header",
    ),
    "dicom deflated from 160 MB": (deflate_bomb(), "DICOM object that unpacks to more than 150 MB"),
    "dicom of sequences 3000 deep": (nested(3000), DICOM_DAMAGED),
    "dicom element of 4 GB": (of_length(DICOM, b"\xe0\x7f\x10\x00OW", 0xFFFFFFF0)[:-9], DICOM_DAMAGED),
    "dicom holding NaN": (float_dicom(np.nan), "pixel values that are not finite"),
    "dicom with three samples of grey": (
        raw(dataset(WIDE, SamplesPerPixel=3)),
        "DICOM image whose samples do not fit its photometric interpretation",
    ),
    "dicom of 7 bits allocated": (raw(dataset(WIDE, BitsAllocated=7)), DICOM_DAMAGED),
    "dicom with more bits stored than allocated": (raw(dataset(WIDE, BitsStored=40, HighBit=39)), DICOM_DAMAGED),
}
# Small files that would unpack to much, or make a reader believe they do.
BOMBS = [
    name for name in IMAGES if any(word in name for word in ("mega", "absurd", "MB", "GB", "deep", "billion", "many"))
]


def skipped_rows(store: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (store / "skipped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", IMAGES)
def test_a_malformed_image_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content, reason = IMAGES[name]
    save(tmp_path / "sound.png", 1)
    (tmp_path / "bad").write_bytes(content)
    table = write(tmp_path / "t.csv", ["image,text", "sound.png,Clear.", "bad,Clear."])
    began = time.monotonic()
    assert prepare("csv", "--source", table, "--out", tmp_path / "s") == 0
    assert time.monotonic() - began < SECONDS
    assert skipped_rows(tmp_path / "s") == [{"row": 2, "reason": reason}]
    assert capsys.readouterr().err.count("Traceback") == 0


def special(folder: Path, kind: str) -> str:
    """Makes an odd thing where an image should be; its name in the table."""
    path = folder / "bad.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to(folder / "none")
    elif kind == "ring of links":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    return {"zero byte": "a\0b.png", "long name": "x" * 5000, "below a file": "sound.png/x.png"}.get(kind, path.name)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("folder", "a folder where an image file should be"),
        ("pipe", "empty image file"),
        ("device", "empty image file"),
        ("dangling link", "missing image file"),
        ("ring of links", "missing image file"),
        ("missing", "missing image file"),
        ("zero byte", "missing image file"),
        ("long name", "missing image file"),
        ("below a file", "missing image file"),
    ],
)
def test_an_odd_thing_in_place_of_an_image_is_left_out(tmp_path: Path, kind: str, reason: str) -> None:
    save(tmp_path / "sound.png", 1)
    table = write(tmp_path / "t.csv", ["image,text", "sound.png,Clear.", f"{special(tmp_path, kind)},Clear."])
    assert prepare("csv", "--source", table, "--out", tmp_path / "s") == 0
    assert skipped_rows(tmp_path / "s") == [{"row": 2, "reason": reason}]


# name: (the table's file name, its bytes, a part of the line)
SOUND = b"image,text\nsound.png,Clear.\n"
TABLES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("t.csv", b"", "t.csv is empty"),
    "header alone": ("t.csv", b"image,text\n", "t.csv is empty: it has no data rows"),
    "binary": ("t.csv", bytes(range(256)), "is not UTF-8"),
    "utf-16": ("t.csv", SOUND.decode().encode("utf-16"), "is UTF-16, not UTF-8"),
    "latin-1": ("t.csv", SOUND + "sound.png,Ergüsse\n".encode("latin-1"), "row 2 is not UTF-8 (byte 0xfc"),
    "bad byte behind a byte order mark": ("t.csv", b"\xef\xbb\xbf" + SOUND[:-2] + b"\xff\n", "row 1 is not UTF-8"),
    "repeated header": ("t.csv", b"image,text,text\na,b,c\n", "names column 'text' twice"),
    "too few fields": ("t.csv", SOUND + b"sound.png\n", "row 2 has 1 fields where the header has 2"),
    "too many fields": ("t.csv", SOUND + b"sound.png,a,b\n", "row 2 has 3 fields where the header has 2"),
    "open quote": ("t.csv", SOUND + b'sound.png,"Clear\n', "is a quote left open there"),
    "field of 200,000 characters": ("t.csv", SOUND + b'sound.png,"' + b"x" * 200_000 + b'"\n', "row 2: field larger"),
    "no image column": ("t.csv", b"scan,text\na,b\n", "no column found for the image"),
    "no text column": ("t.csv", b"image,words\na,b\n", "no column found for the text"),
    "two image columns": ("t.csv", b"image,path,text\na,b,c\n", "could each be the image"),
    "blank image": ("t.csv", SOUND + b" ,Clear.\n", "row 2: no image named in column 'image'"),
    "same image, other text": ("t.csv", SOUND + b"sound.png,Effusion.\n", "rows 1 and 2 name the same image"),
    "patient in two splits": (
        "t.csv",
        b"image,text,patient,split\nsound.png,a,p,train\nother.png,a,p,val\n",
        "1 of 1 patients are in more than one split",
    ),
    "split of some rows": ("t.csv", b"image,text,split\nsound.png,a,x\nother.png,a,\n", "row 2 names no split"),
    "split that climbs": ("t.csv", b"image,text,split\nsound.png,a,../x\n", "row 1: a split's name is made of"),
    "nothing to keep": ("t.csv", b"image,text\nnone.png,a\n", "none of the 1 rows could be kept"),
    "nothing but blank texts": ("t.csv", b"image,text\nsound.png, \n", "none of the 1 rows could be kept"),
    "gzip cut": ("t.csv.gz", gzip.compress(SOUND * 50)[:-9], "t.csv.gz"),
    "gzip flipped": ("t.csv.gz", flipped(gzip.compress(SOUND * 50), 25), "t.csv.gz"),
    "gzip that is none": ("t.csv.gz", b"\x1f\x8b" + bytes(40), "t.csv.gz"),
    "gzip of 300 MB": ("t.csv.gz", gzip.compress(SOUND + bytes(300_000_000), 9), "t.csv.gz"),
    "json broken": ("t.jsonl", b'{"image": "sound.png", "text": "a"}\n{"image": \n', "row 2 (line 2) is not JSON"),
    "json lists": ("t.jsonl", b'["sound.png", "a"]\n', "row 1 (line 1) is not a JSON object"),
    "json value that is a list": ("t.jsonl", b'{"image": ["a"], "text": "a"}\n', "'image' is a list or an object"),
    "json 100,000 deep": ("t.jsonl", b'{"image": ' + b"[" * 100_000, "row 1 (line 1) is not JSON"),
    "json number of 10,000 digits": ("t.jsonl", b'{"image": ' + b"9" * 10_000 + b"}", "row 1 (line 1) is not JSON"),
    "json half a character": (
        "t.jsonl",
        b'{"image": "sound.png", "text": "\\ud800"}\n',
        "row 1 holds half a character",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_malformed_table_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    file, content, message = TABLES[name]
    save(tmp_path / "sound.png", 1)
    save(tmp_path / "other.png", 2)
    (tmp_path / file).write_bytes(content)
    began = time.monotonic()
    assert prepare("csv", "--source", tmp_path / file, "--out", tmp_path / "s") == 2
    assert time.monotonic() - began < SECONDS
    line = error_line(capsys)
    assert message in line
    assert len(line) < 2000
    assert not (tmp_path / "s").exists()


def test_a_byte_order_mark_and_zero_bytes_in_a_text_do_no_harm(tmp_path: Path) -> None:
    save(tmp_path / "sound.png", 1)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfimage,text\nsound.png,Cl\0ear.\n")
    assert prepare("csv", "--source", tmp_path / "t.csv", "--out", tmp_path / "s") == 0


def test_bombs_take_little_memory_and_time_in_a_process_of_their_own(tmp_path: Path) -> None:
    """The whole way, with the peak of the process: what decodes in this one would not show."""
    save(tmp_path / "sound.png", 1)
    lines = ["image,text", "sound.png,Clear."]
    for n, name in enumerate(BOMBS):
        (tmp_path / f"bomb{n}").write_bytes(IMAGES[name][0])
        lines.append(f"bomb{n},Clear.")
    write(tmp_path / "t.csv", lines)
    program = (
        "import sys\n"
        "from hybridclip_jax import cli\n"
        "from hybridclip_jax.errors import run_or_exit\n"
        "args = cli.parse(sys.argv[1:])\n"
        "code = run_or_exit(lambda: args.run(args))\n"
        f"print('peak', {PEAK})\n"
        "sys.exit(code)\n"
    )
    words = ["prepare", "--format", "csv", "--source", str(tmp_path / "t.csv"), "--out", str(tmp_path / "s")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rows = [{"row": n, "reason": IMAGES[name][1]} for n, name in enumerate(BOMBS, start=2)]
    assert skipped_rows(tmp_path / "s") == rows
    assert int(done.stdout.split("peak")[1]) < MEGABYTES


@pytest.mark.slow
def test_the_largest_images_that_are_taken_fit_in_the_memory(tmp_path: Path) -> None:
    """64 megapixels at 16 bits, as PNG and as DICOM."""
    values = np.tile(np.arange(8000, dtype=np.uint16) * 8, (8000, 1))
    (tmp_path / "a.dcm").write_bytes(raw(dataset(values, WindowCenter=30_000, WindowWidth=60_000)))
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hybridclip_jax.data import pixels\n"
        "image = pixels.open_image(Path(sys.argv[1]))\n"
        "stored = pixels.store_pixels(image, side=320, channels=1, resize='pad')\n"
        f"print({PEAK}, stored[0, 0, 0], stored[0, 319, 0])\n"
    )
    for name in ("a.dcm", "a.png"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True, timeout=120
        )
        peak, first, last = map(int, done.stdout.split())
        assert peak < MEGABYTES, name
        assert (first <= 1, last >= 254) == (True, True), name


def hdf5(folder: Path, rows: int, side: int = 320) -> bytes:
    import h5py

    path = folder / "made.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("cxr", data=np.full((rows, side, 320)[: 3 if side else 1], 9, np.uint8))
    content = path.read_bytes()
    path.unlink()
    return content


def chexzero(content: Callable[[Path], bytes]) -> Callable[[Path], list[object]]:
    def build(folder: Path) -> list[object]:
        (folder / "cxr.h5").write_bytes(content(folder))
        table = write(folder / "impressions.csv", ["filename,impression", "s1.txt,Clear.", "s2.txt,Clear."])
        return ["chexzero", "--source", folder / "cxr.h5", "--reports", table]

    return build


def rexgradient(content: bytes) -> Callable[[Path], list[object]]:
    def build(folder: Path) -> list[object]:
        (folder / "metadata").mkdir()
        (folder / "deid_png").mkdir()
        (folder / "metadata" / "train_metadata_view_position.json").write_bytes(content)
        return ["rexgradient", "--source", folder]

    return build


def openi(content: bytes) -> Callable[[Path], list[object]]:
    def build(folder: Path) -> list[object]:
        (folder / "ecgen-radiology").mkdir()
        (folder / "NLMCXR_png").mkdir()
        (folder / "ecgen-radiology" / "1.xml").write_bytes(content)
        return ["openi", "--source", folder]

    return build


def file_of(format_name: str, name: str, content: bytes) -> Callable[[Path], list[object]]:
    def build(folder: Path) -> list[object]:
        (folder / name).write_bytes(content)
        return [format_name, "--source", folder / name]

    return build


def tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


LAUGHS = b"<!DOCTYPE x [<!ENTITY a 'ha'>" + b"".join(
    f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>".encode() for n in range(10)
)
# name: (what makes the source and the flags, a part of the line)
SOURCES: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "hdf5 that is none": (chexzero(lambda folder: b"<html>"), "cxr.h5"),
    "hdf5 cut": (chexzero(lambda folder: hdf5(folder, 2)[:-5000]), "cxr.h5"),
    "hdf5 cut in its head": (chexzero(lambda folder: hdf5(folder, 2)[:600]), "cxr.h5"),
    "hdf5 without images": (chexzero(lambda folder: hdf5(folder, 2, side=0)), "cxr.h5"),
    "hdf5 of another length": (chexzero(lambda folder: hdf5(folder, 3)), "has 3 images and"),
    "json cut": (rexgradient(b'{"a": {"ImagePath": ["x.png"]'), "train_metadata_view_position.json"),
    "json that is a list": (rexgradient(b"[1, 2]"), "train_metadata_view_position.json"),
    "json nested deep": (rexgradient(b'{"a": ' * 100_000), "train_metadata_view_position.json"),
    "json in latin-1": (rexgradient('{"a": {"ImagePath": ["ü"]}}'.encode("latin-1")), "not UTF-8"),
    "xml that laughs": (openi(LAUGHS + b"]><eCitation>&k;</eCitation>"), "XML with a document type 1"),
    "xml cut": (openi(b"<eCitation><uId id='CXR1'"), "damaged XML 1"),
    "xml nested deep": (openi(b"<a>" * 100_000), "damaged XML 1"),
    "parquet that is none": (file_of("parquet", "x.parquet", b"PAR1" + bytes(40)), "x.parquet"),
    "parquet cut": (file_of("parquet", "x.parquet", b"PAR1" + bytes(40) + b"\xff\xff\xff\x7fPAR1"), "x.parquet"),
    "tar cut": (file_of("webdataset", "x.tar", tar(("a.txt", b"Clear."), ("a.png", PNG))[:1300]), "x.tar is cut off"),
    "tar flipped": (file_of("webdataset", "x.tar", flipped(tar(("a.txt", b"Clear.")), 3)), "x.tar is not a tar"),
    "tar that climbs": (file_of("webdataset", "x.tar", tar(("../a.txt", b"Clear."), ("../a.png", PNG))), "x.tar"),
    "tar twice the same": (
        file_of("webdataset", "x.tar", tar(("a.txt", b"Clear."), ("a.png", PNG), ("b.txt", b""), ("a.txt", b"No."))),
        "x.tar",
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_malformed_source_of_any_format_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    build, message = SOURCES[name]
    arguments = build(tmp_path)
    began = time.monotonic()
    assert prepare(*map(str, arguments), "--out", tmp_path / "s") == 2
    assert time.monotonic() - began < SECONDS
    assert message in error_line(capsys)


CALLS: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "no such source": (lambda folder: ["csv", "--source", folder / "none.csv"], "no such table"),
    "folder of two tables": (lambda folder: ["csv", "--source", folder], "holds 2 tables"),
    "no such images": (
        lambda folder: ["csv", "--source", folder / "t.csv", "--images", folder / "x"],
        "no such folder",
    ),
    "source missing": (lambda folder: ["csv"], "needs --source"),
    "share above one": (lambda folder: ["csv", "--source", folder / "t.csv", "--max-skipped", "2"], "not a share"),
    "flag of another format": (
        lambda folder: ["csv", "--source", folder / "t.csv", "--reports", folder],
        "leave it out",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    build, message = CALLS[name]
    for table in ("t.csv", "u.csv"):
        (tmp_path / table).write_bytes(SOUND)
    assert prepare(*map(str, build(tmp_path)), "--out", tmp_path / "s") == 2
    assert message in error_line(capsys)
