"""A run's folder: who may write into it, which config it belongs to, and its small JSON files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridclip_jax.errors import StorageError, UserError

CONFIG, LOCK = "config.json", ".lock"
METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
# Fields that may differ between attempts: a run may move to other devices and disks, or be told to go on at chance or
# although nothing got better.
MAY_CHANGE = ("mesh.", "watchdog.", "data.stage_dir", "select.patience")


def refuse_another(workdir: Path, config_text: str) -> None:
    """Raises UserError where `workdir` holds a run of another config, StorageError where it cannot be read."""
    path = workdir / CONFIG
    try:
        if not _began(workdir):
            return
        if not path.exists():
            raise UserError(f"{path}: missing, and the run has begun; restore it, or use another --workdir")
        earlier = _flat(json.loads(path.read_text()))
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); use another --workdir") from error
    now = _flat(json.loads(config_text))
    changed = [k for k in sorted(earlier.keys() | now.keys()) if earlier.get(k) != now.get(k)]
    changed = [field for field in changed if not field.startswith(MAY_CHANGE)]
    if changed:
        field = changed[0]
        more = f" (and {len(changed) - 1} more differ)" if len(changed) > 1 else ""
        raise UserError(
            f"{workdir} holds a run with {field} = {earlier.get(field)!r}, this config has {now.get(field)!r}{more}; "
            "use another --workdir"
        )


def _began(workdir: Path) -> bool:
    """Whether a step was ever logged: a config that failed before, at a batch too large say, may be mended in place."""
    metrics, checkpoints = workdir / METRICS, workdir / CHECKPOINTS
    return (metrics.exists() and metrics.stat().st_size > 0) or (checkpoints.exists() and any(checkpoints.iterdir()))


@contextlib.contextmanager
def claimed(workdir: Path, config_text: str) -> Iterator[None]:
    """Holds `workdir` for this process and notes the config in it.

    Raises UserError where another attempt is at work in it or it holds another run, StorageError where it cannot
    be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK).open("w")
    except OSError as error:
        raise StorageError(f"{workdir}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however that ends
        except BlockingIOError as error:
            raise UserError(f"{workdir}: this run is going on already; wait, or use another --workdir") from error
        except OSError as error:
            # Some cluster file systems are mounted without locks; two at once then stay the user's to avoid.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
        refuse_another(workdir, config_text)
        write_whole(workdir / CONFIG, config_text)
        yield


def read_json(path: Path) -> Any:
    """The file's value, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def write_json(path: Path, body: Any) -> None:
    write_whole(path, json.dumps(body, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """The new text or the old one, never a part. Raises StorageError when the disk refuses."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
