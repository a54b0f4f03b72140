"""Near copies: pairs of images of which one is the other encoded again, cropped, shifted, or a little brighter.

Three steps, each on what the one before leaves:

1. propose: low frequencies of the middle of each image, compared with those of several windows of the other, so that a
   crop finds its source wherever it was cut; whitened, because chests are alike in what is common to chests.
2. sift: the same with more frequencies and windows, over the best few hundred of each image.
3. confirm: `registration.correlation`, at 320 px over scale and shift.

Looked for: crops that keep 90 % of each side or more, from any place; shifts by 5 % of the side; new encodings; other
brightness and contrast. Not looked for: mirrored, turned and inverted images, which no score here would confirm.
"""

# N images, Q queries, V windows, K frequencies an axis, D = K * K - 1 numbers a descriptor

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from hybridclip_jax.data.registration import Details, Pose, block_means, correlation
from hybridclip_jax.data.store import SIDE

# Measured on 337 frontal radiographs and on 535 thumbnails of 64 px enlarged to 320. Highest between two patients: 0.40
# and 0.57; between two exposures of one patient: 0.64 and 0.78. Lowest of 100 copies each, encoded as JPEG at quality
# 50: crops to 90 % from anywhere 0.93 and 0.89, other brightness, contrast or gamma 0.87. Lost are one in a hundred of
# those shifted by up to 5 % with black behind, or cropped on one side and stretched, and what was reduced to 64 px on
# the way (0.62).
CONFIRMED_FROM = 0.75

_BLOCK = 4  # pixels a side of the means that descriptors are made of
_SMALL = SIDE // _BLOCK
_WINDOW = 0.8 * SIDE  # the middle that every crop to 90 % still holds
_BLANK_BELOW = 0.5  # grey levels of contrast in the middle: nothing to compare
_READ = 256  # images read at a time
_QUERIES = 32  # images looked up at a time
_ROWS = 512  # images they are compared with at a time: the scores stay in the processor's cache
_WAITING = 4  # pieces of work under way: their images are in memory
_PROPOSED = 256  # images of each comparison that come to the second step, about
_PROPOSED_FROM = 0.5
_SIFTED = 4  # and to the third
_SIFTED_FROM = 0.4
_PRIOR = 64  # images that the assumed spectrum counts as, beside those there are

Show = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images to compare. `read(rows)` gives uint8 [n, 320, 320, C]; `keys` [N] are equal where pixels are."""

    read: Callable[[np.ndarray], np.ndarray]
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)


@dataclasses.dataclass(frozen=True, order=True)
class NearCopy:
    """Image `row` of `group` and image `other_row` of `other_group`, and the correlation that confirmed them."""

    group: int
    row: int
    other_group: int
    other_row: int
    score: float


@dataclasses.dataclass(frozen=True)
class Found:
    """`copies`, and per group the rows whose middle has no contrast, which can be compared with nothing."""

    copies: list[NearCopy]
    blank: list[list[int]]


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Which windows of an image are described, and how finely. Shifts in pixels, scales relative to `_WINDOW`."""

    frequencies: int
    scales: tuple[float, ...]
    shifts: tuple[float, ...]

    @functools.cached_property
    def poses(self) -> list[Pose]:
        """In the order of `describe`'s windows."""
        return [Pose(s, s, dy, dx) for s in self.scales for dy in self.shifts for dx in self.shifts]

    @functools.cached_property
    def bases(self) -> list[np.ndarray]:
        """For each scale float32 [shifts * K, 80]: a window's cosines at each shift."""
        return [np.concatenate([_cosines(self.frequencies, s, d) for d in self.shifts]) for s in self.scales]

    def describe(self, small_Nx80x80: np.ndarray) -> np.ndarray:
        """float32 [N, V, D] of unit length; zeros where a window has no contrast."""
        n, k, m = len(small_Nx80x80), self.frequencies, len(self.shifts)
        parts = []
        for basis in self.bases:
            both = np.matmul(np.matmul(basis, small_Nx80x80), basis.T)  # [N, m * K, m * K]
            parts.append(both.reshape(n, m, k, m, k).transpose(0, 1, 3, 2, 4).reshape(n, m * m, k * k)[:, :, 1:])
        described = np.concatenate(parts, axis=1)
        length = np.linalg.norm(described, axis=2, keepdims=True)
        return np.where(length < _BLANK_BELOW, 0, described / np.maximum(length, 1e-12)).astype(np.float32)

    @functools.cached_property
    def prior(self) -> np.ndarray:
        """Assumed variances [D]: power falls with the cube of the frequency, as in photographs; they add up to 1."""
        u, v = np.meshgrid(range(self.frequencies), range(self.frequencies))
        power = (u * u + v * v).reshape(-1)[1:] ** -1.5
        return power / power.sum()


