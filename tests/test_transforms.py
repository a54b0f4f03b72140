"""Crops, flips and the reference resize: what they cut, what they cover, and how near the resize must be."""

from __future__ import annotations

import random

import jax
import numpy as np
import pytest
from PIL import Image

from hybridclip_jax.data import transforms

STILL = (0.0, 0.0, 0.99, 0.5, 0.5)  # top left corner, no flip


def textured(channels: int, side: int = 320) -> np.ndarray:
    """Smooth shapes with fine texture, on which resizes that alias differ from those that do not."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    planes = []
    for channel in range(channels):
        shape = np.exp(-(((x - 150 - 20 * channel) / 70) ** 2) - ((y - 170) / 90) ** 2)
        ribs = np.sin(y / 4 + x / 30) * 0.3 + (np.indices((side, side)).sum(0) % 2) * 0.3
        planes.append(np.clip((shape + ribs) * 150 + 40, 0, 255))
    return np.stack(planes, axis=-1).astype(np.uint8)


def augmented(image: np.ndarray, side: int, crop: str, flip: bool, draws: tuple[float, ...] = STILL) -> np.ndarray:
    out = np.full((side, side, image.shape[-1]), 7, np.uint8)
    transforms.train_image(image, out, crop, flip, draws)
    return out


def resized(image: np.ndarray, side: int) -> np.ndarray:
    out = np.empty((side, side, image.shape[-1]), np.uint8)
    transforms.resize(image, out)
    return out


def close_to_reference(result: np.ndarray, image: np.ndarray) -> bool:
    """Within one grey level, and 0.3 on average, of the antialiased a = -0.5 cubic computed in float by jax.

    Pillow rounds to whole levels between its two passes, and no more may differ (measured 0.18, at most 1).
    """
    shape = (*result.shape[:2], image.shape[-1])
    exact = jax.image.resize(image.astype(np.float32), shape, method="cubic", antialias=True)
    apart = np.abs(result.astype(np.float64) - np.clip(np.round(exact), 0, 255))
    return bool(apart.max() <= 1 and apart.mean() < 0.3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [224, 96, 320])
def test_resize_is_pillow_bicubic(channels: int, side: int) -> None:
    image = textured(channels)
    result = resized(image, side)
    for channel in range(channels):
        pillow = Image.fromarray(image[..., channel]).resize((side, side), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(result[..., channel], np.asarray(pillow))
    assert close_to_reference(result, image)


def test_tolerance_refuses_other_resizes() -> None:
    image = textured(1)
    pillow = Image.fromarray(image[..., 0])
    for wrong in (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BOX):
        assert not close_to_reference(np.asarray(pillow.resize((224, 224), wrong))[..., None], image)
    # cv2's cubic and torch's plain one do not antialias.
    aliased = jax.image.resize(image.astype(np.float32), (224, 224, 1), method="cubic", antialias=False)
    assert not close_to_reference(np.clip(np.round(aliased), 0, 255).astype(np.uint8), image)


def test_resize_reads_views_and_writes_views() -> None:
    image = textured(3)
    out = np.zeros((2, 224, 224, 3), np.uint8)
    transforms.resize(image[10:300:2, ::-1], out[1])
    np.testing.assert_array_equal(out[1], resized(np.ascontiguousarray(image[10:300:2, ::-1]), 224))
    assert not out[0].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_random_crop_is_a_slice_of_the_image(channels: int) -> None:
    image = textured(channels)
    draws = (0.25, 0.75, 0.99, 0.0, 0.0)
    result = augmented(image, 224, "random", True, draws)
    np.testing.assert_array_equal(result, image[24 : 24 + 224, 72 : 72 + 224])
    np.testing.assert_array_equal(augmented(image, 320, "random", True, draws), image)


def test_random_crop_reaches_every_position_evenly() -> None:
    rng = random.Random(0)
    boxes = [transforms.random_box(320, 320, 224, [rng.random() for _ in range(5)]) for _ in range(20_000)]
    for offsets in ([box.top for box in boxes], [box.left for box in boxes]):
        counts = np.bincount(offsets)
        assert len(counts) == 97
        expected = len(boxes) / 97
        # chi-square with 96 degrees of freedom: mean 96, standard deviation 13.9
        assert ((counts - expected) ** 2 / expected).sum() < 96 + 4 * 13.9
    almost_one = 1 - 2**-53
    assert transforms.random_box(320, 320, 224, (almost_one, 0.0)) == (96, 0, 224, 224)


@pytest.mark.parametrize("crop", transforms.CROPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_flip_mirrors_left_and_right(crop: str, channels: int) -> None:
    image = textured(channels)
    draws = (0.3, 0.6, 0.1, 0.4, 0.2)
    plain = augmented(image, 224, crop, False, draws)
    np.testing.assert_array_equal(augmented(image, 224, crop, True, draws), plain[:, ::-1])
    assert not np.array_equal(plain, plain[:, ::-1])


def test_flip_happens_in_half_of_the_draws() -> None:
    image = textured(1)
    plain = augmented(image, 224, "random", False)
    for draw, mirrored in [(0.0, True), (0.499, True), (0.5, False), (0.999, False)]:
        result = augmented(image, 224, "random", True, (0.0, 0.0, draw, 0.0, 0.0))
        np.testing.assert_array_equal(result, plain[:, ::-1] if mirrored else plain)


def test_random_resized_equals_crop_then_resize() -> None:
    image = textured(1)
    draws = (0.8, 0.1, 0.9, 0.3, 0.7)
    top, left, height, width = transforms.random_resized_box(320, 320, draws)
    # Cut first: Pillow's own resize(box=...) would let pixels beyond the cut bleed in at its rim.
    cut = Image.fromarray(image[..., 0]).crop((left, top, left + width, top + height))
    expected = np.asarray(cut.resize((224, 224), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(augmented(image, 224, "random_resized", False, draws)[..., 0], expected)


def test_random_resized_boxes_keep_their_ranges() -> None:
    rng = random.Random(1)
    boxes = [transforms.random_resized_box(320, 320, [rng.random() for _ in range(5)]) for _ in range(20_000)]
    tops, lefts, heights, widths = np.array(boxes).T
    assert (tops >= 0).all()
    assert (lefts >= 0).all()
    assert (tops + heights <= 320).all()
    assert (lefts + widths <= 320).all()
    area, ratio = heights * widths / 320**2, widths / heights
    np.testing.assert_allclose([area.min(), area.max()], [0.6, 1.0], atol=0.005)
    np.testing.assert_allclose([ratio.min(), ratio.max()], [3 / 4, 4 / 3], atol=0.01)
    np.testing.assert_allclose(area.mean(), 0.8, atol=0.005)
    np.testing.assert_allclose(np.log(ratio).mean(), 0.0, atol=0.005)
    assert np.unique(tops).size > 60
    covered = np.zeros((320, 320), bool)
    for top, left, height, width in boxes[:200]:
        covered[top : top + height, left : left + width] = True
    assert covered.all()


def test_a_long_image_still_gives_a_box_inside_it() -> None:
    for height, width in [(100, 400), (400, 100), (7, 5)]:
        for draws in [(0.0,) * 5, (0.999,) * 5]:
            top, left, box_height, box_width = transforms.random_resized_box(height, width, draws)
            assert 0 <= top <= top + box_height <= height
            assert 0 <= left <= left + box_width <= width


def test_no_crop_is_the_evaluation_resize() -> None:
    image = textured(3)
    np.testing.assert_array_equal(augmented(image, 224, "none", False), resized(image, 224))


def test_unknown_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="'centre' is not one of random, random_resized, none"):
        augmented(textured(1), 224, "centre", False)
