"""Checkpoints that can be trusted: orbax writes the arrays, a manifest of hashes says which step is whole.

orbax restores flipped bits without an error and never falls back past a damaged newest step, so a step counts
only when every file of it still has the hash that was noted after the write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from hybridclip_jax.errors import StorageError

MANIFEST = "manifest.json"
ARRAYS = "arrays"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _leaves(tree: Any) -> dict[str, str]:
    """Name of each array -> its dtype and shape in words."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {tuple(leaf.shape)}"
        for path, leaf in named
    }


class Checkpoints:
    """The checkpoints of one run: `<folder>/<step>/{arrays/, manifest.json}`, the newest `keep` of them.

    Raises StorageError when the folder cannot be made.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder.absolute(), keep
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: {error.strerror}") from error

    def steps(self) -> list[int]:
        """Steps that have a folder, ascending; none of them verified."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Writes `state` (a pytree of arrays) and `notes` (plain values) as one step, whole or not at all.

        Raises StorageError when the disk refuses; older steps stay as they are.
        """
        final, partial = self.folder / str(step), self.folder / f"partial-{step}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            self._check_space(state)
            with _quiet(), ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(partial / ARRAYS, state)
            body = {"step": step, "notes": notes, "leaves": _leaves(state), "sha256": _hashes(partial / ARRAYS)}
            _write_durably(partial / MANIFEST, json.dumps({"seal": _seal(body), **body}, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore's full disk is a ValueError
            shutil.rmtree(partial, ignore_errors=True)
            raise StorageError(f"{final}: the checkpoint could not be written: {error}") from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def _check_space(self, state: Any) -> None:
        # Found out in the middle of a write, orbax's threads say it in a thousand lines.
        need = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(f"it takes {need / 1e9:.2f} GB and {free / 1e9:.2f} GB are free: make room, then run again")

    def newest_verified(self) -> int | None:
        """The newest step whose files all match their hashes; damaged newer ones are renamed `damaged-<step>`.

        Raises StorageError when a damaged step cannot be renamed.
        """
        for step in reversed(self.steps()):
            if self._is_whole(step):
                return step
            folder, damaged = self.folder / str(step), self.folder / f"damaged-{step}"
            shutil.rmtree(damaged, ignore_errors=True)
            try:
                os.replace(folder, damaged)
            except OSError as error:
                raise StorageError(f"{folder}: damaged, and cannot be renamed: {error.strerror}") from error
        return None

    def _is_whole(self, step: int) -> bool:
        try:
            body = self._manifest(step)
            return bool(body["sha256"]) and body["sha256"] == _hashes(self.folder / str(step) / ARRAYS)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever a damaged file makes of it
            return False

    def _manifest(self, step: int) -> dict[str, Any]:
        body = json.loads((self.folder / str(step) / MANIFEST).read_text())
        if body.pop("seal") != _seal(body) or body["step"] != step:
            raise ValueError("the manifest is not as it was written")
        return body

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, notes) of a verified step. `like` is a pytree of ShapeDtypeStruct with shardings.

        Raises StorageError naming the first array that differs from `like` in name, shape or dtype.
        """
        folder = self.folder / str(step)
        body = self._manifest(step)
        wanted = _leaves(like)
        for name in sorted(wanted.keys() | body["leaves"].keys()):
            found, needed = body["leaves"].get(name, "nothing"), wanted.get(name, "nothing")
            if found != needed:
                raise StorageError(
                    f"{folder}: {name} is {found} in the checkpoint and {needed} in this model; use another --workdir"
                )
        try:
            with _quiet(), ocp.StandardCheckpointer() as checkpointer:
                state = checkpointer.restore(folder / ARRAYS, like)
        except (OSError, ValueError, RuntimeError) as error:
            raise StorageError(f"{folder}: cannot be read: {error}") from error
        return state, body["notes"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """orbax's threads log the traceback of an error that it raises as well; the caller makes one line of it."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
