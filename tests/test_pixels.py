"""Odd image files: each becomes stated pixels or a stated reason, never a silent half."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hybridclip_jax.data import pixels
from hybridclip_jax.data.study import RecordError

SIDE = 320


def picture(width: int, height: int) -> np.ndarray:
    """uint8 [height, width]: a smooth ramp with a bright block at the upper left."""
    y, x = np.mgrid[:height, :width]
    values = (x * 120 / width + y * 80 / height).astype(np.uint8)
    values[: height // 4, : width // 4] = 230
    return values


def grey(path: Path, resize: str = "pad", channels: int = 1) -> np.ndarray:
    image = pixels.open_image(path)
    return pixels.store_pixels(image, side=SIDE, channels=channels, resize=resize)


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    PIL.Image.fromarray(values).save(path, **options)
    return path


def reason(path: Path) -> str:
    with pytest.raises(RecordError) as caught:
        pixels.open_image(path)
    assert path.name not in str(caught.value)
    return caught.value.reason


def test_pad_keeps_the_aspect_and_centres(tmp_path: Path) -> None:
    wide = grey(save(tmp_path / "a.png", np.full((100, 200), 200, np.uint8)))
    assert wide.shape == (SIDE, SIDE, 1)
    assert wide.dtype == np.uint8
    assert (wide[80:240] == 200).all()
    assert (wide[:80] == 0).all()
    assert (wide[240:] == 0).all()
    tall = grey(save(tmp_path / "b.png", np.full((200, 100), 200, np.uint8)))
    np.testing.assert_array_equal(tall, wide.transpose(1, 0, 2))


def lanczos_line(length: int, inner: int) -> np.ndarray:
    """float64 [inner, length]: Lanczos of three lobes, widened by the scale and cut at the edges."""
    scale = max(length / inner, 1.0)
    centres = (np.arange(inner)[:, None] + 0.5) * length / inner
    x = (np.arange(length)[None] + 0.5 - centres) / scale
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def chexzero(values: np.ndarray) -> np.ndarray:
    """uint8 [320, 320] of grey values [height, width]: CheXzero's preparation in NumPy alone. The longer side
    becomes 320, both are cut to whole pixels, Lanczos, zeros around the picture, which stands in the middle.
    """
    height, width = values.shape
    ratio = 320.0 / max(width, height)
    inner_height, inner_width = int(height * ratio), int(width * ratio)
    across = np.rint(values @ lanczos_line(width, inner_width).T).clip(0, 255)
    small = np.rint(lanczos_line(height, inner_height) @ across).clip(0, 255)
    square = np.zeros((320, 320), np.uint8)
    top, left = (320 - inner_height) // 2, (320 - inner_width) // 2
    square[top : top + inner_height, left : left + inner_width] = small
    return square


@pytest.mark.parametrize(
    "size", [(500, 400), (254, 305), (1022, 1024), (303, 40), (77, 77), (100, 319), (321, 320), (2544, 3056)]
)
def test_pad_is_chexzeros_preparation(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)  # no smooth picture hides a shift
    found = grey(save(tmp_path / "a.png", noise))[..., 0]
    assert np.abs(found.astype(int) - chexzero(noise)).max() <= 1
    # As published it reads three equal channels and turns grey at the end.
    rgb = PIL.Image.fromarray(noise).convert("RGB")
    ratio = 320.0 / max(size)
    small = rgb.resize((int(size[0] * ratio), int(size[1] * ratio)), PIL.Image.Resampling.LANCZOS)
    square = PIL.Image.new("L", (320, 320))
    square.paste(small, ((320 - small.width) // 2, (320 - small.height) // 2))
    np.testing.assert_array_equal(found, np.asarray(square))


def test_crop_is_the_middle_of_the_picture_at_its_shorter_side(tmp_path: Path) -> None:
    values = picture(800, 500)
    whole = PIL.Image.fromarray(values).resize((512, 320), PIL.Image.Resampling.LANCZOS)
    middle = np.asarray(whole.crop((96, 0, 416, 320))).astype(int)
    found = grey(save(tmp_path / "a.png", values), "crop")[..., 0]
    assert np.abs(found - middle)[:, 6:-6].max() <= 1  # at the cut edge nothing beyond it is seen


def test_a_320_square_is_kept_to_the_last_bit(tmp_path: Path) -> None:
    values = picture(SIDE, SIDE)
    for resize in pixels.RESIZE:
        np.testing.assert_array_equal(grey(save(tmp_path / "a.png", values), resize)[..., 0], values)


def test_crop_takes_the_centre_and_stretch_takes_all(tmp_path: Path) -> None:
    values = np.zeros((100, 300), np.uint8)
    values[:, 100:200] = 200
    path = save(tmp_path / "a.png", values)
    assert (grey(path, "crop")[:, 10:310] == 200).all()
    stretched = grey(path, "stretch")[..., 0]
    assert stretched[:, 160].min() == 200
    assert stretched[:, :90].max() == 0


@pytest.mark.parametrize("resize", pixels.RESIZE)
@pytest.mark.parametrize("size", [(1, 1), (2000, 40), (1, 5000)])
def test_any_size_becomes_the_square(tmp_path: Path, size: tuple[int, int], resize: str) -> None:
    path = save(tmp_path / "a.png", np.full(size[::-1], 128, np.uint8))
    values = grey(path, resize)
    assert values.shape == (SIDE, SIDE, 1)
    assert values.max() == 128


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("top", [4095, 65535])
def test_a_16_bit_ramp_stays_a_ramp(tmp_path: Path, suffix: str, top: int) -> None:
    ramp = np.linspace(0, top, SIDE).round().astype(np.uint16)
    path = save(tmp_path / f"a.{suffix}", np.tile(ramp, (SIDE, 1)))
    row = grey(path)[SIDE // 2, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, SIDE)).max() <= 1


def test_wide_values_of_any_sign_and_none(tmp_path: Path) -> None:
    signed = np.tile(np.linspace(-1000, 3000, SIDE).astype(np.int32), (SIDE, 1))
    row = grey(save(tmp_path / "a.tiff", signed))[0, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, SIDE)).max() <= 1
    constant = grey(save(tmp_path / "b.png", np.full((9, 9), 40_000, np.uint16)))
    assert (constant == 0).all()
    hole = np.ones((9, 9), np.float32)
    hole[3, 3] = np.nan
    with pytest.raises(RecordError, match="not finite"):
        grey(save(tmp_path / "c.tiff", hole))


def test_white_is_zero_is_inverted_at_any_depth(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, SIDE).round().astype(np.uint16), (SIDE, 1))
    wide = save(tmp_path / "a.tiff", ramp, tiffinfo={262: 0})
    assert np.abs(grey(wide)[0, :, 0].astype(int) - np.linspace(255, 0, SIDE)).max() <= 1
    # Pillow writes such 8-bit files with the values inverted, so that they show the same picture.
    narrow = save(tmp_path / "b.tiff", (ramp >> 8).astype(np.uint8), tiffinfo={262: 0})
    stored = PIL.Image.open(narrow)
    assert stored.tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.abs(grey(narrow)[0, :, 0].astype(int) - np.linspace(0, 255, SIDE)).max() <= 1


def test_palette_cmyk_alpha_and_bilevel_show_the_picture(tmp_path: Path) -> None:
    values = picture(SIDE, SIDE)
    image = PIL.Image.fromarray(values)
    palette = PIL.Image.fromarray(values)
    palette = palette.convert("P")
    palette.putpalette([255 - i // 3 for i in range(768)])  # index 0 is white: indices are no grey levels
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(grey(tmp_path / "p.png")[..., 0], 255 - values)

    image.convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert np.abs(grey(tmp_path / "c.jpg")[..., 0].astype(int) - values).mean() < 3

    alpha = PIL.Image.linear_gradient("L").resize((SIDE, SIDE))
    for mode in ("RGBA", "LA"):
        with_alpha = image.convert(mode)
        with_alpha.putalpha(alpha)
        with_alpha.save(tmp_path / "a.png")
        np.testing.assert_array_equal(grey(tmp_path / "a.png")[..., 0], values)
        assert grey(tmp_path / "a.png", channels=3).shape == (SIDE, SIDE, 3)

    PIL.Image.fromarray(values > 100).save(tmp_path / "b.png")
    np.testing.assert_array_equal(grey(tmp_path / "b.png")[..., 0], np.where(values > 100, 255, 0))


def test_colour_is_kept_only_when_asked(tmp_path: Path) -> None:
    red = np.zeros((SIDE, SIDE, 3), np.uint8)
    red[..., 0] = 255
    path = save(tmp_path / "a.png", red)
    np.testing.assert_array_equal(grey(path, channels=3), red)
    assert np.unique(grey(path)).tolist() == [76]  # 0.299 of 255: ITU-R 601


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    values = picture(SIDE, SIDE)
    # What must be stored so that a viewer that obeys the tag shows `values` (EXIF 2.3, orientation).
    stored = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.T,
        6: np.rot90(values),
        7: values[::-1, ::-1].T,
        8: np.rot90(values, -1),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix == "jpg" else {}
    path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif, **options)
    assert np.abs(grey(path)[..., 0].astype(int) - values).mean() < 2


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    values = picture(SIDE, SIDE)
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, "PNG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(grey(tmp_path / "a.jpg")[..., 0], values)


def test_bytes_in_memory_are_read_as_files_are(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for name, options in (("a.png", {}), ("a.jpg", {"exif": exif, "progressive": True}), ("a.tiff", {"exif": exif})):
        path = save(tmp_path / name, picture(60, 40), **options)
        found = pixels.store_pixels(pixels.open_bytes(path.read_bytes()), side=SIDE, channels=1, resize="pad")
        np.testing.assert_array_equal(found, grey(path))
    for raw, why in ((b"", "empty image file"), (b"<html>", "not an image of a known type")):
        with pytest.raises(RecordError, match=why):
            pixels.open_bytes(raw)
    with pytest.raises(RecordError, match="truncated or damaged image"):
        pixels.open_bytes((tmp_path / "a.jpg").read_bytes()[:-300])


def test_files_that_are_no_images(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.png") == "missing image file"
    assert reason(tmp_path / "none.png" / "deeper.png") == "missing image file"
    assert reason(tmp_path / ("x" * 300 + ".png")) == "missing image file"
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert reason(tmp_path / "empty.jpg") == "empty image file"
    (tmp_path / "page.png").write_text("<html>404</html>")
    assert reason(tmp_path / "page.png") == "not an image of a known type"
    (tmp_path / "figure.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert reason(tmp_path / "figure.eps") == "not an image of a known type"  # would start Ghostscript
    assert reason(tmp_path) == "a folder where an image file should be"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_cut_file_is_never_half_an_image(tmp_path: Path, suffix: str, share: float) -> None:
    rng = np.random.default_rng(0)
    path = save(tmp_path / f"a.{suffix}", rng.integers(0, 255, (200, 200), dtype=np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert reason(path) in ("truncated or damaged image", "not an image of a known type")


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (10_000, 10_000), (60_000, 60_000)])
def test_the_cap_is_read_from_the_header(tmp_path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    # No pixels behind the header: had anything been decoded, the reason would be another.
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    assert reason(tmp_path / "bomb.png") == "image larger than 64 megapixels"


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 255, (40, 40), dtype=np.uint8)
    for suffix in ("png", "jpg", "tiff", "gif", "bmp", "webp"):
        whole = save(tmp_path / f"a.{suffix}", values).read_bytes()
        path = tmp_path / f"b.{suffix}"
        for _ in range(60):
            damaged = bytearray(whole)
            for at in rng.integers(0, len(damaged), 3):
                damaged[at] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                assert grey(path).shape == (SIDE, SIDE, 1)
            except RecordError as error:
                assert error.reason  # a counted skip; anything else fails the test


def test_lazy_loader_travels_to_a_worker(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture(20, 10))
    assert pickle.loads(pickle.dumps(pixels.lazy(path)))().size == (20, 10)
    error = pickle.loads(pickle.dumps(RecordError("missing image file", unreadable=False)))
    assert (error.reason, error.unreadable) == ("missing image file", False)
