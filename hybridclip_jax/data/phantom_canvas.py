"""The film that phantoms are drawn on: coordinates, soft edges, thin lines, textures, exposure.

Arrays go through +, -, *, /, sqrt, min, max and floor only, which all machines and versions of numpy round
alike: the bytes of a phantom are the same everywhere.
"""

# H half-size side (160): soft anatomy is drawn there and enlarged; S full side (320); N points of a line

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from hybridclip_jax.data.phantom_findings import Difficulty, Draws

SIDE = 320
HALF = SIDE // 2
_TILE = 480
_LUT_SIZE = 1024
_LUT_TOP = 1.2  # grey level of the table's last entry, before exposure


@functools.cache
def _noise_tiles() -> tuple[np.ndarray, np.ndarray]:
    """Two fixed textures of standard deviation 1, float32 [480, 480]: vessel-sized and cloud-sized."""
    raw = Draws("tiles").octets(_TILE * _TILE).reshape(_TILE, _TILE).astype(np.int64) - 128

    def blurred(array: np.ndarray, width: int) -> np.ndarray:
        for axis in (0, 1, 0, 1):
            array = np.add.reduce([np.roll(array, shift, axis) for shift in range(width)])
        return array

    tiles = []
    for width in (4, 15):
        tile = blurred(raw, width)
        tile = tile - int(tile.sum()) // tile.size
        spread = math.sqrt(int((tile * tile // tile.size).sum()))
        tiles.append((tile / spread).astype(np.float32))
    return tiles[0], tiles[1]


def textures(draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """A vessel-sized and a cloud-sized texture of standard deviation 1 about 0, each float32 [H, H]."""
    cuts = []
    for tile in _noise_tiles():
        top, side = draws.below(_TILE - HALF), draws.below(_TILE - HALF)
        cuts.append(tile[top : top + HALF, side : side + HALF])
    return cuts[0], cuts[1]


@functools.cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    centres = ((np.arange(HALF, dtype=np.float32) + 0.5) / (HALF / 2) - 1.0).astype(np.float32)
    return centres[None, :], centres[:, None]


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """0 where the distance is negative, 1 where it is positive, a smooth step of this width between."""
    t = np.clip(distance * np.float32(1.0 / width) + np.float32(0.5), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def twice(half_HH: np.ndarray) -> np.ndarray:
    """Bilinear enlargement, float32 [H, H] -> [S, S]."""
    for axis in (0, 1):
        half_HH = np.moveaxis(half_HH, axis, 0)
        near, n = half_HH * np.float32(0.75), half_HH.shape[0]
        far = half_HH * np.float32(0.25)
        out = np.empty((2 * n, *half_HH.shape[1:]), np.float32)
        out[0::2] = near
        out[1::2] = near
        out[2::2] += far[:-1]
        out[0] += far[0]
        out[1:-1:2] += far[1:]
        out[-1] += far[-1]
        half_HH = np.moveaxis(out, 0, axis)
    return half_HH


@dataclasses.dataclass(frozen=True)
class Pose:
    """From the frame of the anatomy to the film: turned by `angle` (radians), enlarged, shifted by du, dv."""

    angle: float
    scale: float
    du: float
    dv: float

    def frame(self) -> tuple[np.ndarray, np.ndarray]:
        """u and v at the pixels of the half-size film, each float32 [H, H]."""
        x, y = _grid()
        c, s = np.float32(math.cos(self.angle) / self.scale), np.float32(math.sin(self.angle) / self.scale)
        x, y = x - np.float32(self.du), y - np.float32(self.dv)
        return c * x + s * y, c * y - s * x

    def pixels(self, points: Sequence[tuple[float, float]]) -> np.ndarray:
        """Frame points to pixel coordinates (x, y) of the full film, float64 [N, 2]."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        out = []
        for u, v in points:
            x = self.du + self.scale * (c * u - s * v)
            y = self.dv + self.scale * (s * u + c * v)
            out.append(((x + 1.0) * (SIDE / 2) - 0.5, (y + 1.0) * (SIDE / 2) - 0.5))
        return np.array(out)


def _smooth_curve(points_N2: np.ndarray) -> np.ndarray:
    """Corners cut four times (Chaikin, 1974), ends kept; then a point about every 0.7 pixels, [N, 2]."""
    for _ in range(4):
        first, second = points_N2[:-1], points_N2[1:]
        cut = np.stack((0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second), 1).reshape(-1, 2)
        points_N2 = np.concatenate((points_N2[:1], cut, points_N2[-1:]))
    pieces = []
    for (x0, y0), (x1, y1) in zip(points_N2[:-1].tolist(), points_N2[1:].tolist(), strict=True):
        n = max(1, math.ceil(math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2) / 0.7))
        t = np.arange(n)[:, None] / n
        pieces.append(np.array([[x0, y0]]) + t * np.array([[x1 - x0, y1 - y0]]))
    return np.concatenate(pieces)


def add_strokes(film_SS: np.ndarray, curves: Sequence[np.ndarray], radius: float, density: float) -> None:
    """Adds smooth lines through these points, `pixels` [N, 2] each; where lines cross they do not add up."""
    reach = math.ceil(radius + 0.5)
    points_N2 = np.concatenate([_smooth_curve(curve) for curve in curves])
    inside = ((points_N2 > reach + 1) & (points_N2 < SIDE - reach - 2)).all(1)
    points_N2 = points_N2[inside]
    corner_N2 = np.floor(points_N2).astype(np.int64)
    within = (points_N2 - corner_N2).astype(np.float32)
    offsets = np.arange(-reach, reach + 2, dtype=np.float32)
    dx = offsets[None, None, :] - within[:, 0, None, None]
    dy = offsets[None, :, None] - within[:, 1, None, None]
    cover = np.clip(np.float32(radius + 0.5) - np.sqrt(dx * dx + dy * dy), 0.0, 1.0)
    where = (corner_N2[:, 1, None, None] + offsets.astype(np.int64)[:, None]) * SIDE
    where = where + corner_N2[:, 0, None, None] + offsets.astype(np.int64)
    mask = np.zeros(SIDE * SIDE, np.float32)
    np.maximum.at(mask, where.ravel(), cover.ravel())
    film_SS += mask.reshape(SIDE, SIDE) * np.float32(density)


def expose(film_SS: np.ndarray, draws: Draws, difficulty: Difficulty) -> np.ndarray:
    """Noise, gain and gamma; uint8 [S, S]. The curve is a table, so that pow is never taken of pixels."""
    gain, gamma = 1.0 + draws.around(difficulty.gain), 1.0 + draws.around(difficulty.gamma)
    entries = [gain * (i / (_LUT_SIZE - 1) * _LUT_TOP) for i in range(_LUT_SIZE)]
    curve = np.array([round(255 * min(1.0, entry) ** gamma) for entry in entries], np.uint8)
    octets = draws.octets(2 * SIDE * SIDE).reshape(2, SIDE, SIDE).astype(np.int16)
    noise = (octets[0] + octets[1] - 255).astype(np.float32)  # triangular, standard deviation 104.5
    per_grey = (_LUT_SIZE - 1) / _LUT_TOP
    film_SS = film_SS * np.float32(per_grey) + noise * np.float32(difficulty.noise / 104.5 * per_grey)
    return curve.take(np.clip(film_SS, 0, _LUT_SIZE - 1).astype(np.int16))
