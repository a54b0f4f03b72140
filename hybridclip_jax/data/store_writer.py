"""Writes a store beside its final place and renames it there whole: a store that opens was finished.

Until then it is `OUT.partial`, with a journal of what was done. A run that is killed, interrupted or out of disk
leaves that folder behind, and `resume` goes on from it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from hybridclip_jax.data.encoding import ENCODINGS, SIDE, shard_name
from hybridclip_jax.data.journal import JOURNAL, Done, Held, Journal, Sealed, encoded, held, read_plan
from hybridclip_jax.data.locks import release_lock, take_lock
from hybridclip_jax.data.records import Record, split_counts, write_table
from hybridclip_jax.data.store import (
    FIXED_COLUMNS,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST,
    SHARD_RECORDS,
    SKIPPED,
    TABLE,
    file_sha256,
)
from hybridclip_jax.errors import StorageError, UserError

SYNTHETIC_NOTE = "SYNTHETIC.txt"
_OURS = re.compile("|".join([r"images-\d+\.\w+", *map(re.escape, (JOURNAL, TABLE, SKIPPED, MANIFEST, SYNTHETIC_NOTE))]))


class GoesOn(UserError):
    """What the user can mend without any of the work being lost: the next attempt goes on from it."""


def refuse_existing(out: Path) -> None:
    """Raises UserError where `out` is there already, unless as an empty folder: renaming replaces such a one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists: name another --out, or remove it first")


