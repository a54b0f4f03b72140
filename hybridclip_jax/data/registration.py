"""Whether two radiographs are one exposure: their correlation after one is laid over the other.

Both are reduced to their details (a band of frequencies, divided by its local strength), in which two exposures differ
even when both are of one patient; what all chests share, and how bright or contrasty a copy is, are gone.
"""

# S side of the image at hand (320, 80)

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from hybridclip_jax.data.store import SIDE

# In pixels of 320: what is finer than the first or coarser than the second is taken out; the rest is divided by its
# strength within about the third. Finer, and copies reduced to 128 px are lost; coarser, and two exposures of one
# patient are taken for one.
_FINE_SIGMA, _COARSE_SIGMA, _LOCAL_SIGMA = 1.5, 6.0, 12.0
_NOISE = 2.0  # grey levels: weaker details count for less
_LEAST_OVERLAP = 0.6  # of the image's area


@dataclasses.dataclass(frozen=True)
class _Level:
    """A size at which two images are laid over each other: steps of shift (pixels of 320) and scale, and how often
    they are halved.
    """

    reduced: int
    shift: float
    scale: float
    halvings: int
    begin_from: float  # a lower correlation at the pose given means two pictures
    go_on_from: float  # and so does a lower one at the best pose


_LEVELS = (
    _Level(8, 8.0, 0.05, 2, 0.15, 0.4),
    _Level(4, 2.0, 0.01, 1, 0.0, 0.55),
    _Level(2, 1.0, 0.005, 1, 0.0, 0.65),
    _Level(1, 0.5, 0.0025, 1, 0.0, 0.0),
)


@dataclasses.dataclass(frozen=True)
class Pose:
    """How one image lies in another: pixel p from the middle lies at `shift` + `scale` * p there, in pixels of 320."""

    scale_y: float
    scale_x: float
    shift_y: float
    shift_x: float


class Details:
    """The details of uint8 [320, 320, C], made at each size when asked for."""

    def __init__(self, image: np.ndarray) -> None:
        self._image = image
        self._made: dict[int, np.ndarray] = {}

    def at(self, reduced: int) -> np.ndarray:
        """float32 [S, S], S = 320 / reduced, without a mean."""
        if reduced not in self._made:
            grey = block_means(self._image[None], reduced)[0]
            band = _blurred(grey, _FINE_SIGMA / reduced) - _blurred(grey, _COARSE_SIGMA / reduced)
            details = band / (np.sqrt(_blurred(band * band, _LOCAL_SIGMA / reduced)) + np.float32(_NOISE))
            self._made[reduced] = details - details.mean()
        return self._made[reduced]


def correlation(image: Details, other: Details, pose: Pose) -> float:
    """Correlation of the details of two images where they overlap best, searched from `pose`.

    `pose` says how `image` lies in `other`, to about 4 pixels of 320 and 2 % of the scale. About 1 for one picture
    encoded twice, about 0 for two pictures.
    """
    score = 0.0
    for level in _LEVELS:
        pair = image.at(level.reduced), other.at(level.reduced)
        score = _overlap_correlation(*pair, pose)
        if score < level.begin_from:
            break
        pose, score = _climb(*pair, pose, score, level)
        if score < level.go_on_from:
            break
    return score


def block_means(images: np.ndarray, block: int) -> np.ndarray:
    """float32 [n, 320 / block, 320 / block] of uint8 [n, 320, 320, C]: means over blocks and channels."""
    channels = images.shape[3]
    grey = images[..., 0] if channels == 1 else images.sum(axis=3, dtype=np.uint16)
    if block == 1:
        return grey.astype(np.float32) / np.float32(channels)
    rows = np.add(grey[:, 0::block], grey[:, 1::block], dtype=np.uint16)
    for i in range(2, block):
        rows += grey[:, i::block]
    blocks = np.add(rows[:, :, 0::block], rows[:, :, 1::block], dtype=np.float32)
    for i in range(2, block):
        blocks += rows[:, :, i::block]
    return blocks / np.float32(channels * block * block)


def _climb(a_SxS: np.ndarray, b_SxS: np.ndarray, pose: Pose, score: float, level: _Level) -> tuple[Pose, float]:
    """The best pose that steps in one parameter at a time lead to, the steps halved when none is better."""
    steps = {"shift_y": level.shift, "shift_x": level.shift, "scale_y": level.scale, "scale_x": level.scale}
    for _ in range(level.halvings + 1):
        improved = True
        while improved:
            improved = False
            for name, step in steps.items():
                for signed in (step, -step):
                    tried = dataclasses.replace(pose, **{name: getattr(pose, name) + signed})
                    found = _overlap_correlation(a_SxS, b_SxS, tried)
                    if found > score:
                        pose, score, improved = tried, found, True
        steps = {name: step / 2 for name, step in steps.items()}
    return pose, score


def _overlap_correlation(a_SxS: np.ndarray, b_SxS: np.ndarray, pose: Pose) -> float:
    """Of both where `pose` lays one over the other; 0 where that is too little of them."""
    side = len(a_SxS)
    rows, row_at = _line(side, pose.scale_y, pose.shift_y)
    columns, column_at = _line(side, pose.scale_x, pose.shift_x)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height * width < _LEAST_OVERLAP * side * side:
        return 0.0
    a = a_SxS[rows, columns]
    b = _interpolate(_interpolate(b_SxS, row_at).T, column_at).T
    both = float(np.vdot(a, b))
    return both / max(float(np.sqrt(np.vdot(a, a) * np.vdot(b, b))), 1e-12)


def _line(side: int, scale: float, shift: float) -> tuple[slice, np.ndarray]:
    """The pixels of one axis that lie inside the other image, and where."""
    middle = (side - 1) / 2
    at = middle + shift * side / SIDE + scale * (np.arange(side) - middle)
    inside = np.flatnonzero((at >= 0) & (at <= side - 1))
    if not len(inside):
        return slice(0, 0), at[:0]
    kept = slice(int(inside[0]), int(inside[-1]) + 1)
    return kept, at[kept]


def _interpolate(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows of `image` at fractional places."""
    low = np.minimum(at.astype(int), len(image) - 2)
    share = (at - low).astype(np.float32)[:, None]
    return image[low] * (1 - share) + image[low + 1] * share


def _blurred(image_SxS: np.ndarray, sigma: float) -> np.ndarray:
    weights = _gaussian(len(image_SxS), sigma)
    return weights @ image_SxS @ weights.T


@functools.cache
def _gaussian(side: int, sigma: float) -> np.ndarray:
    """float32 [S, S]: each row a Gaussian about its pixel that adds up to 1, at the edges too."""
    distance = np.arange(side)[:, None] - np.arange(side)[None]
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
