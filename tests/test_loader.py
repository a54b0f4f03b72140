"""The stream is a pure function of (seed, step), whatever the batch, the place, or the first step."""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybridclip_jax.data.loader import TEXT_BUCKETS, Batch, TrainStream, eval_images, text_widths
from hybridclip_jax.data.sentences import split_sentences
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.store_writer import Record, StoreWriter
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError

N = 22
TOKENIZER = Tokenizer()
SENTENCES = (
    "There is a small left pleural effusion.",
    "No pneumothorax.",
    "The heart is enlarged.",
    "Lungs are clear without focal consolidation.",
    "An endotracheal tube ends above the carina.",
)


def write_store(path: Path, n: int, channels: int = 1, order: list[int] | None = None) -> Store:
    """A store of n records; `order` shuffles its rows without changing any record."""
    noise = np.random.default_rng(0)
    records = []
    for i in range(n):
        draw = random.Random(i)
        said = [draw.choice(SENTENCES) for _ in range(1 + i % 7)]
        text = f"FINDINGS: {' '.join(said)} IMPRESSION: Case {i}."
        pixels = noise.integers(0, 256, (320, 320, channels), dtype=np.uint8)
        records.append((Record(f"id{i}", f"s{i}", f"p{i}", "train", "", text, {}, 0, {}, i + 1), pixels))
    policy = {"names": [], "uncertain": "ignore", "blank": "missing"}
    with StoreWriter(path, channels=channels, labels=(), sections=(), synthetic=True) as writer:
        for i in order or range(n):
            writer.append(*records[i])
        writer.finish({"labels": policy, "ids": {"namespace": "test", "key_fingerprint": ""}})
    return Store.open(str(path))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("grey") / "store", N)


def stream(store: Store, **changed: object) -> TrainStream:
    options: dict[str, object] = {
        "batch_size": 4,
        "seed": 3,
        "image_size": 224,
        "crop": "random",
        "flip": True,
        "context": 77,
    }
    return TrainStream(store, TOKENIZER, **(options | changed))  # type: ignore[arg-type]


def assert_equal(one: Batch, other: Batch) -> None:
    for name in ("image", "tokens", "eot"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.truncated, one.text_tokens, one.step) == (other.truncated, other.text_tokens, other.step)


def samples(batches: list[Batch], source: TrainStream, store: Store) -> dict[tuple[int, str], tuple[bytes, bytes]]:
    """(epoch, id) -> the pixels and tokens it got."""
    found = {}
    for batch in batches:
        epoch = batch.step // source.steps_per_epoch
        for place, row in enumerate(source.rows(batch.step)):
            tokens = batch.tokens[place, : batch.eot[place] + 1]
            found[epoch, store.ids[row]] = (batch.image[place].tobytes(), tokens.tobytes())
    return found


@pytest.mark.parametrize("sentences", [0, 3])
@pytest.mark.parametrize("crop", ["random", "random_resized", "none"])
def test_a_batch_is_the_same_wherever_iteration_starts(store: Store, crop: str, sentences: int) -> None:
    whole = list(stream(store, crop=crop, sentences=sentences).iterate(0, 12))
    assert [batch.step for batch in whole] == list(range(12))
    for start in (1, 5, 11):
        resumed = stream(store, crop=crop, sentences=sentences).iterate(start, 12)
        for batch, expected in zip(resumed, whole[start:], strict=True):
            assert_equal(batch, expected)
    backwards = stream(store, crop=crop, sentences=sentences)
    for step in reversed(range(12)):
        assert_equal(backwards.batch(step), whole[step])


@pytest.mark.parametrize("crop", ["random", "random_resized"])
def test_a_sample_does_not_depend_on_its_batch(store: Store, tmp_path: Path, crop: str) -> None:
    shuffled = write_store(tmp_path / "store", N, order=random.Random(1).sample(range(N), N))
    small = stream(store, crop=crop, sentences=2, batch_size=2)
    large = stream(store, crop=crop, sentences=2, batch_size=11)
    moved = stream(shuffled, crop=crop, sentences=2, batch_size=11)
    one = samples([small.batch(step) for step in range(22)], small, store)
    other = samples([large.batch(step) for step in range(4)], large, store)
    third = samples([moved.batch(step) for step in range(4)], moved, shuffled)
    assert len(one) == 2 * N
    assert one == other == third


def test_each_epoch_is_a_new_permutation(store: Store) -> None:
    source = stream(store)
    orders = [source.order(epoch) for epoch in range(50)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(N))
    assert len({order.tobytes() for order in orders}) == 50
    assert stream(store, seed=4).order(0).tobytes() not in {order.tobytes() for order in orders}
    # Every place is as likely for every row: 50 orders of 22 rows put row 0 at a mean place of 10.5 +- 0.9.
    assert abs(np.mean([np.flatnonzero(order == 0)[0] for order in orders]) - 10.5) < 4 * 0.9


