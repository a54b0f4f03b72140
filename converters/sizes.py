"""Which of the towers that this package knows a source's shapes belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from converters.sources import Source
from hybridclip_jax.errors import UserError

Sizes = TypeVar("Sizes")


def count(names: Iterable[str], prefix: str) -> int:
    """Blocks numbered after `prefix`: one more than the highest number, 0 where there is none."""
    numbers = (re.match(re.escape(prefix) + r"(\d{1,6})\.", name) for name in names)
    return max((int(found[1]) + 1 for found in numbers if found), default=0)


def side(positions: int) -> int:
    """Places along one side of the square that a table of positions covers, without the class token's."""
    return round(max(positions - 1, 0) ** 0.5)


def match(source: Source, what: str, table: Mapping[str, Sizes], found: Mapping[str, Any]) -> tuple[str, Sizes]:
    """(name, sizes) of the one entry that has every size in `found`. Raises UserError with what was found."""
    fits = [
        (name, sizes)
        for name, sizes in table.items()
        if all(getattr(sizes, field) == value for field, value in found.items())
    ]
    if len(fits) != 1:
        said = ", ".join(f"{field} {value}" for field, value in found.items())
        raise UserError(f"{source.name}: a {what} of {said} is none of {', '.join(table)}")
    return fits[0]
