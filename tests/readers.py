"""Planted encoders that really read: a text is the sum of its words' random vectors, an image a row of a table.

What such a model can and cannot tell is known: a reader that is blind to a word leaves it out, one that does not mind
the order weighs all words alike.
"""

# B batch, T tokens, W words, E embedding

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from pair_stores import SIZE, TOKENIZER, unit

from hybridclip_jax.evals.encode import Encode

E = 256
BATCH = 8


@functools.cache
def _table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(TOKENIZER.vocab_size, E)).astype(np.float32)


class Reader:
    """Reads texts with the tokenizer of `pair_stores`. blind_to: words that it does not see."""

    def __init__(self, *, blind_to: Sequence[str] = (), ordered: bool = True) -> None:
        self.blind_to = {token for word in blind_to for token in TOKENIZER.encode(word)}
        self.ordered = ordered
        self.rows: list[bytes] = []  # every row of tokens that was read, those that fill a batch up too

    def vectors(self, texts: Sequence[str], context: int = 77) -> np.ndarray:
        """The embeddings of texts, float32 [B, E]."""
        return self._of_ids(TOKENIZER(list(texts), context).ids)

    def encode(self) -> Encode:
        return Encode(images=_rows_of_the_table, texts=self._texts, batch_size=BATCH)

    def _texts(self, params: Mapping[str, np.ndarray], ids_BxT: np.ndarray) -> np.ndarray:
        assert len(ids_BxT) == BATCH
        self.rows += [row.tobytes() for row in ids_BxT]
        return self._of_ids(ids_BxT)

    def _of_ids(self, ids_BxT: np.ndarray) -> np.ndarray:
        return unit(np.stack([self._of_row(row.tolist()) for row in ids_BxT])).astype(np.float32)

    def _of_row(self, ids: Sequence[int]) -> np.ndarray:
        words = [token for token in ids[1 : ids.index(TOKENIZER.eot)] if token not in self.blind_to]
        weight_W = 0.95 ** np.arange(len(words)) if self.ordered else np.ones(len(words))
        return np.asarray(weight_W @ _table()[words])


def _rows_of_the_table(params: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    return params["image"][images[:, SIZE // 2, SIZE // 2, 0]]
