"""What a run's files must hold before a page is made of them: the one place where a hand's slip is found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from hybridclip_jax.errors import UserError

# A run's values are float32 at most; further out, the sums behind a chart's axis overflow.
LARGEST = 1e100


@dataclasses.dataclass(frozen=True)
class Plain:
    """A value without parts. `words` end the sentence "it must be ..."."""

    words: str
    fits: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Maybe:
    """May be missing or null."""

    shape: Shape


@dataclasses.dataclass(frozen=True)
class Each:
    """An object of any names whose values all have one shape."""

    shape: Shape


@dataclasses.dataclass(frozen=True)
class Items:
    """A list whose items all have one shape."""

    shape: Shape


Shape: TypeAlias = Plain | Maybe | Each | Items | Mapping[str, "Shape"]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= low


TEXT = Plain("text", lambda value: isinstance(value, str))
FLAG = Plain("true or false", lambda value: isinstance(value, bool))
NUMBER = Plain(f"a number, at most {LARGEST:g}", _is_number)
WHOLE = Plain(f"a whole number from 0 to {LARGEST:g}", lambda value: _is_whole(value, 0))
COUNT = Plain(f"a whole number from 1 to {LARGEST:g}", lambda value: _is_whole(value, 1))
INTERVAL = Plain(
    "two numbers", lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
)

LIST = Plain("a list", lambda value: isinstance(value, list))
TEXTS = Plain("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value))

CONFIG: Shape = {
    "steps": COUNT,
    "batch_size": COUNT,
    "model": {"image": {"arch": TEXT}, "text": {"arch": TEXT}},
    "data": {"train": TEXT},
    "evals": Each({"protocol": TEXT, "data": TEXT}),
}
BEST: Shape = {
    "step": WHOLE,
    "metric": TEXT,
    "value": NUMBER,
    "interval": Maybe(INTERVAL),
    "runner_up": Maybe({"step": WHOLE, "value": NUMBER}),
    "why": Maybe(TEXT),
}
STORE = Maybe({"spec": TEXT, "records": Maybe(WHOLE), "patients": Maybe(WHOLE), "synthetic": Maybe(FLAG)})
SUMMARY: Shape = {
    "step": WHOLE,
    "finished": FLAG,
    "exit": Maybe(TEXT),
    "wall_s": Maybe(NUMBER),
    "pairs_per_s": Maybe(NUMBER),
    "pf_days_model": Maybe(NUMBER),
    "pf_days_capacity": Maybe(NUMBER),
    "mfu": Maybe(NUMBER),
    "attempts": Maybe(WHOLE),
    "parameters": Maybe(Each({"count": WHOLE, "trainable": WHOLE})),
    "devices": Maybe({"kind": TEXT, "count": WHOLE}),
    "data": Maybe({"train": STORE, "evals": Maybe(Each(STORE))}),
    "versions": Maybe(Each(TEXT)),
    "command": Maybe(TEXT),
    "warnings": Maybe(TEXTS),
}
# What the page shows of an audit; it holds more.
AUDIT: Shape = {
    "splits": Items(
        {
            "name": TEXT,
            "records": WHOLE,
            "studies": WHOLE,
            "patients": WHOLE,
            "patients_known": FLAG,
            "tokens": {"median": NUMBER, "beyond": Each(WHOLE)},
            "images": {"distinct": WHOLE, "constant": LIST, "duplicates": LIST},
            "texts": {"without": WHOLE, "studies_with_a_repeated_text": WHOLE},
            "near_copies": Maybe(LIST),
        }
    ),
    "pairs": Items(
        {
            "a": TEXT,
            "b": TEXT,
            **dict.fromkeys(("patients", "studies", "images"), Maybe(WHOLE)),
            **dict.fromkeys(("ids_why", "images_why"), Maybe(TEXT)),
            "texts": WHOLE,
            "near_copies": Maybe(LIST),
        }
    ),
    "problems": TEXTS,
}
# Of a line of metrics.jsonl what the report draws, by its name or by what stands before its "/". An evaluator may log
# more, of any kind.
LINE: Mapping[str, Shape] = {
    "step": WHOLE,
    "split": TEXT,
    **dict.fromkeys(("loss", "wall_s", "pairs_per_s", "step_ms", "input_wait_ms"), Maybe(NUMBER)),
    **dict.fromkeys(("tflops", "mfu", "pf_days_model", "pf_days_capacity"), Maybe(NUMBER)),
    **dict.fromkeys(("auroc", "auroc_lo", "auroc_hi"), Maybe(NUMBER)),
    "auroc_why": Maybe(TEXT),
}
# By file: its shape, and what to do where the file does not have it.
WRITTEN_AT_START = "restore it, or delete it and give the command that trains once more, which writes it"
FILES = {
    "config.json": (CONFIG, "restore it, or train anew in another --workdir"),
    "best.json": (BEST, "restore it, or delete it: the report then shows the last evaluation"),
    "summary.json": (SUMMARY, WRITTEN_AT_START),
    "audit.json": (AUDIT, WRITTEN_AT_START),
}


def read(path: Path) -> dict[str, Any]:
    """The object in one of FILES; empty where there is no such file. Raises UserError naming file and field."""
    if not path.is_file():
        return {}
    shape, remedy = FILES[path.name]
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None
    if wrong := fault(body, shape):
        raise UserError(f"{path}: {wrong}; {remedy}")
    return body


def check_line(path: Path, line: Mapping[str, Any]) -> None:
    """Raises UserError where a line of metrics.jsonl has a value that is not of its kind."""
    kinds = {name: LINE.get(name.partition("/")[0]) for name in line}
    if wrong := fault(line, {name: kind for name, kind in kinds.items() if kind is not None}):
        where = f"step {_shown(line['step'])}, split {_shown(line['split'])}"
        raise UserError(f"{path}: the line of {where}: {wrong}; delete that line")


def fault(value: Any, shape: Shape) -> str:
    """The first field that is not of its shape, in words; empty where every field is."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "holds half a character (a \\ud... escape without its other half)"
    return _fault(value, shape, "")


def _fault(value: Any, shape: Shape, field: str) -> str:
    if isinstance(shape, Maybe):
        return "" if value is None else _fault(value, shape.shape, field)
    if isinstance(shape, Plain):
        return "" if shape.fits(value) else f"{field} is {_shown(value)}; it must be {shape.words}"
    if isinstance(shape, Items):
        if not isinstance(value, list):
            return f"{field} is {_shown(value)}; it must be a list"
        faults = (_fault(item, shape.shape, f"{field}[{i}]") for i, item in enumerate(value))
        return next(filter(None, faults), "")
    if not isinstance(value, dict):
        return f"{field} is {_shown(value)}; it must be an object" if field else "holds no JSON object"
    parts = dict.fromkeys(value, shape.shape) if isinstance(shape, Each) else shape
    for name, part in parts.items():
        full = f"{field}.{name}" if field else name
        if name not in value and not isinstance(part, Maybe):
            return f"{full} is missing"
        if wrong := _fault(value.get(name), part, full):
            return wrong
    return ""


def _shown(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