def test_order_and_draws_are_pinned(store: Store) -> None:
    # A change of these numbers breaks the resumption of every run that was started before it.
    source = stream(store, seed=0)
    np.testing.assert_array_equal(source.order(0)[:8], [0, 21, 2, 11, 20, 17, 9, 1])
    assert source._draws(0, 0, "image", 2) == [0.35524604211749045, 0.7011162234267175]
    assert len({*source._draws(0, 0, "image", 9), *source._draws(0, 0, "text", 9)}) == 18


def test_an_epoch_visits_each_row_at_most_once(store: Store) -> None:
    source = stream(store, batch_size=4)
    assert source.steps_per_epoch == 5
    for epoch in range(3):
        rows = np.concatenate([source.rows(5 * epoch + place) for place in range(5)])
        assert len(set(rows.tolist())) == 20
        np.testing.assert_array_equal(rows, source.order(epoch)[:20])


def test_seeds_and_epochs_differ(store: Store) -> None:
    source = stream(store, batch_size=N, sentences=2)
    first, second = (samples([source.batch(epoch)], source, store) for epoch in (0, 1))
    other_source = stream(store, batch_size=N, sentences=2, seed=4)
    other_seed = samples([other_source.batch(0)], other_source, store)
    # One crop in 97 x 97 x 2 repeats by chance.
    for name in store.ids:
        assert first[0, name][0] != second[1, name][0]
        assert first[0, name][0] != other_seed[0, name][0]
    assert sum(first[0, name][1] != second[1, name][1] for name in store.ids) > N / 3


