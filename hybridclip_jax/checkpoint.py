"""Checkpoints that can be trusted: orbax writes the arrays, a manifest of hashes says which step is whole.

orbax restores flipped bits without an error and never falls back past a damaged newest step, so a step counts
only when every file of it still has the hash that was noted after the write.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

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


class Checkpoints:
    """The checkpoints of one run: `<folder>/<step>/{arrays/, manifest.json}`, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder.absolute(), keep
        self.folder.mkdir(parents=True, exist_ok=True)

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
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(partial / ARRAYS, state)
            manifest = {"step": step, "notes": notes, "sha256": _hashes(partial / ARRAYS)}
            _write_durably(partial / MANIFEST, json.dumps(manifest, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StorageError(f"{final}: the checkpoint could not be written: {error}") from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def newest_verified(self) -> int | None:
        """The newest step whose files all match their hashes; damaged newer ones are renamed `damaged-<step>`."""
        for step in reversed(self.steps()):
            if self._is_whole(step):
                return step
            damaged = self.folder / f"damaged-{step}"
            shutil.rmtree(damaged, ignore_errors=True)
            os.replace(self.folder / str(step), damaged)
        return None

    def _is_whole(self, step: int) -> bool:
        folder = self.folder / str(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            return bool(manifest["sha256"]) and manifest["sha256"] == _hashes(folder / ARRAYS)
        except (OSError, ValueError, KeyError):
            return False

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, notes) of a step. `like` is a pytree of ShapeDtypeStruct with shardings.

        Raises StorageError when the arrays do not have the shapes of `like`.
        """
        folder = self.folder / str(step)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                state = checkpointer.restore(folder / ARRAYS, like)
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise StorageError(f"{folder}: does not restore into this model: {reason}") from error
        return state, json.loads((folder / MANIFEST).read_text())["notes"]


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
