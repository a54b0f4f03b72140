"""The folder a command is to make: whether it may, asked before the work is done."""

from __future__ import annotations

import os
from pathlib import Path

from hybridclip_jax.errors import UserError

# Beside the folder stand, while it is written, the new one in part and an old one on its way out; both are cleared.
ENDINGS = (".partial", ".old")


def check(out: Path, source: Path) -> None:
    """Raises UserError where `out` is there already, cannot be made, or its making would clear `source` away."""
    if os.path.lexists(out):
        raise UserError(f"{out}: exists already; name another --out, or remove it")
    for ending in ENDINGS:
        beside = out.with_name(out.name + ending)
        if beside.exists() and source.exists() and beside.samefile(source):
            raise UserError(f"{out}: writing it would clear {source} away, which is read; name another --out")
    above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise UserError(f"{out}: {above} is not a folder; name another --out")
