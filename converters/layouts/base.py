"""What a layout says of itself: which names hold which parameters, and what changes on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Way:
    """How one stored array becomes parameters, and back; `shape` is what is stored for parameters of these shapes."""

    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]
    shape: Callable[[Sequence[Shape]], Shape]


def _one(change: Callable[[np.ndarray], np.ndarray], back: Callable[[np.ndarray], np.ndarray], order: Any) -> Way:
    return Way(lambda a: [change(a)], lambda parts: back(parts[0]), lambda shapes: order(shapes[0]))


def _split_rows(a: np.ndarray) -> list[np.ndarray]:
    return [part.T for part in np.split(a, 3)]


SAME = _one(lambda a: a, lambda a: a, lambda s: s)
# torch's Linear keeps (out, in), Flax (in, out).
LINEAR = _one(lambda a: a.T, lambda a: a.T, lambda s: s[::-1])
# torch's convolutions keep (out, in, height, width), Flax (height, width, in, out).
CONV = _one(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1), lambda s: (s[3], s[2], s[0], s[1]))
# Queries, keys and values in one array, in this order; a bias is its own transpose.
QKV = Way(
    _split_rows,
    lambda parts: np.concatenate([part.T for part in parts]),
    lambda shapes: (3 * shapes[0][-1], *shapes[0][:-1]),
)


def _query_and_value(a: np.ndarray) -> list[np.ndarray]:
    query, _, value = np.split(a, 3)
    return [query, value]


# DINOv3 has no key bias: Meta's files hold something in its place, which their bias_mask puts out.
QV_BIAS = Way(
    _query_and_value,
    lambda parts: np.concatenate([parts[0], np.zeros_like(parts[0]), parts[1]]),
    lambda shapes: (3 * shapes[0][0],),
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One stored array and the parameters it holds."""

    stored: str
    names: tuple[str, ...]
    way: Way = SAME


def leaf(stored: str, name: str, way: Way = SAME) -> Leaf:
    return Leaf(stored, (name,), way)


def norm(stored: str, name: str) -> list[Leaf]:
    return [leaf(f"{stored}.weight", f"{name}/scale"), leaf(f"{stored}.bias", f"{name}/bias")]


def linear(stored: str, name: str, *, bias: bool = True) -> list[Leaf]:
    found = [leaf(f"{stored}.weight", f"{name}/kernel", LINEAR)]
    return [*found, leaf(f"{stored}.bias", f"{name}/bias")] if bias else found


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a conversion does: leaves, stored arrays left out and parameters made up (each with why), the card.

    architecture: as in a model folder's card. trained_with: a name in `statistics.STATISTICS`, what images of this
    layout's models are usually normalised with. identities: square kernels that the source lacks and that change
    nothing. tails: (stored array, n) by the parameter whose rows from n on it holds instead of the parameter's leaf.
    """

    kind: str
    architecture: dict[str, Any]
    leaves: list[Leaf]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    zeros: Mapping[str, str] = dataclasses.field(default_factory=dict)
    identities: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tails: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    trained_with: str = "clip"
    licence: str = ""
