"""Where a table says an image is, kept inside the folder of images."""

from __future__ import annotations

import os.path
from collections.abc import Iterable
from pathlib import Path

from hybridclip_jax.errors import UserError

OUTSIDE = "path outside the images folder"
_TRIED = 1000  # rows looked at before giving up; a dataset that lacks its first thousand images is not there


def image_folder(named: str | None, default: Path) -> Path:
    """The folder that --images names, or else `default`; UserError where there is none."""
    folder = default if named is None else Path(named)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder for --images")
    return folder


def inside(folder: Path, name: str) -> Path | None:
    """`folder / name`, or None where that would not lie below `folder`: a blank name, "..", an absolute path of
    another place, a zero byte.

    Decided from the text alone: nothing is looked up, and links inside the folder are the user's own.
    """
    parts = name.split("/")
    if not name.strip() or "\0" in name or all(part in ("", ".") for part in parts):
        return None
    if parts[0] and ".." not in parts:  # nearly every row: spares it the search for where it leads
        return folder / name
    root = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(root, name))
    if not path.startswith(root.rstrip(os.sep) + os.sep):
        return None
    return folder / os.path.relpath(path, root)


def suffix_in_use(stems: Iterable[Path], suffixes: tuple[str, ...]) -> str:
    """The one of `suffixes` that the files behind `stems` (paths without suffix) have: the first file found
    decides, since a dataset is shipped in one kind. The first of `suffixes` when none is found.
    """
    for stem, _ in zip(stems, range(_TRIED), strict=False):
        for suffix in suffixes:
            if os.path.isfile(f"{stem}{suffix}"):  # unlike Path's, it takes a name too long for a name not there
                return suffix
    return suffixes[0]
