"""What published towers were trained to see: mean and standard deviation of pixels in 0..1, by channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from converters.sources import Source
from hybridclip_jax.config import CLIP_MEAN, CLIP_STD
from hybridclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Statistics:
    mean: tuple[float, ...]
    std: tuple[float, ...]


STATISTICS = {
    "clip": Statistics(CLIP_MEAN, CLIP_STD),
    # also DINOv3's of LVD-1689M
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # DINOv3's satellite towers
    "sat493m": Statistics((0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
    # one channel, 101.48761 and 83.43944 of 255 in its released code
    "chexzero": Statistics((101.48761 / 255,) * 3, (83.43944 / 255,) * 3),
}


def of(source: Source, usual: str, asked: str | None) -> tuple[Statistics, str]:
    """(statistics, who says so): the flag, else the source's own preprocessor file, else its name, else the usual.

    Raises UserError where the flag and the preprocessor file disagree.
    """
    stated = _stated(source)
    if asked is not None:
        if stated is not None and not same(stated, STATISTICS[asked]):
            raise UserError(
                f"{source.name}: preprocessor_config.json says mean {list(stated.mean)}, --statistics {asked} says "
                f"{list(STATISTICS[asked].mean)}; leave the flag out, or mend the file"
            )
        return STATISTICS[asked], f"--statistics {asked}"
    if stated is not None:
        return stated, "its preprocessor_config.json"
    if "sat493m" in source.name:
        return STATISTICS["sat493m"], "its name (sat493m)"
    return STATISTICS[usual], f"the layout ({usual}; another is given with --statistics)"


def _stated(source: Source) -> Statistics | None:
    found = [source.preprocessor.get(f"image_{name}") for name in ("mean", "std")]
    if found == [None, None]:
        return None
    for values in found:
        if not (isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values)):
            raise UserError(f"{source.name}: preprocessor_config.json: image_mean and image_std must be three numbers")
    mean, std = (tuple(map(float, values)) for values in found if values is not None)
    return Statistics(mean, std)


def same(a: Statistics, b: Statistics) -> bool:
    """Equal up to the rounding of published figures."""
    return all(_close(x, y) for x, y in ((a.mean, b.mean), (a.std, b.std)))


def _close(x: Sequence[float], y: Sequence[float]) -> bool:
    return bool(np.allclose(x, y, atol=1e-6))


def fold(
    kernel_HWCD: np.ndarray, bias_D: np.ndarray, own: Statistics, given: Statistics
) -> tuple[np.ndarray, np.ndarray]:
    """A patch embedding that gives, for images normalised with `given`, what it gave for images normalised with `own`.

    (p - own.mean) / own.std = x given.std / own.std + (given.mean - own.mean) / own.std for x = (p - given.mean) /
    given.std: a scale and a shift by channel, which a convolution with a bias and without padding takes up exactly.
    """
    own_mean, own_std, mean, std = (np.asarray(v, np.float64) for v in (own.mean, own.std, given.mean, given.std))
    kernel, shift_C = kernel_HWCD.astype(np.float64), (mean - own_mean) / own_std
    folded = kernel * (std / own_std)[:, None]
    bias = bias_D.astype(np.float64) + np.einsum("hwcd,c->d", kernel, shift_C)
    return folded.astype(kernel_HWCD.dtype), bias.astype(bias_D.dtype)
