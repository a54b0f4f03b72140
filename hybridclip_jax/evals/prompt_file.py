"""Prompt files: which sentences stand for a label being present and for it being absent.

A file is JSON: {"format": 1, "name", "version", "about", "positive": [templates], "negative": [templates],
"labels": {LABEL: {"positive": [...], "negative": [...]}}}. In a template "{}" becomes the label in lower
case. `labels` replaces the templates of single labels; "no No Finding" is why that is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.errors import UserError

FOLDER = Path(__file__).parent / "prompts"
FORMAT = 1
_KEYS = {"format", "name", "version", "about", "positive", "negative", "labels"}


def label_key(label: str) -> str:
    """The form in which labels are compared and fill templates: `Pleural_Effusion` -> `pleural effusion`."""
    return " ".join(label.replace("_", " ").lower().split())


@dataclasses.dataclass(frozen=True)
class Pair:
    """The finished prompts of one label."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PromptFile:
    name: str
    version: str
    sha256: str  # of the file's bytes, to say in a result which prompts made it
    templates: Pair
    overrides: dict[str, Pair]  # by label_key

    def pair(self, label: str) -> Pair:
        """The prompts of `label`, templates filled in."""
        key = label_key(label)
        chosen = self.overrides.get(key, self.templates)
        return Pair(*(tuple(text.replace("{}", key) for text in side) for side in dataclasses.astuple(chosen)))

    def describe(self, labels: Sequence[str]) -> dict[str, Any]:
        """The file and the sentences that it makes of these labels, ready for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "labels": {label: dataclasses.asdict(self.pair(label)) for label in labels},
        }


def load(name_or_path: str) -> PromptFile:
    """Reads a shipped file by its name, or any file by its path; UserError names the file and its fault."""
    shipped = FOLDER / f"{name_or_path}.json"
    path = shipped if shipped.is_file() else Path(name_or_path)
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise UserError(f"prompts {name_or_path!r}: neither a file nor one of the shipped sets ({names})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f'{path}: a prompt file is a JSON object with "format": {FORMAT}')
    if unknown := sorted(set(content) - _KEYS):
        raise UserError(f"{path}: unknown field {unknown[0]!r}; the fields are {', '.join(sorted(_KEYS))}")
    for field in ("name", "version"):
        if not isinstance(content.get(field), str):
            raise UserError(f"{path}: {field!r} must be a string")
    templates = _pair(path, "", content)
    for text in (*templates.positive, *templates.negative):
        if "{}" not in text:
            raise UserError(f'{path}: template {text!r} has no "{{}}" for the label')
    labels = content.get("labels", {})
    if not isinstance(labels, dict):
        raise UserError(f"{path}: 'labels' must be an object of label names")
    overrides = {label_key(label): _pair(path, f"labels.{label}.", entry) for label, entry in labels.items()}
    return PromptFile(content["name"], content["version"], hashlib.sha256(raw).hexdigest(), templates, overrides)


def _pair(path: Path, where: str, entry: object) -> Pair:
    sides = []
    for side in ("positive", "negative"):
        texts = entry.get(side) if isinstance(entry, dict) else None
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise UserError(f"{path}: {where}{side} must be a list of one or more non-empty strings")
        sides.append(tuple(texts))
    return Pair(*sides)
