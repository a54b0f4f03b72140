"""Writes a store beside its final place and renames it there whole: a store that opens was finished."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hybridclip_jax.data.store import (
    FIXED_COLUMNS,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST,
    SHARD_RECORDS,
    SIDE,
    SKIPPED,
    TABLE,
    file_sha256,
    shard_name,
)
from hybridclip_jax.errors import StorageError, UserError

SYNTHETIC_NOTE = "SYNTHETIC.txt"
_HEADER_BYTES = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One row of the table; ids already hashed."""

    id: str
    study: str
    patient: str
    split: str
    view: str
    text: str
    sections: Mapping[str, str]
    n_tokens: int
    labels: Mapping[str, float | None]
    source_row: int


class StoreWriter:
    """`with StoreWriter(out, ...) as writer:` append and skip, then `finish(manifest)`; without finish
    nothing appears.

    Raises:
        UserError: `out` exists, another run is writing it, it has no name, or a label or section has
            the name of a fixed column.
        StorageError: the disk refuses.
    """

    def __init__(
        self, out: Path, *, channels: int, labels: tuple[str, ...], sections: tuple[str, ...], synthetic: bool
    ) -> None:
        self.out = out
        self.channels = channels
        self.labels = labels
        self.sections = sections
        self.synthetic = synthetic
        if not out.name or "\0" in str(out):
            raise UserError(f"--out {str(out)!r}: not a name for a new folder; give one, such as stores/train")
        self._partial = out.with_name(out.name + ".partial")
        self._lock = out.with_name(out.name + ".lock")
        self._lock_file: int | None = None
        self._records: list[Record] = []
        self._hashes: list[str] = []
        self._skipped: list[tuple[int, str]] = []
        self._shard: BinaryIO | None = None
        self._files: dict[str, dict[str, object]] = {}
        names = [*FIXED_COLUMNS, *sections, *labels]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"label or section {name!r} has the name of another column: rename it in the source")

    def __enter__(self) -> StoreWriter:
        with self._storage():
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file = _take_lock(self._lock, self.out)
            try:
                self._refuse_existing()
                shutil.rmtree(self._partial, ignore_errors=True)  # of a run that was killed
                self._partial.mkdir()
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shard is not None:
            with contextlib.suppress(OSError):
                self._shard.close()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._release()

    def append(self, record: Record, pixels: np.ndarray) -> None:
        """Adds a record with its pixels, uint8 [320, 320, C]."""
        if pixels.shape != (SIDE, SIDE, self.channels) or pixels.dtype != np.uint8:
            raise ValueError(f"pixels {pixels.dtype} {pixels.shape}, expected uint8 {(SIDE, SIDE, self.channels)}")
        data = pixels.tobytes()
        with self._storage():
            if self._shard is None:
                self._shard = (self._partial / shard_name(len(self._records) // SHARD_RECORDS)).open("w+b")
                self._shard.write(b"\0" * _HEADER_BYTES)
            self._shard.write(data)
            self._records.append(record)
            self._hashes.append(hashlib.sha256(data).hexdigest())
            if len(self._records) % SHARD_RECORDS == 0:
                self._close_shard()

    def skip(self, source_row: int, reason: str) -> None:
        """Lists a source row that is left out."""
        self._skipped.append((source_row, reason))

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Writes the table and the manifest (given keys, plus format, counts and checksums), then moves the
        store into place.
        """
        with self._storage():
            if self._shard is not None:
                self._close_shard()
            self._write_table()
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
                "encoding": "raw",
                "records": len(self._records),
                "side": SIDE,
                "channels": self.channels,
                "shard_records": SHARD_RECORDS,
                "splits": self._counts(),
                "sections": list(self.sections),
                **manifest,
                "files": self._files,
            }
            with (self._partial / MANIFEST).open("wb") as file:
                file.write((json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
                _sync(file)
            _sync_folder(self._partial)
            self._partial.rename(self.out)
            _sync_folder(self.out.parent)

    def _counts(self) -> dict[str, dict[str, int]]:
        splits: dict[str, tuple[list[str], set[str], set[str]]] = {}
        for record in self._records:
            ids, studies, patients = splits.setdefault(record.split, ([], set(), set()))
            ids.append(record.id)
            studies.add(record.study)
            patients.add(record.patient)
        return {
            name: {"records": len(ids), "studies": len(studies), "patients": len(patients)}
            for name, (ids, studies, patients) in splits.items()
        }

    def _write_table(self) -> None:
        rows = self._records
        columns: dict[str, pa.Array] = {
            name: pa.array([getattr(row, name) for row in rows], pa.string())
            for name in ("id", "study", "patient", "split", "view", "text")
        }
        for name in self.sections:
            columns[name] = pa.array([row.sections.get(name, "") for row in rows], pa.string())
        columns["n_tokens"] = pa.array([row.n_tokens for row in rows], pa.int32())
        for name in self.labels:
            columns[name] = pa.array([row.labels.get(name) for row in rows], pa.float32())
        columns["source_row"] = pa.array([row.source_row for row in rows], pa.int64())
        columns["image_sha256"] = pa.array(self._hashes, pa.string())
        table = pa.table(columns).replace_schema_metadata({"synthetic": "true" if self.synthetic else "false"})
        with self._new_file(TABLE) as file:
            pq.write_table(table, file, compression="snappy", row_group_size=65536)

    def _close_shard(self) -> None:
        assert self._shard is not None
        count = (len(self._records) - 1) % SHARD_RECORDS + 1
        header = io.BytesIO()
        shape = (count, SIDE, SIDE, self.channels)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        assert header.tell() == _HEADER_BYTES  # numpy pads headers to 64 bytes; this one fits in two of them
        self._shard.seek(0)
        self._shard.write(header.getvalue())
        _sync(self._shard)
        self._shard.close()
        self._shard = None
        self._list_file(shard_name((len(self._records) - 1) // SHARD_RECORDS))

    @contextlib.contextmanager
    def _new_file(self, name: str) -> Iterator[BinaryIO]:
        with (self._partial / name).open("wb") as file:
            yield file
            _sync(file)
        self._list_file(name)

    def _list_file(self, name: str) -> None:
        path = self._partial / name
        self._files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

    def _refuse_existing(self) -> None:
        if not self.out.exists():
            return
        if not self.out.is_dir() or any(self.out.iterdir()):  # renaming replaces an empty folder
            raise UserError(f"{self.out} already exists: name another --out, or remove it first")

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.out}: cannot write the store: {error.strerror or error}") from error

    def _release(self) -> None:
        if self._lock_file is not None:
            self._lock.unlink(missing_ok=True)  # while still held, so that nobody holds a lock on a name that is gone
            os.close(self._lock_file)
            self._lock_file = None


def _take_lock(path: Path, out: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(f"another prepare is writing {out}: wait for it, or name another --out") from error
        except OSError as error:
            # Some cluster file systems are mounted without locks; two runs at once then stay the user's to
            # avoid.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                os.close(descriptor)
                raise
            return descriptor
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its last holder removed the name between our open and our lock


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
