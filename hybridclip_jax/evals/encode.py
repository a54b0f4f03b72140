"""What an evaluator is given: two encoders of fixed shapes, and what they make of a store and of prompts."""

# B batch, S image side, C channels, T tokens, E embedding, N rows of a store or prompts

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hybridclip_jax.data.loader import eval_images, width_for
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.tokenizer import Tokenizer

Values = dict[str, float | str | None]
_Key = tuple[str, str, int, bytes]  # store, its fingerprint, image size, rows


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
    _kept: dict[_Key, np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def of_store(
        self, params: Mapping[str, Any], store: Store, image_size: int, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Embeddings of the store's images at `image_size` px, float32 [M, E]: of all in order, or of `rows` [M]."""
        whole = (store.spec, store.fingerprint, image_size, b"")
        every = rows is None or np.array_equal(rows, np.arange(len(store)))
        key = whole if every else (*whole[:3], np.asarray(rows, np.int64).tobytes())
        kept = self._of_these(params)
        if key not in kept and whole in kept:
            return kept[whole][rows]
        if key not in kept:
            parts = []
            for image_BxSxSxC, valid in eval_images(store, image_size, self.batch_size, rows):
                parts.append(np.asarray(self.images(params, image_BxSxSxC))[:valid])
                self.work.images += self.batch_size
            kept[key] = np.concatenate(parts)
        return kept[key]

    def of_texts(
        self, params: Mapping[str, Any], texts: Sequence[str], tokenizer: Tokenizer, context: int
    ) -> np.ndarray:
        """Embeddings of N texts, float32 [N, E]; those beyond the context are cut, keeping the end token.

        Each is padded to the width of its own length, so that what it is encoded with leaves its last digits alone.
        """
        tokens = tokenizer(list(texts), context)
        width_N = np.array([width_for(int(eot) + 1, context) for eot in tokens.eot], int)
        parts = {
            width: self.of_tokens(params, tokens.ids[width_N == width, :width]) for width in np.unique(width_N).tolist()
        }
        out = np.empty((len(width_N), next(iter(parts.values())).shape[1]), np.float32)
        for width, part in parts.items():
            out[width_N == width] = part
        return out

    def _of_these(self, params: Mapping[str, Any]) -> dict[_Key, np.ndarray]:
        """What is kept of these parameters; emptied when they are others."""
        leaves = list(params.values())
        if len(leaves) != len(self._leaves) or any(a is not b for a, b in zip(leaves, self._leaves, strict=True)):
            self._leaves, self._kept = leaves, {}
        return self._kept

    def of_tokens(self, params: Mapping[str, Any], ids_NxT: np.ndarray) -> np.ndarray:
        """Embeddings of N token rows, float32 [N, E]. The last batch is filled up with the first row."""
        n, rows = len(ids_NxT), []
        for start in range(0, n, self.batch_size):
            pick = np.arange(start, start + self.batch_size)
            pick[pick >= n] = 0
            rows.append(np.asarray(self.texts(params, ids_NxT[pick]))[: n - start])
            self.work.texts[ids_NxT.shape[1]] += self.batch_size
        return np.concatenate(rows)
