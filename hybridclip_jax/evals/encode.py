"""What an evaluator is given: two encoders of fixed shapes, and what they make of a store and of prompts."""

# B batch, S image side, C channels, T tokens, E embedding, N rows of a store or prompts

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hybridclip_jax.data.loader import eval_images
from hybridclip_jax.data.store import Store

Values = dict[str, float | str | None]


@dataclasses.dataclass
class Work:
    """Rows that went through the encoders, filled-up batches whole: images, and texts by their width in tokens."""

    images: int = 0
    texts: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass
class Encode:
    """The jitted encoders of the caller, always called with `batch_size` rows so that nothing recompiles.

    images(params, uint8 [B, S, S, C]) and texts(params, int32 [B, T]) return float32 [B, E], L2-normalised.
    Evaluators that read one store share its image embeddings: they are kept while the arrays of the flat dict
    `params` stay the same objects. `work` counts what really ran, for the accounting.
    """

    images: Callable[..., Any]
    texts: Callable[..., Any]
    batch_size: int
    work: Work = dataclasses.field(default_factory=Work, init=False)
    _leaves: list[Any] = dataclasses.field(default_factory=list, init=False, repr=False)
    _kept: dict[tuple[str, str, int], np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def of_store(self, params: Mapping[str, Any], store: Store, image_size: int) -> np.ndarray:
        """Embeddings of all images of a store at `image_size` px, float32 [N, E], in the store's order."""
        leaves = list(params.values())
        if len(leaves) != len(self._leaves) or any(a is not b for a, b in zip(leaves, self._leaves, strict=True)):
            self._leaves, self._kept = leaves, {}
        key = (store.spec, store.fingerprint, image_size)
        if key not in self._kept:
            rows = []
            for image_BxSxSxC, valid in eval_images(store, image_size, self.batch_size):
                rows.append(np.asarray(self.images(params, image_BxSxSxC))[:valid])
                self.work.images += self.batch_size
            self._kept[key] = np.concatenate(rows)
        return self._kept[key]

    def of_tokens(self, params: Mapping[str, Any], ids_NxT: np.ndarray) -> np.ndarray:
        """Embeddings of N token rows, float32 [N, E]. The last batch is filled up with the first row."""
        n, rows = len(ids_NxT), []
        for start in range(0, n, self.batch_size):
            pick = np.arange(start, start + self.batch_size)
            pick[pick >= n] = 0
            rows.append(np.asarray(self.texts(params, ids_NxT[pick]))[: n - start])
            self.work.texts[ids_NxT.shape[1]] += self.batch_size
        return np.concatenate(rows)
