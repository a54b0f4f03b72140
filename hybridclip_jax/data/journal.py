"""The journal of a store that is being written: what became of each image so far, so that a killed run goes on.

`journal.jsonl` in the folder that is being filled. The first line names the plan (a keyed digest of everything
that the store is made from), each further one an image in the order of the plan, or a file of pictures that was
sealed. Each begins with a checksum of its own, is written after the bytes it speaks of, and names no patient, file
of the source or text.

Of what a run left behind, that much is held as is whole: the bytes have their checksums, and the files that the
images were read from have the size and time of change that they had.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hybridclip_jax.data.encoding import ENCODINGS, Encoding, sha256, shard_name, split_records

JOURNAL = "journal.jsonl"
_VERSION = 1

FileState = tuple[int, int] | None  # size in bytes and time of change in nanoseconds; None where there is no file


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """What became of one image: kept (no reason) or left out for one."""

    files: tuple[FileState, ...]  # of the files it was read from, as far as they are known, before it was read
    n_tokens: int = 0
    size: int = 0  # bytes that are stored of it
    image_sha256: str = ""  # of the pixels before they were encoded
    stored_sha256: str = ""  # of the stored bytes; "" where these are the pixels themselves
    reason: str = ""
    unreadable: bool = False

    @property
    def checksum(self) -> str:
        """sha256 of the stored bytes."""
        return self.stored_sha256 or self.image_sha256


def encoded(pixels: np.ndarray, encoding: str, n_tokens: int, files: tuple[FileState, ...] = ()) -> tuple[Done, bytes]:
    """The bytes to store of uint8 [320, 320, C], and what the journal says of them."""
    raw = pixels.tobytes()
    data = ENCODINGS[encoding].encode(pixels)
    stored = "" if data == raw else sha256(data)
    return Done(files, n_tokens, len(data), sha256(raw), stored), data


@dataclasses.dataclass(frozen=True, slots=True)
class Sealed:
    """A finished file of pictures."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass
class Held:
    """What of an earlier attempt is still good."""

    done: list[Done] = dataclasses.field(default_factory=list)
    sealed: list[Sealed] = dataclasses.field(default_factory=list)
    filling: list[int] = dataclasses.field(default_factory=list)  # sizes of the kept records of the unsealed file
    lines: int = 0


class Journal:
    """The journal of one folder, open for appending."""

    def __init__(self, folder: Path, plan: str, lines: int) -> None:
        """Keeps the first `lines` lines after the plan; 0 starts anew."""
        path = folder / JOURNAL
        if lines:
            with path.open("rb") as old:
                for _ in range(lines + 1):
                    old.readline()
                os.truncate(path, old.tell())
        self._file: BinaryIO = path.open("ab" if lines else "wb")
        if not lines:
            self._line({"journal": _VERSION, "plan": plan})

    def done(self, done: Done) -> None:
        self._line(list(dataclasses.astuple(done)))

    def sealed(self, sealed: Sealed) -> None:
        """Durable when this returns: what filled the file may go."""
        self._line(dataclasses.asdict(sealed))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _line(self, value: object) -> None:
        body = json.dumps(value, separators=(",", ":")).encode()
        self._file.write(_checked(body))
        self._file.flush()


def read_plan(folder: Path) -> str | None:
    """The plan of the journal in `folder`; None where there is none that can be read."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            first = _value(file.readline())
        return str(first["plan"]) if first["journal"] == _VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def held(folder: Path, encoding: Encoding, unchanged: Callable[[int, Done], bool]) -> Held:
    """What the journal in `folder` says was done, as far as it is still good.

    `unchanged(n, done)` tells whether the n-th image (from 0) would be read from the same files. A file of
    pictures that was sealed is kept whole or not at all; one that was not is compared record by record.
    """
    entries = _entries(folder)
    found, safe = Held(), (0, 0, 0)
    for n, entry in enumerate(entries):
        if isinstance(entry, Sealed):
            path = folder / entry.name
            if not path.exists() or path.stat().st_size != entry.bytes:
                break
            found.sealed.append(entry)
            found.filling = []
            safe = (len(found.done), len(found.sealed), n + 1)
        else:
            if not unchanged(len(found.done), entry):
                break
            found.done.append(entry)
            found.filling += [entry.size] * (not entry.reason)
        found.lines = n + 1
    if any(isinstance(entry, Sealed) for entry in entries[found.lines :]):
        images, files, lines = safe  # the change is in a sealed file, and what it was filled from is gone
        return Held(found.done[:images], found.sealed[:files], [], lines)
    return _whole(folder, encoding, found)


def _whole(folder: Path, encoding: Encoding, found: Held) -> Held:
    """`found` without what follows the first record of the unsealed file that is not as it was written."""
    kept = [n for n, done in enumerate(found.done) if not done.reason]
    kept = kept[len(kept) - len(found.filling) :]
    if not kept:
        return found
    good = 0
    path = folder / shard_name(len(found.sealed), encoding.filling_suffix)
    if path.exists():
        with path.open("rb") as file:
            file.seek(encoding.head_bytes)
            for n, data in zip(kept, split_records(file, found.filling), strict=False):
                if sha256(data) != found.done[n].checksum:
                    break
                good += 1
    if good < len(kept):
        lost = len(found.done) - kept[good]
        found = Held(found.done[: kept[good]], found.sealed, found.filling[:good], found.lines - lost)
    return found


def _entries(folder: Path) -> list[Done | Sealed]:
    entries: list[Done | Sealed] = []
    with (folder / JOURNAL).open("rb") as file:
        file.readline()
        for line in file:
            try:
                entries.append(_entry(line))
            except (ValueError, TypeError):
                break  # the end came in the middle of this line
    return entries


def _entry(line: bytes) -> Done | Sealed:
    value = _value(line)
    if isinstance(value, dict):
        return Sealed(**value)
    files, *rest = value
    return Done(tuple(None if state is None else (state[0], state[1]) for state in files), *rest)


def _checked(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _value(line: bytes) -> Any:
    body = line[9:-1]
    if line != _checked(body):
        raise ValueError("torn or damaged line")
    return json.loads(body)