class StoreWriter:
    """`with StoreWriter(out, ...) as writer:` append and skip, then `finish(manifest)`; without finish
    nothing appears at `out`.

    `append` is `put` and `add` in one: the bytes of a record, and its row of the table. A UserError clears what was
    written, as the source has to be mended first; any other error, and GoesOn, leaves it for `resume`.

    Raises:
        UserError: `out` exists, another run is writing it, it has no name, something else lies where it is to be
            written, or a label or section has the name of a fixed column.
        StorageError: the disk refuses.
    """

    def __init__(
        self,
        out: Path,
        *,
        channels: int,
        labels: tuple[str, ...],
        sections: tuple[str, ...],
        synthetic: bool,
        encoding: str = "raw",
    ) -> None:
        self.out = out
        self.channels = channels
        self.labels = labels
        self.sections = sections
        self.synthetic = synthetic
        self.encoding = encoding
        if not out.name or "\0" in str(out):
            raise UserError(f"--out {str(out)!r}: not a name for a new folder; give one, such as stores/train")
        self._encoding = ENCODINGS[encoding]
        self.partial = out.with_name(out.name + ".partial")
        self._lock = out.with_name(out.name + ".lock")
        self._lock_file: int | None = None
        self._journal: Journal | None = None
        self._shard: io.FileIO | None = None
        self._sizes: list[int] = []  # of the records in the file of pictures that is being filled
        self._sealed: list[Sealed] = []
        self._any = False  # whether the folder holds work that is worth keeping
        self._records: list[Record] = []
        self._hashes: list[tuple[str, str]] = []  # of the pixels and of the stored bytes
        self._skipped: list[tuple[int, str]] = []
        self._files: dict[str, dict[str, object]] = {}
        names = [*FIXED_COLUMNS, *sections, *labels]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"label or section {name!r} has the name of another column: rename it in the source")

    def __enter__(self) -> StoreWriter:
        with self._storage():
            self.out.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock_file = take_lock(self._lock, wait=False)
            except BlockingIOError as error:
                raise UserError(f"another prepare is writing {self.out}: wait for it, or name another --out") from error
            try:
                refuse_existing(self.out)
                self.partial.mkdir(exist_ok=True)
                if not all(_OURS.fullmatch(path.name) for path in self.partial.iterdir()):
                    raise UserError(
                        f"{self.partial} holds files that prepare does not write: move it, or name another --out"
                    )
                self._any = (self.partial / JOURNAL).exists()
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in (self._shard, self._journal):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()
        mend = isinstance(error, UserError) and not isinstance(error, GoesOn)
        if error is None or mend or not self._any:
            shutil.rmtree(self.partial, ignore_errors=True)
        self._release()

    def earlier_plan(self) -> str | None:
        """The plan of an attempt that ended early; None where there was none, or nothing of it can be read."""
        return read_plan(self.partial)

    def resume(self, plan: str, unchanged: Callable[[int, Done], bool]) -> list[Done]:
        """Begins, behind what an earlier attempt at the same plan did, if there was one. Before all else.

        Returns what became of the first images of the plan: `put` goes on behind them, and `add` is still due for
        those that were kept. `unchanged(n, done)` tells whether image n would still be read from the same files.
        """
        with self._storage():
            found = Held()
            if plan and self.earlier_plan() == plan:
                found = held(self.partial, self._encoding, unchanged)
            self._begin(plan, found)
        return found.done

    def _begin(self, plan: str, found: Held) -> None:
        filling = self._filling(len(found.sealed)).name
        keep = {JOURNAL, *(file.name for file in found.sealed), *([filling] if found.filling else [])}
        for path in self.partial.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self._journal = Journal(self.partial, plan, found.lines)
        self._sealed, self._sizes, self._any = list(found.sealed), list(found.filling), bool(found.done)
        if self._sizes:
            self._shard = self._filling(len(self._sealed)).open("r+b", buffering=0)
            self._shard.seek(self._encoding.head_bytes + sum(self._sizes))
            self._shard.truncate()
            if len(self._sizes) == SHARD_RECORDS:
                self._seal()

    def append(self, record: Record, pixels: np.ndarray) -> None:
        """Adds a record with its pixels, uint8 [320, 320, C]."""
        if pixels.shape != (SIDE, SIDE, self.channels) or pixels.dtype != np.uint8:
            raise ValueError(f"pixels {pixels.dtype} {pixels.shape}, expected uint8 {(SIDE, SIDE, self.channels)}")
        done, data = encoded(pixels, self.encoding, n_tokens=record.n_tokens)
        self.put(done, data)
        self.add(record, done)

    def put(self, done: Done, data: bytes) -> Done:
        """Writes what became of the next image, and its stored bytes (none where it was left out). Returns `done`."""
        with self._storage():
            if self._journal is None:
                self._begin("", Held())
            assert self._journal is not None
            if not done.reason:
                if self._shard is None:
                    self._shard = self._filling(len(self._sealed)).open("w+b", buffering=0)
                    self._shard.write(b"\0" * self._encoding.head_bytes)
                _write_all(self._shard, data)
                self._sizes.append(len(data))
            self._journal.done(done)
            self._any = True
            if len(self._sizes) == SHARD_RECORDS:
                self._seal()
        return done

    def add(self, record: Record, done: Done) -> None:
        """Adds the row of a record that was put; in the same order."""
        self._records.append(record)
        self._hashes.append((done.image_sha256, done.stored_sha256))

    def skip(self, source_row: int, reason: str) -> None:
        """Lists a source row that is left out."""
        self._skipped.append((source_row, reason))

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Writes the table and the manifest (given keys, plus format, counts and checksums), then moves the
        store into place.
        """
        with self._storage():
            if self._journal is None:
                self._begin("", Held())
            if self._sizes:
                self._seal()
            self._files |= {file.name: {"bytes": file.bytes, "sha256": file.sha256} for file in self._sealed}
            with self._new_file(TABLE) as file:
                write_table(
                    file,
                    self._records,
                    self._hashes,
                    sections=self.sections,
                    labels=self.labels,
                    synthetic=self.synthetic,
                )
            with self._new_file(SKIPPED) as file:
                for row, reason in sorted(self._skipped):
                    file.write((json.dumps({"row": row, "reason": reason}) + "\n").encode())
            if self.synthetic:
                with self._new_file(SYNTHETIC_NOTE) as file:
                    file.write(b"Every image, text and label in this store is synthetic. None is of a patient.\n")
            whole = {
                "format": FORMAT_NAME,
                "format_version": FORMAT_VERSION,
                "synthetic": self.synthetic,
                "encoding": self.encoding,
                **({self.encoding: self._encoding.card} if self._encoding.card else {}),
                "records": len(self._records),
                "side": SIDE,
                "channels": self.channels,
                "shard_records": SHARD_RECORDS,
                "splits": split_counts(self._records),
                "sections": list(self.sections),
                **manifest,
                "files": self._files,
            }
            with (self.partial / MANIFEST).open("wb") as file:
                file.write((json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
                _sync(file)
            _sync_folder(self.partial)
            (self.partial / JOURNAL).unlink()
            self.partial.rename(self.out)
            _sync_folder(self.out.parent)

    def _filling(self, index: int) -> Path:
        return self.partial / shard_name(index, self._encoding.filling_suffix)

    def _seal(self) -> None:
        assert self._shard is not None
        assert self._journal is not None
        self._shard.close()
        self._shard = None
        filling = self._filling(len(self._sealed))
        out = self.partial / shard_name(len(self._sealed), self._encoding.suffix)
        self._encoding.seal(filling, self._sizes, self.channels, out)
        sealed = Sealed(out.name, out.stat().st_size, file_sha256(out))
        self._journal.sealed(sealed)
        if filling != out:
            filling.unlink()
        self._sealed.append(sealed)
        self._sizes = []

    @contextlib.contextmanager
    def _new_file(self, name: str) -> Iterator[BinaryIO]:
        with (self.partial / name).open("wb") as file:
            yield file
            _sync(file)
        self._list_file(name)

    def _list_file(self, name: str) -> None:
        path = self.partial / name
        self._files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            remedy = ""
            if self._any:
                remedy = f"; what is done is kept in {self.partial}, and the same command goes on from there"
            raise StorageError(f"{self.out}: cannot write the store: {reason}{remedy}") from error

    def _release(self) -> None:
        if self._lock_file is not None:
            release_lock(self._lock, self._lock_file)
            self._lock_file = None


def _write_all(file: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # an unbuffered file may take a part, as at the end of a disk
        rest = rest[file.write(rest) :]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