def is_slice(image: np.ndarray, stored: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(stored[..., 0], image.shape[:2])
    corners = np.argwhere(windows[:, :, 0, 0] == image[0, 0, 0])
    return any(np.array_equal(windows[top, left], image[..., 0]) for top, left in corners)


def test_images_are_slices_of_the_store_mirrored_or_not(store: Store) -> None:
    source = stream(store)
    mirrored = 0
    for batch in map(source.batch, range(5)):
        assert batch.image.shape == (4, 224, 224, 1)
        assert batch.image.dtype == np.uint8
        for image, row in zip(batch.image, source.rows(batch.step), strict=True):
            stored = store.image(int(row))
            assert is_slice(image, stored) != is_slice(image[:, ::-1], stored)
            mirrored += is_slice(image[:, ::-1], stored)
    assert 3 <= mirrored <= 17


def test_without_flip_and_crop_it_is_the_evaluation_image(tmp_path: Path) -> None:
    colour = write_store(tmp_path / "store", 5, channels=3)
    source = stream(colour, crop="none", flip=False, batch_size=5)
    evaluated, n = next(eval_images(colour, 224, 5))
    batch = source.batch(0)
    assert n == 5
    assert batch.image.shape == (5, 224, 224, 3)
    np.testing.assert_array_equal(batch.image, evaluated[source.rows(0)])


def test_texts_are_those_of_the_rows(store: Store) -> None:
    source = stream(store)
    for batch in map(source.batch, range(5)):
        expected = TOKENIZER([store.texts[row] for row in source.rows(batch.step)], 77)
        width = batch.tokens.shape[1]
        np.testing.assert_array_equal(batch.tokens, expected.ids[:, :width])
        np.testing.assert_array_equal(batch.eot, expected.eot)
        assert batch.truncated == 0
        assert batch.text_tokens == (expected.eot + 1).sum()


@pytest.mark.parametrize("context", [3, 20, 32, 77, 100, 512])
def test_text_width_is_the_smallest_bucket_that_holds_the_batch(store: Store, context: int) -> None:
    source = stream(store, context=context)
    assert set(text_widths(context)) <= {*TEXT_BUCKETS, context}
    widths = set()
    for batch in map(source.batch, range(15)):
        width = batch.tokens.shape[1]
        widths.add(width)
        longest = batch.eot.max() + 1
        assert width == min(w for w in text_widths(context) if w >= longest)
        for ids, eot in zip(batch.tokens, batch.eot, strict=True):
            assert ids[0] == TOKENIZER.sot
            assert ids[eot] == TOKENIZER.eot
            assert not ids[eot + 1 :].any()
    assert context > 32 or widths == {context}


def test_truncated_rows_are_counted_and_keep_their_end(store: Store) -> None:
    source = stream(store, context=20, batch_size=N)
    batch = source.batch(0)
    too_long = [len(TOKENIZER.encode(store.texts[row])) > 18 for row in source.rows(0)]
    assert 0 < sum(too_long) < N
    assert batch.truncated == sum(too_long)
    np.testing.assert_array_equal(batch.eot[too_long], 19)
    np.testing.assert_array_equal(batch.tokens[too_long, 19], TOKENIZER.eot)
    assert batch.text_tokens == (batch.eot + 1).sum()


def test_sampled_sentences_come_from_the_report_in_its_order(store: Store) -> None:
    source = stream(store, sentences=3, batch_size=N)
    counts, seen = [], set()
    for batch in map(source.batch, range(40)):
        for ids, eot, row in zip(batch.tokens, batch.eot, source.rows(batch.step), strict=True):
            sentences = [TOKENIZER.encode(sentence) for sentence in split_sentences(store.texts[row])]
            subsets = [
                chosen
                for n in range(1, min(3, len(sentences)) + 1)
                for chosen in itertools.combinations(range(len(sentences)), n)
                if list(itertools.chain(*(sentences[place] for place in chosen))) == ids[1:eot].tolist()
            ]
            assert subsets
            if len(sentences) > 6:
                counts.append(len(subsets[0]))
                seen |= set(subsets[0])
    # One, two and three sentences are equally likely, and every sentence gets its turn.
    np.testing.assert_allclose(np.bincount(counts)[1:] / len(counts), 1 / 3, atol=0.12)
    assert len(counts) > 100
    assert seen >= set(range(7))


class Wrapped:
    """A store with something changed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def __len__(self) -> int:
        return len(self._store)


class Damaged(Wrapped):
    """A store whose fifth image cannot be read, as on a failing disk."""

    def image(self, row: int) -> np.ndarray:
        if row == 4:
            raise UserError("store: row 4 cannot be read")
        return self._store.image(row)


class Ruled(Wrapped):
    """Images that say how far down a pixel is, in steps of two."""

    def image(self, row: int) -> np.ndarray:
        half = (np.arange(320) // 2).astype(np.uint8)
        return np.broadcast_to(half[:, None, None], (320, 320, 1))


def test_text_and_crop_are_drawn_apart(store: Store) -> None:
    source = stream(Ruled(store), sentences=3, batch_size=N)  # type: ignore[arg-type]
    batches = [source.batch(step) for step in range(40)]
    tops = np.concatenate([batch.image[:, 0, 0, 0] for batch in batches])
    lengths = np.concatenate([batch.eot for batch in batches])
    assert np.unique(tops).size > 40
    assert abs(np.corrcoef(tops, lengths)[0, 1]) < 4 / np.sqrt(40 * N)


def loader_threads() -> int:
    return sum("grain" in thread.name for thread in threading.enumerate())


def wait_for_no_loader_threads() -> None:
    for thread in threading.enumerate():
        if "grain" in thread.name:
            thread.join(10)
    assert loader_threads() == 0


def test_an_error_arrives_in_its_turn_and_the_thread_ends(store: Store) -> None:
    source = stream(Damaged(store))  # type: ignore[arg-type]
    bad = next(step for step in range(99) if 4 in source.rows(step))
    batches = source.iterate(0, 100)
    for step in range(bad):
        assert next(batches).step == step
    with pytest.raises(UserError, match="row 4 cannot be read"):
        next(batches)
    wait_for_no_loader_threads()


def test_leaving_early_ends_the_thread(store: Store) -> None:
    batches = stream(store).iterate(0, 10_000)
    next(batches)
    assert loader_threads() == 1
    batches.close()
    wait_for_no_loader_threads()
    assert list(stream(store).iterate(7, 7)) == []


@pytest.mark.parametrize("batch_size", [1, 8, 11, 64])
def test_eval_images_are_pillow_bicubic_in_order(store: Store, batch_size: int) -> None:
    batches = list(eval_images(store, 224, batch_size))
    assert all(images.shape == (batch_size, 224, 224, 1) for images, _ in batches)
    assert sum(n for _, n in batches) == N
    images = np.concatenate([images[:n] for images, n in batches])
    for row in range(N):
        pillow = Image.fromarray(store.image(row)[..., 0]).resize((224, 224), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(images[row, :, :, 0], np.asarray(pillow))
    last, n = batches[-1]
    assert not last[n:].any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 23}, r"batch_size 23 is larger than the 22 records of .*store"),
        ({"crop": "centre"}, "data.crop 'centre' is not one of random, random_resized, none"),
        ({"image_size": 384}, r"data.image_size 384 is larger than the 320 px images of .*store"),
    ],
)
def test_what_cannot_work_is_one_line(store: Store, changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        stream(store, **changed)
    assert "\n" not in str(error.value)


def test_an_empty_store_is_refused(store: Store) -> None:
    class Empty(Wrapped):
        def __len__(self) -> int:
            return 0

    with pytest.raises(UserError, match="holds no records"):
        stream(Empty(store))  # type: ignore[arg-type]
