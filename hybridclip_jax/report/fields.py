"""Whether a JSON value has the shape that a page needs, and where it does not: the first fault, in words."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

# A run's values are float32 at most; further out, the sums behind a chart's axis overflow.
LARGEST = 1e100
_DATA_URL = r"data:image/(jpeg|png);base64,[A-Za-z0-9+/=]+"


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
NUMBERS = Plain("a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value)))
# Nothing else may be shown: a page loads nothing.
PICTURE = Plain(
    "an image as a data: URL", lambda value: isinstance(value, str) and re.fullmatch(_DATA_URL, value) is not None
)
OBJECT = Plain("an object", lambda value: isinstance(value, dict))


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
        return "" if shape.fits(value) else f"{field} is {shown(value)}; it must be {shape.words}"
    if isinstance(shape, Items):
        if not isinstance(value, list):
            return f"{field} is {shown(value)}; it must be a list"
        faults = (_fault(item, shape.shape, f"{field}[{i}]") for i, item in enumerate(value))
        return next(filter(None, faults), "")
    if not isinstance(value, dict):
        return f"{field} is {shown(value)}; it must be an object" if field else "holds no JSON object"
    parts = dict.fromkeys(value, shape.shape) if isinstance(shape, Each) else shape
    for name, part in parts.items():
        full = f"{field}.{name}" if field else name
        if name not in value and not isinstance(part, Maybe):
            return f"{full} is missing"
        if wrong := _fault(value.get(name), part, full):
            return wrong
    return ""


def shown(value: object) -> str:
    """The value as JSON, cut where it is long."""
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 40 else f"{said[:37]}..."
