"""What the data's way to the device costs over the bare work: in training, and once before in `prepare`.

`images_per_s`: both arms read the same store of grey 320 px images from the page cache and fill uint8
[64, 224, 224, 1] batches by random crop and flip. `plain` does nothing else; `stream` is what training iterates over:
order and draws from hashes, texts tokenised and padded, through grain.

`jpegs_per_s`: both arms read the same JPEG files of about 1000 px on all cores. `plain` decodes them and drops them;
`stream` is `prepare`: decoded, made 320 px, checked, counted, hashed and written in order. What starts and ends it is
left out, as it is the same for a hundred images and for a million.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hybridclip_jax.bench.runner import Bench

RECORDS, BATCH, CROP = 512, 64, 224
JPEGS, JPEG_WIDTH, JPEG_HEIGHT = 24, 1024, 1200
# Of prepare's images: those before all processes are at work, and the fewest to measure.
_START, _LEAST = 64, 32
TEXT = (
    "FINDINGS: The heart is mildly enlarged. There is a small left pleural effusion, unchanged. "
    "No pneumothorax or focal consolidation. IMPRESSION: Small left effusion, mild cardiomegaly."
)


def prepare(folder: Path) -> None:
    """A real store of noise images, 52 MB, and JPEG files of drawn chests."""
    from hybridclip_jax.data.store import SIDE
    from hybridclip_jax.data.store_writer import Record, StoreWriter

    noise = np.random.default_rng(0)
    policy = {"names": [], "uncertain": "ignore", "blank": "missing"}
    with StoreWriter(folder / "store", channels=1, labels=(), sections=(), synthetic=True) as writer:
        for i in range(RECORDS):
            record = Record(f"id{i}", f"s{i}", f"p{i}", "train", "", f"{TEXT} {i}.", {}, 0, {}, i + 1)
            writer.append(record, noise.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8))
        writer.finish({"labels": policy, "ids": {"namespace": "bench", "key_fingerprint": ""}})
    _draw_jpegs(folder / "jpegs")


def _draw_jpegs(folder: Path) -> None:
    import PIL.Image

    from hybridclip_jax.data.phantom import phantom
    from hybridclip_jax.data.phantom_findings import DIFFICULTIES

    folder.mkdir()
    noise = np.random.default_rng(1)
    for i in range(JPEGS):
        chest = PIL.Image.fromarray(phantom(0, i, DIFFICULTIES["easy"])[0])
        pixels = np.asarray(chest.resize((JPEG_WIDTH, JPEG_HEIGHT), PIL.Image.Resampling.BICUBIC)).astype(np.int16)
        pixels += noise.normal(0, 4, pixels.shape).astype(np.int16)  # grain, as a detector gives it
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=92)


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


def bare_decoder(folder: Path, seconds: float) -> float:
    """JPEG files decoded in a second by all cores together."""
    files = sorted((folder / "jpegs").iterdir())
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(_decode, files * cores)
        results = pool.imap(_decode, files * 10_000, chunksize=4)
        count, began = 0, time.perf_counter()
        while count < _LEAST or time.perf_counter() - began < seconds:
            next(results)
            count += 1
        return count / (time.perf_counter() - began)


def _decode(path: Path) -> None:
    import PIL.Image

    with PIL.Image.open(path) as image:
        image.load()


def prepared(folder: Path, seconds: float) -> float:
    """JPEG files that `prepare` writes into a store in a second."""
    from hybridclip_jax.data.pixels import lazy
    from hybridclip_jax.data.prepare import Options
    from hybridclip_jax.data.prepare import prepare as prepare_store
    from hybridclip_jax.data.study import Source, Study

    files = sorted((folder / "jpegs").iterdir())
    studies = [
        Study(n, f"{n}", f"{n}", f"{n}", "train", "", f"{TEXT} {n}.", {}, {}, lazy(files[n % len(files)]))
        for n in range(1, 1 + max(256, int(1000 * seconds)))
    ]
    source = Source(studies, len(studies), (), "bench", public_ids=True, synthetic=True, notes={})
    times: list[float] = []

    def told(stage: str, done: int, total: int) -> None:
        if stage == "prepare":
            times.append(time.perf_counter())
            if len(times) > _START + _LEAST and times[-1] - times[_START] > seconds:
                raise _EnoughError

    with tempfile.TemporaryDirectory(dir=folder) as out, contextlib.suppress(_EnoughError):
        prepare_store(source, Path(out) / "store", Options(), format_name="bench", progress=told)
    return (len(times) - 1 - _START) / (times[-1] - times[_START])


class _EnoughError(Exception):
    """The time for the measurement is over."""


ARMS = {"plain": (plain, bare_decoder), "stream": (stream, prepared)}


def measure(arm: str, folder: Path, seconds: float) -> dict[str, float]:
    """Both rates of an arm, each over about `seconds`, when caches are warm and processes at work."""
    loader, decoder = ARMS[arm]
    batches = loader(folder)
    for _ in range(RECORDS // BATCH):
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += len(next(batches))
    rate = count / (time.perf_counter() - began)
    del batches
    return {"images_per_s": rate, "jpegs_per_s": decoder(folder, seconds)}


BENCH = Bench(
    name="host",
    help="images a second of the training stream against a plain crop loop, and of prepare against a JPEG decoder",
    arms=("plain", "stream"),
    prepare=prepare,
    measure=measure,
)
