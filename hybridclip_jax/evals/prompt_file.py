"""Prompt files: which sentences stand for a label being present and for it being absent.

A file is JSON: {"format": 1, "name", "version", "about", "positive": [templates], "negative": [templates],
"labels": {LABEL: {"positive": [...], "negative": [...]}}}. In a template "{}" becomes the label in lower
case. `labels` replaces the templates of single labels; "no No Finding" is why that is needed. Without any "negative"
the sentences are captions of classes that exclude each other; with `labels` the templates may be left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import json_file

FOLDER = Path(__file__).parent / "prompts"
FORMAT = 1
SIDES = ("positive", "negative")
_KEYS = {"format", "name", "version", "about", "labels", *SIDES}


def label_key(label: str) -> str:
    """The form in which labels are compared and fill templates: `Pleural_Effusion` -> `pleural effusion`."""
    return " ".join(label.replace("_", " ").lower().split())


@dataclasses.dataclass(frozen=True)
class Pair:
    """The finished prompts of one label; no negative ones where a file captions classes."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PromptFile:
    source: str  # for errors: the file's path
    name: str
    version: str
    sha256: str  # of the file's bytes, to say in a result which prompts made it
    templates: Pair | None
    overrides: dict[str, Pair]  # by label_key

    @property
    def has_negatives(self) -> bool:
        """Whether the file says how a label's absence reads; if so, of every label."""
        return any(pair.negative for pair in self._pairs())

    def positives(self) -> PromptFile:
        """The same sentences of presence, without those of absence."""

        def alone(pair: Pair) -> Pair:
            return Pair(pair.positive, ())

        templates = None if self.templates is None else alone(self.templates)
        overrides = {key: alone(pair) for key, pair in self.overrides.items()}
        return dataclasses.replace(self, templates=templates, overrides=overrides)

    def pair(self, label: str) -> Pair:
        """The prompts of `label`, templates filled in; UserError where the file has none for it."""
        key = label_key(label)
        chosen = self.overrides.get(key, self.templates)
        if chosen is None:
            known = ", ".join(repr(name) for name in self.overrides)
            raise UserError(f"{self.source}: has no prompts for the label {label!r}, nor templates; it has {known}")
        return Pair(*(tuple(text.replace("{}", key) for text in side) for side in (chosen.positive, chosen.negative)))

    def describe(self, labels: Sequence[str]) -> dict[str, Any]:
        """The file and the sentences that it makes of these labels, ready for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "labels": {label: dataclasses.asdict(self.pair(label)) for label in labels},
        }

    def _pairs(self) -> Iterator[Pair]:
        if self.templates is not None:
            yield self.templates
        yield from self.overrides.values()


def load(name_or_path: str) -> PromptFile:
    """Reads a shipped file by its name, or any file by its path; UserError names the file and its fault."""
    try:
        shipped = FOLDER / f"{name_or_path}.json"
        path = shipped if shipped.is_file() else Path(name_or_path)
        raw, content = json_file.read(path)
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise UserError(f"prompts {name_or_path!r}: neither a file nor one of the shipped sets ({names})") from error
    return _parse(str(path), content, raw)


def given(positive: Sequence[str], negative: Sequence[str]) -> PromptFile:
    """Templates that come from Python and not from a file, held to the same rules; `negative` may be empty."""
    content = {"format": FORMAT, "name": "given", "version": "none", "positive": _listed(positive)}
    if len(negative):
        content["negative"] = _listed(negative)
    return _parse("templates", content, json.dumps(content, default=str).encode())


def _listed(texts: Sequence[str]) -> Any:
    return texts if isinstance(texts, str) else list(texts)  # one text is no list of its letters


def _parse(source: str, content: Any, raw: bytes) -> PromptFile:
    if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] != FORMAT:
        example = FOLDER / "chexzero.json"
        raise UserError(f'{source}: a prompt file is a JSON object with "format": {FORMAT}; {example} is one')
    try:
        json.dumps(content, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UserError(f"{source}: holds {half!r}, half of a surrogate pair, which is no text") from error
    if unknown := sorted(set(content) - _KEYS):
        raise UserError(f"{source}: unknown field {unknown[0]!r}; the fields are {', '.join(sorted(_KEYS))}")
    for field in ("name", "version"):
        if not isinstance(content.get(field), str):
            raise UserError(f"{source}: {field!r} must be a string")
    labels = content.get("labels", {})
    if not isinstance(labels, dict):
        raise UserError(f"{source}: 'labels' must be an object of label names")
    negatives = any("negative" in entry for entry in (content, *labels.values()) if isinstance(entry, dict))
    templates = None
    if not labels or any(side in content for side in SIDES):
        templates = _pair(source, "", content, negatives)
        for text in (*templates.positive, *templates.negative):
            if "{}" not in text:
                raise UserError(f'{source}: template {text!r} has no "{{}}" for the label')
    overrides: dict[str, Pair] = {}
    for label, entry in labels.items():
        if label_key(label) in overrides:
            raise UserError(f"{source}: labels.{label} is there twice: case and underscores make no other label")
        overrides[label_key(label)] = _pair(source, f"labels.{label}.", entry, negatives)
    digest = hashlib.sha256(raw).hexdigest()
    return PromptFile(source, content["name"], content["version"], digest, templates, overrides)


def _pair(source: str, where: str, entry: object, negatives: bool) -> Pair:
    """Both sides of an entry; the negative one empty where the file has none anywhere."""
    sides = []
    for side in SIDES if negatives else SIDES[:1]:
        texts = entry.get(side) if isinstance(entry, dict) else None
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise UserError(
                f"{source}: {where}{side} must be a list of one or more non-empty strings; "
                f"{FOLDER / 'chexzero.json'} is an example"
            )
        sides.append(tuple(texts))
    return Pair(sides[0], sides[1] if negatives else ())
