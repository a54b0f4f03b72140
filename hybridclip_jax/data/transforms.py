"""Crops, flips and the reference resize, on uint8 images, driven by numbers that the caller draws.

Nothing here keeps a random state: equal draws give equal pixels, whatever batch or process they are made in.
Every function writes into an array the caller allocated, so a batch is filled once and not copied again.
"""

# H W C image as stored, S output side; C is 1 (radiographs) or 3 (colour)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

CROPS = ("random", "random_resized", "none")
N_DRAWS = 5  # what one image may use of its draws: down, across, flip, area, aspect ratio

# Milder than torchvision's default area (0.08..1): a crop without the lungs is not what the report says.
RESIZED_AREA = (0.6, 1.0)
RESIZED_RATIO = (3 / 4, 4 / 3)


class Box(NamedTuple):
    """A rectangle of whole pixels inside an image."""

    top: int
    left: int
    height: int
    width: int


def resize(image_HxWxC: np.ndarray, out_SxSxC: np.ndarray) -> None:
    """Pillow's bicubic (antialiased, a = -0.5), the reference; cv2's and torch's plain cubic do not equal it.

    Images are uint8 [H, W, C] and [S, S, C], C = 1 or 3; equal shapes are copied as they are.
    """
    if image_HxWxC.shape == out_SxSxC.shape:
        out_SxSxC[...] = image_HxWxC
        return
    grey = image_HxWxC.shape[-1] == 1
    picture = Image.fromarray(image_HxWxC[..., 0] if grey else image_HxWxC)
    height, width = out_SxSxC.shape[:2]
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    out_SxSxC[...] = resized[..., None] if grey else resized


def random_box(height: int, width: int, side: int, draws: Sequence[float]) -> Box:
    """A square of `side` pixels, every position equally likely. The image must be at least that large."""
    return Box(_below(height - side + 1, draws[0]), _below(width - side + 1, draws[1]), side, side)


def random_resized_box(height: int, width: int, draws: Sequence[float]) -> Box:
    """A rectangle with RESIZED_AREA of the image's area, and width / height in RESIZED_RATIO.

    Area is uniform and ratio log-uniform, as in Inception's crop (Szegedy et al. 2015), but the ratio is
    drawn among those that fit the image: every draw gives a crop, without rejected attempts or a fallback.
    """
    share = RESIZED_AREA[0] + (RESIZED_AREA[1] - RESIZED_AREA[0]) * draws[3]
    area = share * height * width
    lowest = max(RESIZED_RATIO[0], area / height**2)
    highest = min(RESIZED_RATIO[1], width**2 / area)
    ratio = lowest * (highest / lowest) ** draws[4] if highest > lowest else lowest
    box_height = min(height, max(1, round(math.sqrt(area / ratio))))
    box_width = min(width, max(1, round(math.sqrt(area * ratio))))
    top = _below(height - box_height + 1, draws[0])
    left = _below(width - box_width + 1, draws[1])
    return Box(top, left, box_height, box_width)


def train_image(image_HxWxC: np.ndarray, out_SxSxC: np.ndarray, crop: str, flip: bool, draws: Sequence[float]) -> None:
    """Writes one augmented training image.

    Images are uint8, [H, W, C] in and [S, S, C] out. crop: "random" cuts S x S pixels out of the image as
    they are; "random_resized" cuts a random rectangle and resizes it; "none" resizes the whole image, as
    evaluation does. flip: mirrors left and right in half of the draws. draws: N_DRAWS numbers in [0, 1).
    """
    height, width = image_HxWxC.shape[:2]
    if crop == "random":
        top, left, box_height, box_width = random_box(height, width, out_SxSxC.shape[0], draws)
    elif crop == "random_resized":
        top, left, box_height, box_width = random_resized_box(height, width, draws)
    elif crop == "none":
        top, left, box_height, box_width = 0, 0, height, width
    else:
        raise ValueError(f"crop {crop!r} is not one of {', '.join(CROPS)}")
    # Writing through a mirrored view mirrors the result of any crop without another copy.
    target = out_SxSxC[:, ::-1] if flip and draws[2] < 0.5 else out_SxSxC
    resize(image_HxWxC[top : top + box_height, left : left + box_width], target)


def _below(count: int, draw: float) -> int:
    """A whole number in 0..count-1 from a draw in [0, 1)."""
    return min(int(draw * count), count - 1)
