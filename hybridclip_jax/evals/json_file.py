"""JSON files that users name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybridclip_jax.errors import UserError


def read(path: Path) -> tuple[bytes, Any]:
    """The file's bytes and what they hold. OSError where it cannot be read, UserError where it is not JSON or names a
    field twice."""
    raw = path.read_bytes()
    try:
        return raw, json.loads(raw, object_pairs_hook=lambda pairs: _no_name_twice(path, pairs))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error


def _no_name_twice(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: {twice!r} stands twice in one object, and only the last would count")
    return named
