"""Training batches as a pure function of (seed, step), and evaluation images in order.

The order of an epoch depends on (seed, epoch) alone; an image's crop and a report's sentences depend on
(seed, epoch, record id) alone, never on the batch, the process, or where iteration began. So a run resumes by
its step number.
"""

# B batch, L tokens, S image side, C channels

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hybridclip_jax.data import transforms
from hybridclip_jax.data.sentences import split_sentences
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError

if TYPE_CHECKING:
    from hybridclip_jax.data.store import Store

# Few widths, so that the step compiles a few times and no more.
TEXT_BUCKETS = (32, 64, 96, 128, 192, 256, 384, 512)


@dataclasses.dataclass
class Batch:
    """One training batch on the host.

    image: uint8 [B, S, S, C]. tokens: int32 [B, L], L one of text_widths(context), zeros after the end token.
    eot: int32 [B], index of the end token. truncated: rows cut at the context. text_tokens: sum of eot + 1.
    """

    image: np.ndarray
    tokens: np.ndarray
    eot: np.ndarray
    truncated: int
    text_tokens: int
    step: int


def text_widths(context: int) -> tuple[int, ...]:
    """Every width L that a batch of this context can have, in rising order."""
    return (*(width for width in TEXT_BUCKETS if width < context), context)


def width_for(longest: int, context: int) -> int:
    """The width L that texts of up to `longest` tokens, start and end token counted, are padded or cut to."""
    return next((width for width in text_widths(context) if width >= longest), context)


class TrainStream:
    """Shuffled, augmented training batches; `batch(step)` is the same whenever and wherever it is asked for.

    Each epoch visits every record at most once: what does not fill a batch is dropped, others each epoch.
    sentences: 0 pairs an image with its whole text; k > 0 with 1 to k sentences of it, drawn anew each epoch
    and kept in the order of the report.
    Raises UserError for an unknown crop, an image_size that the crop cannot give, an empty store, one smaller
    than a batch, or one with records that have no text.
    """

    def __init__(
        self,
        store: Store,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        seed: int,
        image_size: int,
        crop: str,
        flip: bool,
        context: int,
        sentences: int = 0,
    ) -> None:
        n = len(store)
        if n == 0:
            raise UserError(f"{store.spec} holds no records; prepare it again or name another split")
        if batch_size > n:
            raise UserError(f"batch_size {batch_size} is larger than the {n} records of {store.spec}")
        without_text = sum(not text.strip() for text in store.texts)
        if without_text:
            raise UserError(
                f"{store.spec}: {without_text} of its {n} records have no text, as in a set for evaluation only; "
                "train on a store that has one for each"
            )
        if crop not in transforms.CROPS:
            raise UserError(f"data.crop {crop!r} is not one of {', '.join(transforms.CROPS)}")
        side = store.image(0).shape[0]
        if crop == "random" and image_size > side:
            raise UserError(
                f"data.image_size {image_size} is larger than the {side} px images of {store.spec}: "
                "crop 'random' cannot enlarge, use 'random_resized' or a size up to that"
            )
        self.steps_per_epoch = n // batch_size
        self._store = store
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._seed = seed
        self._image_shape = (image_size, image_size, store.channels)
        self._crop = crop
        self._flip = flip
        self._context = context
        self._sentences = sentences
        self._last_order: tuple[int, np.ndarray] | None = None
        self._pieces: dict[int, list[np.ndarray]] = {}

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation of all rows, int64 [n]; a pure function of (seed, epoch, n)."""
        last = self._last_order
        if last is None or last[0] != epoch:
            # Raw draws of a counter-based generator and a stable sort are the same in every numpy version.
            key = np.array([self._seed % 2**64, epoch], np.uint64)
            draws = np.random.Philox(key=key).random_raw(len(self._store))
            order = np.argsort(draws, kind="stable")
            order.flags.writeable = False
            last = self._last_order = (epoch, order)
        return last[1]

    def rows(self, step: int) -> np.ndarray:
        """The store's rows in the batch of a 0-based step, int64 [B]."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[place * self._batch_size : (place + 1) * self._batch_size]

    def batch(self, step: int) -> Batch:
        """The batch of a 0-based step; a pure function of (seed, step)."""
        epoch = step // self.steps_per_epoch
        rows = [int(row) for row in self.rows(step)]
        image_BxSxSxC = np.empty((len(rows), *self._image_shape), np.uint8)
        for out, row in zip(image_BxSxSxC, rows, strict=True):
            draws = self._draws(epoch, row, "image", transforms.N_DRAWS)
            transforms.train_image(self._store.image(row), out, self._crop, self._flip, draws)
        encoded = [self._text_ids(epoch, row) for row in rows]
        tokens = self._tokenizer.frame(encoded, width_for(max(map(len, encoded)) + 2, self._context))
        return Batch(
            image=image_BxSxSxC,
            tokens=tokens.ids,
            eot=tokens.eot,
            truncated=int(tokens.truncated.sum()),
            text_tokens=int(tokens.eot.sum()) + len(rows),
            step=step,
        )

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start..stop-1, made ahead in a thread that ends with the iterator.

        A batch that cannot be made raises its own error here, when its turn comes.
        """
        import grain  # here, because it costs half a second to import and only training needs it

        # One map makes a whole batch, as grain's cost is per element; more threads only fight for the GIL.
        steps = grain.MapDataset.range(start, stop).map(self.batch)
        batches = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
        try:
            yield from batches
        finally:
            batches.close()

    def _text_ids(self, epoch: int, row: int) -> np.ndarray:
        """Token ids of the row's text in this epoch, without start and end tokens."""
        pieces = self._pieces.get(row)
        if pieces is None:
            text = self._store.texts[row]
            sentences = split_sentences(text) if self._sentences else [text]
            pieces = [np.array(self._tokenizer.encode(sentence), np.uint16) for sentence in sentences]
            self._pieces[row] = pieces
        if not self._sentences:
            return pieces[0]
        n_draw, *ranks = self._draws(epoch, row, "text", 1 + len(pieces))
        n = 1 + int(n_draw * min(self._sentences, len(pieces)))
        chosen = sorted(sorted(range(len(pieces)), key=ranks.__getitem__)[:n])
        return np.concatenate([pieces[place] for place in chosen])

    def _draws(self, epoch: int, row: int, purpose: str, n: int) -> list[float]:
        """Uniform numbers in [0, 1) that depend on (seed, epoch, id of the record, purpose) alone."""
        # A hash of the id, not a generator's state: equal in every numpy version and batch position.
        key = f"{self._seed}/{epoch}/{self._store.ids[row]}".encode()
        raw = b"".join(
            hashlib.blake2b(key, person=purpose.encode(), salt=block.to_bytes(8, "little")).digest()
            for block in range(-(-n // 8))
        )
        return ((np.frombuffer(raw, "<u8", n) >> np.uint64(11)) * 2.0**-53).tolist()


def eval_images(
    store: Store, image_size: int, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """All images of the store in order, or those of `rows` [M], resized whole with Pillow's bicubic.

    Yields (uint8 [batch_size, S, S, C], n valid); the rows after the valid ones of the last batch are zeros.
    """
    row_M = np.arange(len(store)) if rows is None else rows
    for start in range(0, len(row_M), batch_size):
        part = row_M[start : start + batch_size]
        image_BxSxSxC = np.zeros((batch_size, image_size, image_size, store.channels), np.uint8)
        for out, row in zip(image_BxSxSxC, part, strict=False):
            transforms.resize(store.image(int(row)), out)
        yield image_BxSxSxC, len(part)
