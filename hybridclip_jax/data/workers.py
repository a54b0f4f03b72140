"""Decodes and encodes images and counts tokens on all cores, giving results in the order of the tasks."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import stat
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import PIL.Image

from hybridclip_jax.data import pixels
from hybridclip_jax.data.encoding import SIDE
from hybridclip_jax.data.journal import Done, FileState, encoded
from hybridclip_jax.data.study import RecordError
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import RunStopped

# Records a task: enough to hide the cost of the queue, few enough to keep all cores busy at the end.
_CHUNK = 16
_IN_PROCESS_BELOW = 64  # starting workers takes longer than so few images

LoadImage = Callable[[], PIL.Image.Image]
Task = tuple[LoadImage, str]  # load_image and the text
Result = tuple[Done, bytes]  # what became of it, and the bytes to store of it


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How decoded images become what a store keeps."""

    channels: int
    resize: str
    encoding: str


@functools.cache
def tokenizer() -> Tokenizer:
    """The tokenizer whose tokens a store counts; one a process."""
    return Tokenizer()


def files_of(load_image: LoadImage) -> list[Path]:
    """The files that `load_image` reads, as far as they can be known: those that it was given as a Path."""
    return [part for part in getattr(load_image, "args", ()) if isinstance(part, Path)]


def file_state(path: Path) -> FileState:
    """Size in bytes and time of change in nanoseconds; None where there is no file."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return (facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else None


def decode_all(
    tasks: Iterable[Task], count: int, how: Pixels, workers: int | None = None
) -> Generator[Result, None, None]:
    """One result for each of the `count` tasks, in order. `workers` None: one for each core this process may use.
    Close it to stop early.

    Raises:
        RunStopped: a worker process died.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers == 1 or count < _IN_PROCESS_BELOW:
        for task in tasks:
            yield decode(task, how)
        return
    rest = iter(tasks)
    under_way: collections.deque[Future[list[Result]]] = collections.deque()
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        while chunk := list(itertools.islice(rest, _CHUNK)):
            with _without_interrupts():  # a worker may start here
                under_way.append(executor.submit(_decode_chunk, chunk, how))
            if len(under_way) >= 4 * workers:  # a bound on the images that wait in memory
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    except BrokenProcessPool as error:
        raise RunStopped("a worker process died, most often for want of memory: free some, run again") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _decode_chunk(tasks: Sequence[Task], how: Pixels) -> list[Result]:
    return [decode(task, how) for task in tasks]


def decode(task: Task, how: Pixels) -> Result:
    """What becomes of one image; no fault of it is raised."""
    load_image, text = task
    files = tuple(
        map(file_state, files_of(load_image))
    )  # before the file is read, so that a change meanwhile is noticed later
    try:
        image = pixels.store_pixels(load_image(), side=SIDE, channels=how.channels, resize=how.resize)
    except RecordError as error:
        return Done(files, reason=error.reason, unreadable=error.unreadable), b""
    except (OSError, ValueError):
        return Done(files, reason="unreadable image", unreadable=True), b""
    return encoded(image, how.encoding, len(tokenizer().encode(text)) + 2, files)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    # Ctrl-C reaches every process of a terminal, and the first one answers it. Those started here inherit the mask,
    # and so are deaf to it from their first moment on; here it is only put off.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        # Without this, workers of a killed prepare wait for their next chunk forever.
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
