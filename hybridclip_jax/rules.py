"""The one matcher behind freezing, learning rates, decay and sharding: ordered regexes over parameter names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from hybridclip_jax.errors import UserError

T = TypeVar("T")

REST = ".*"


def match(rules: Sequence[tuple[str, T]], names: Iterable[str], *, what: str) -> dict[str, T]:
    """name -> value of the first rule whose regex matches the whole name.

    Raises UserError naming a parameter that no rule covers, a rule that decides nothing (it matches no parameter, or
    none that is left to it), or a broken regex. `.*` may end a table that leaves it nothing.
    """
    try:
        compiled = [(re.compile(pattern), value) for pattern, value in rules]
    except re.error as error:
        raise UserError(f"{what}: {error.pattern!r} is not a regular expression: {error}") from error
    matched, decisive = set(), set()
    result: dict[str, T] = {}
    for name in names:
        hits = [place for place, (regex, _) in enumerate(compiled) if regex.fullmatch(name)]
        if not hits:
            raise UserError(f"{what}: no rule covers the parameter {name}; end the table with '{REST}'")
        matched.update(hits)
        decisive.add(hits[0])
        result[name] = compiled[hits[0]][1]
    for place, (regex, _) in enumerate(compiled):
        if place not in matched:
            raise UserError(f"{what}: the rule {regex.pattern!r} matches no parameter; correct or remove it")
        if place not in decisive and regex.pattern != REST:
            raise UserError(
                f"{what}: the rule {regex.pattern!r} decides nothing: rules before it take all it matches; "
                "the first match wins, so put it earlier or remove it"
            )
    return result
