"""What the loader costs over the bare work: images a second of the training stream and of a plain crop loop.

Both arms read the same store of grey 320 px images from the page cache and fill uint8 [64, 224, 224, 1]
batches by random crop and flip. `plain` does nothing else; `stream` is what training iterates over: order and
draws from hashes, texts tokenised and padded, through grain.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hybridclip_jax.bench.runner import Bench

RECORDS, BATCH, CROP = 512, 64, 224
TEXT = (
    "FINDINGS: The heart is mildly enlarged. There is a small left pleural effusion, unchanged. "
    "No pneumothorax or focal consolidation. IMPRESSION: Small left effusion, mild cardiomegaly."
)


def prepare(folder: Path) -> None:
    """A real store of noise images; 52 MB."""
    from hybridclip_jax.data.store import SIDE
    from hybridclip_jax.data.store_writer import Record, StoreWriter

    noise = np.random.default_rng(0)
    policy = {"names": [], "uncertain": "ignore", "blank": "missing"}
    with StoreWriter(folder / "store", channels=1, labels=(), sections=(), synthetic=True) as writer:
        for i in range(RECORDS):
            record = Record(f"id{i}", f"s{i}", f"p{i}", "train", "", f"{TEXT} {i}.", {}, 0, {}, i + 1)
            writer.append(record, noise.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8))
        writer.finish({"labels": policy, "ids": {"namespace": "bench", "key_fingerprint": ""}})


def plain(folder: Path) -> Iterator[np.ndarray]:
    """The floor: numpy copies of random windows of the memory map, half of them mirrored."""
    images = np.load(next(folder.glob("store/images-*.npy")), mmap_mode="r")
    noise = np.random.default_rng(0)
    most = images.shape[1] - CROP
    while True:
        batch = np.empty((BATCH, CROP, CROP, 1), np.uint8)
        rows, places = noise.integers(0, len(images), BATCH), noise.integers(0, most + 1, (BATCH, 2))
        for out, row, (top, left), flip in zip(batch, rows, places, noise.random(BATCH) < 0.5, strict=True):
            window = images[row, top : top + CROP, left : left + CROP]
            out[...] = window[:, ::-1] if flip else window
        yield batch


def stream(folder: Path) -> Iterator[np.ndarray]:
    """What a run iterates over."""
    from hybridclip_jax.data.loader import TrainStream
    from hybridclip_jax.data.store import Store
    from hybridclip_jax.data.tokenizer import Tokenizer

    batches = TrainStream(
        Store.open(str(folder / "store")),
        Tokenizer(),
        batch_size=BATCH,
        seed=0,
        image_size=CROP,
        crop="random",
        flip=True,
        context=512,
    )
    for batch in batches.iterate(0, 10**9):
        yield batch.image


ARMS = {"plain": plain, "stream": stream}


def measure(arm: str, folder: Path, seconds: float) -> dict[str, float]:
    """images_per_s over about `seconds`, after one pass over the store that warms caches and tokenizer."""
    batches = ARMS[arm](folder)
    for _ in range(RECORDS // BATCH):
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += len(next(batches))
    return {"images_per_s": count / (time.perf_counter() - began)}


BENCH = Bench(
    name="host",
    help="images a second of the training stream against a plain crop loop",
    arms=("plain", "stream"),
    prepare=prepare,
    measure=measure,
)
