"""Copies of stores on a disk of this computer, where a cluster's shared file system would be read again and again.

A copy lies in DIR/<fingerprint of the store>, so that it is found again by what it holds and not by a name, and it
appears only when every file has its checksum. What is trained on is the same with or without it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hybridclip_jax.data.locks import release_lock, take_lock
from hybridclip_jax.data.store import MANIFEST, Store, parse_spec, read_manifest
from hybridclip_jax.errors import StorageError, UserError

_CHUNK_BYTES = 1 << 22
_MEGABYTE = 1_000_000

Progress = Callable[[int, int], None]  # megabytes that were copied, of how many


def open_staged(
    spec: str,
    folder: str,
    *,
    what: str = "data.stage_dir",
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Store:
    """The store "PATH" or "PATH:SPLIT", read from its copy under `folder`; "" reads it where it is.

    It keeps its `spec`. `what` is the setting that named the folder, for errors.
    Raises UserError and StorageError as `Store.open`, `expanded` and `stage` do.
    """
    if not folder:
        return Store.open(spec)
    return Store.open(spec, stage(parse_spec(spec)[0], expanded(folder, what), progress=progress, say=say))


def expanded(folder: str, what: str) -> Path:
    """`folder` with its environment variables put in; UserError where one is not set."""
    path = os.path.expanduser(os.path.expandvars(folder))
    unset = re.search(r"\$(\w+|\{[^}]*\})", path)
    if unset:
        raise UserError(f"{what} = {folder}: {unset[0]} is not set here; set it, or name a folder")
    return Path(path)


def stage(
    store: Path,
    folder: Path,
    *,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder of a whole copy of `store` under `folder`, made unless it is there. `say` is told what is done.

    Of several processes one copies and the others wait for it.

    Raises:
        UserError: no store there, or one of its files is not as its manifest says.
        StorageError: no room, or the disk refuses.
    """
    manifest, fingerprint = read_manifest(store)
    if any(Path(name).name != name for name in manifest["files"]):
        raise UserError(f"{store / MANIFEST} is not as prepare writes it: run prepare again")
    copy = folder / fingerprint
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / f"{fingerprint}.lock"
        held = _lock(lock, f"{store}: another process is copying it to {folder}; waiting for it", say)
        try:
            if _is_whole(copy, manifest["files"], fingerprint):
                say(f"{store}: read from its copy in {copy}")
            else:
                _copy(store, copy, manifest["files"], progress)
                say(f"{store}: copied to {copy}")
        finally:
            release_lock(lock, held)
    except OSError as error:
        raise StorageError(f"{store}: cannot be copied to {folder}: {error.strerror or error}") from error
    return copy


def _lock(path: Path, busy: str, say: Callable[[str], None]) -> int:
    try:
        return take_lock(path, wait=False)
    except BlockingIOError:
        say(busy)
        return take_lock(path, wait=True)


def _is_whole(copy: Path, files: dict[str, dict[str, Any]], fingerprint: str) -> bool:
    # Its files were compared when it was made; what may have become of it since is that some were cleared away.
    try:
        if (
            hashlib.sha256((copy / MANIFEST).read_bytes()).hexdigest() != fingerprint
            or copy.stat().st_uid != os.getuid()
        ):
            return False
        return all((copy / name).stat().st_size == facts["bytes"] for name, facts in files.items())
    except OSError:
        return False


def _copy(store: Path, copy: Path, files: dict[str, dict[str, Any]], progress: Progress) -> None:
    partial = copy.with_name(copy.name + ".partial")
    for left in (partial, copy):  # of a copy that was broken off, or cleared in part
        shutil.rmtree(left, ignore_errors=True)
    total = sum(facts["bytes"] for facts in files.values())
    free = shutil.disk_usage(copy.parent).free
    if free < total:
        raise StorageError(
            f"{copy.parent} has {free / 1e9:.1f} GB free and {store} takes {total / 1e9:.1f} GB: make room, "
            "or leave out the copy"
        )
    try:
        partial.mkdir(mode=0o700)  # local disks are often for all users of a computer, and a store is not
        done = 0
        for name, facts in files.items():
            digest = hashlib.sha256()
            for size in _copied(store / name, partial / name, digest):
                done += size
                progress(done // _MEGABYTE, total // _MEGABYTE)
            if digest.hexdigest() != facts["sha256"]:
                raise UserError(f"{store / name} is damaged (sha256): copy the store again, or run prepare again")
        shutil.copyfile(store / MANIFEST, partial / MANIFEST)
        partial.rename(copy)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copied(source: Path, out: Path, digest: Any) -> Iterator[int]:
    """Copies a file, telling the size of each piece; `digest` is fed with what is written."""
    with source.open("rb") as file, out.open("wb") as to:
        while data := file.read(_CHUNK_BYTES):
            to.write(data)
            digest.update(data)
            yield len(data)
