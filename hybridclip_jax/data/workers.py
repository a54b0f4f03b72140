"""Decodes images and counts tokens on all cores, giving results in the order of the tasks."""

from __future__ import annotations

import collections
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import PIL.Image

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.base import RecordError
from hybridclip_jax.data.store import SIDE
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import RunStopped

# Records a task: enough to hide the cost of the queue, few enough to keep all cores busy at the end.
_CHUNK = 16
_IN_PROCESS_BELOW = 64  # starting workers takes longer than so few images

Task = tuple[Callable[[], PIL.Image.Image], str]  # load_image and the text
Result = tuple[np.ndarray, int] | RecordError  # uint8 [320, 320, C] and the number of tokens, or why not


@functools.cache
def tokenizer() -> Tokenizer:
    """The tokenizer whose tokens a store counts; one a process."""
    return Tokenizer()


def decode_all(
    tasks: Sequence[Task], *, channels: int, resize: str, workers: int | None = None
) -> Generator[Result, None, None]:
    """One result a task, in order. `workers` None: one for each core this process may use. Close it to stop
    early.

    Raises:
        RunStopped: a worker process died.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers == 1 or len(tasks) < _IN_PROCESS_BELOW:
        for task in tasks:
            yield _decode(task, channels, resize)
        return
    chunks = (tasks[start : start + _CHUNK] for start in range(0, len(tasks), _CHUNK))
    under_way: collections.deque[Future[list[Result]]] = collections.deque()
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        for chunk in chunks:
            under_way.append(executor.submit(_decode_chunk, chunk, channels, resize))
            if len(under_way) >= 4 * workers:  # a bound on the images that wait in memory
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    except BrokenProcessPool as error:
        raise RunStopped("a worker process died, most often for want of memory: free some, run again") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _decode_chunk(tasks: Sequence[Task], channels: int, resize: str) -> list[Result]:
    return [_decode(task, channels, resize) for task in tasks]


def _decode(task: Task, channels: int, resize: str) -> Result:
    load_image, text = task
    try:
        image = pixels.store_pixels(load_image(), side=SIDE, channels=channels, resize=resize)
    except RecordError as error:
        # A new one, without the chain of causes: they may name the file.
        return RecordError(error.reason, error.unreadable)
    except (OSError, ValueError):
        return RecordError("unreadable image")
    return image, len(tokenizer().encode(text)) + 2


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one answers it
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        # Without this, workers of a killed prepare wait for their next chunk forever.
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
