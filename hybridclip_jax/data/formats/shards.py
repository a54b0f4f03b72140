"""What the names of files say: the split that a shard or table belongs to."""

from __future__ import annotations

import re

# train-00000-of-00012-3f2a.parquet, as dataset hubs name them: any word before the numbers is a split.
_NUMBERED = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}(?:-\w+)?")
_WORD = "train|training|val|valid|validation|dev|test"
_WORDS = re.compile(rf"(?:^|[-_.])({_WORD})(?=$|[-_.\d])", re.I)


def split_of(stem: str) -> str:
    """The split in a file's name without suffix ("train-000012", "Kather_test"); "" where it names none or several."""
    numbered = _NUMBERED.fullmatch(stem)
    if numbered:
        return numbered["split"]
    words = set(_WORDS.findall(stem))
    return words.pop() if len(words) == 1 else ""


def split_of_folder(name: str) -> str:
    """The name of a folder, where it is the name of a split and nothing else."""
    return name if re.fullmatch(_WORD, name, re.I) else ""