_COARSE = _Grid(7, (0.93, 1.0, 1.075), (-11.0, 0.0, 11.0))
_FINE = _Grid(12, (0.9, 0.95, 1.0, 1.05, 1.11), (-16.0, -8.0, 0.0, 8.0, 16.0))
_GRIDS = (_COARSE, _FINE)


def _cosines(frequencies: int, scale: float, shift: float) -> np.ndarray:
    """float32 [K, 80]: cosines over a window of the side, zero outside; all but the first without a mean.

    Unit length, so that a descriptor's numbers are grey levels of contrast.
    """
    side = scale * _WINDOW / _BLOCK
    start = (SIDE / 2 + shift) / _BLOCK - side / 2
    left = np.arange(_SMALL)
    inside = np.clip(np.minimum(left + 1, start + side) - np.maximum(left, start), 0, 1)
    waves = np.cos(np.pi * np.arange(frequencies)[:, None] * (left + 0.5 - start) / side) * inside
    waves[1:] -= waves[0] * (waves[1:].sum(axis=1) / waves[0].sum())[:, None]
    return (waves / (np.linalg.norm(waves, axis=1, keepdims=True) * np.sqrt(side))).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Whitener:
    """Takes away what all images share and weighs every direction alike."""

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, described: Sequence[np.ndarray], grid: _Grid) -> _Whitener:
        """From descriptors [N, D], pulled towards `grid.prior` as though by _PRIOR more images."""
        n = sum(map(len, described))
        total = n + _PRIOR
        mean = sum(part.sum(axis=0, dtype=np.float64) for part in described) / total
        second = sum((part.T @ part).astype(np.float64) for part in described) + _PRIOR * np.diag(grid.prior)
        values, vectors = np.linalg.eigh(second / total - np.outer(mean, mean))
        return cls(mean.astype(np.float32), (vectors / np.sqrt(values)).astype(np.float32))

    def __call__(self, described: np.ndarray) -> np.ndarray:
        """Of unit length along the last axis; zeros stay zeros."""
        white = (described - self.mean) @ self.matrix
        white /= np.maximum(np.linalg.norm(white, axis=-1, keepdims=True), 1e-12)
        return np.where(described.any(axis=-1, keepdims=True), white, 0)


