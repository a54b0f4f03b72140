"""What a model folder's card may say: its fingerprint is of the weights, so nothing else guards the card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LARGEST_IMAGE = 2048  # px a side; stores hold 320, and far more would ask for all memory there is


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind  # not isinstance: True is no number


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6  # neither nan nor infinite


def _three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_number, value))


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


_WORDS = (_is(str), "text")
_OBJECT = (_is(dict), "an object")
_COUNT = (_positive, "a whole number above 0")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": _WORDS,
    "architecture": _OBJECT,
    "architecture.image": _WORDS,
    "architecture.text": _WORDS,
    "architecture.context": _COUNT,
    "architecture.embed_dim": _COUNT,
    "preprocessing": _OBJECT,
    "preprocessing.image_size": (
        lambda value: _positive(value) and value <= LARGEST_IMAGE,
        f"a whole number from 1 to {LARGEST_IMAGE}",
    ),
    "preprocessing.mean": (_three, "three numbers"),
    "preprocessing.std": (lambda value: _three(value) and min(value) > 0, "three numbers above 0"),
    "preprocessing.store": _OBJECT,
    "preprocessing.store.colour": (_is(bool), "true or false"),
    "tokenizer": _OBJECT,
    "tokenizer.vocab_size": _COUNT,
    "source": _OBJECT,
    "licence": _WORDS,
    "synthetic": (_is(bool), "true or false"),
}


def problem(body: Mapping[str, Any]) -> str | None:
    """The first field, of those that are there, whose value cannot be right, and what it has to be; or None."""
    for field, (fine, needs) in _RULES.items():
        *above, last = field.split(".")
        node: Any = body
        for key in above:
            node = node.get(key, {})
        if last in node and not fine(node[last]):
            return f"{field} = {_short(node[last])}: must be {needs}"
    return None


def _short(value: Any) -> str:
    try:
        said = repr(value)
    except ValueError:  # a number of thousands of digits
        return "..."
    return said if len(said) <= 60 else f"{said[:57]}..."