def find(groups: Sequence[Pictures], show: Show) -> Found:
    """Every near copy within a group and between two. Pairs of equal keys are no near copies and are left out."""
    found: list[NearCopy] = []
    # The work is cut into pieces already; a BLAS that cuts each again has its threads wait for one another.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        described = _describe_all(groups, threads, show)
        blank = [np.flatnonzero(~coarse.any(axis=1)).tolist() for coarse, _ in described]
        whiteners = [_Whitener.fit([d[i] for d in described], grid) for i, grid in enumerate(_GRIDS)]
        white = [tuple(w(part) for w, part in zip(whiteners, d, strict=True)) for d in described]
        pairs = [(i, j) for i in range(len(groups)) for j in range(i, len(groups)) if len(groups[i]) and len(groups[j])]
        work = [len(groups[i]) * len(groups[j]) for i, j in pairs]
        done = 0
        for (i, j), cost in zip(pairs, work, strict=True):
            queries, others = (i, j) if len(groups[i]) <= len(groups[j]) else (j, i)
            search = _Search(groups[queries], groups[others], white[others], whiteners, queries == others)
            looked_up = 0
            for copies, n in search.run(threads):
                looked_up += n
                found += [_ordered(queries, row, others, other, score) for row, other, score in copies]
                show("compare", done + cost * looked_up // len(groups[queries]), sum(work))
            done += cost
    return Found(sorted(found), blank)


def _ordered(group: int, row: int, other_group: int, other_row: int, score: float) -> NearCopy:
    (group, row), (other_group, other_row) = sorted([(group, row), (other_group, other_row)])
    return NearCopy(group, row, other_group, other_row, round(score, 4))


def _describe_all(groups: Sequence[Pictures], threads: ThreadPoolExecutor, show: Show) -> list[list[np.ndarray]]:
    """For each group and grid float32 [N, D]: the middle of each image."""
    middles = [dataclasses.replace(grid, scales=(1.0,), shifts=(0.0,)) for grid in _GRIDS]
    described = [[np.zeros((len(g), grid.frequencies**2 - 1), np.float32) for grid in _GRIDS] for g in groups]
    total, done = sum(map(len, groups)), 0

    def read(chunk: tuple[int, np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
        group, rows = chunk
        return group, rows, groups[group].read(rows)

    chunks = ((i, rows) for i, group in enumerate(groups) for rows in _chunks(len(group), _READ))
    for i, rows, images in _ahead(threads, read, chunks):
        small = block_means(images, _BLOCK)
        for grid, out in zip(middles, described[i], strict=True):
            out[rows] = grid.describe(small)[:, 0]
        done += len(rows)
        show("describe", done, total)
    return described


def _chunks(n: int, size: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + size, n)) for start in range(0, n, size))


def _ahead(threads: ThreadPoolExecutor, function: Callable, items: Iterator) -> Iterator:
    """`map` in order, with only a few results waiting.

    For reading alone: NumPy's products have threads of their own, and several at once hinder each other.
    """
    waiting: collections.deque = collections.deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) > _WAITING:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Search:
    """Looks the images of one group up among those of another, or of the same."""

    def __init__(
        self,
        queries: Pictures,
        others: Pictures,
        white: Sequence[np.ndarray],
        whiteners: Sequence[_Whitener],
        same: bool,
    ) -> None:
        self.queries, self.others, self.same = queries, others, same
        self.coarse, self.fine = white
        self.whiteners = whiteners
        n = len(others)
        # Scores of a sample tell where each query's best _PROPOSED of all will begin.
        self.sample = self.coarse[np.linspace(0, n - 1, min(n, 8192)).astype(int)]

    def run(self, threads: ThreadPoolExecutor) -> Iterator[tuple[list[tuple[int, int, float]], int]]:
        """For a few queries at a time: (query's row, other's row, correlation) of each near copy; how many queries."""
        chunks = _ahead(threads, lambda rows: (rows, self.queries.read(rows)), _chunks(len(self.queries), _QUERIES))
        return ((self._look_up(rows, images), len(rows)) for rows, images in chunks)

    def _look_up(self, rows: np.ndarray, images: np.ndarray) -> list[tuple[int, int, float]]:
        small = block_means(images, _BLOCK)
        copies = []
        for i, others in enumerate(self._propose(rows, small)):
            query = Details(images[i])
            for other, pose in self._sift(small[i], others):
                score = correlation(Details(self.others.read(np.array([other]))[0]), query, pose)
                if score >= CONFIRMED_FROM:
                    copies.append((int(rows[i]), other, score))
        return copies

    def _propose(self, rows: np.ndarray, small: np.ndarray) -> list[np.ndarray]:
        """For each query rows of the others that might be near copies."""
        windows_QxVxD = self.whiteners[0](_COARSE.describe(small))
        q, v, d = windows_QxVxD.shape
        flat = windows_QxVxD.reshape(q * v, d)

        def best(part: np.ndarray) -> np.ndarray:
            return (flat @ part.T).reshape(q, v, len(part)).max(axis=1)

        share = min(_PROPOSED / len(self.others), 1.0)
        level = np.quantile(best(self.sample), 1 - share, axis=1) if share < 1 else np.zeros(q)
        level = np.maximum(level, _PROPOSED_FROM)[:, None]
        hits: list[list[np.ndarray]] = [[] for _ in range(q)]
        begin = int(rows[0]) if self.same else 0  # pairs before it were met from their other end
        for start in range(begin, len(self.others), _ROWS):
            which, where = np.nonzero(best(self.coarse[start : start + _ROWS]) > level)
            for i in np.unique(which):
                hits[i].append(where[which == i] + start)
        none = np.zeros(0, int)
        return [self._unlike(int(row), np.concatenate([none, *found])) for row, found in zip(rows, hits, strict=True)]

    def _unlike(self, row: int, others: np.ndarray) -> np.ndarray:
        """Without images equal to the query, and in a search of a group within itself without pairs met before."""
        if self.same:
            others = others[others > row]
        key = self.queries.keys[row]
        return np.array([other for other in others.tolist() if self.others.keys[other] != key], int)

    def _sift(self, small_80x80: np.ndarray, others: np.ndarray) -> list[tuple[int, Pose]]:
        """The few that are like the query at more frequencies too, and where in the query they lie."""
        if not len(others):
            return []
        windows_VxD = self.whiteners[1](_FINE.describe(small_80x80[None]))[0]
        scores = windows_VxD @ self.fine[others].T
        best = scores.max(axis=0)
        order = np.argsort(-best, kind="stable")[:_SIFTED]
        return [(int(others[i]), _FINE.poses[scores[:, i].argmax()]) for i in order if best[i] >= _SIFTED_FROM]
