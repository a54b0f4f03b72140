"""How the report writes numbers, and what it says where there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def number(value: object) -> float | None:
    """The value as a finite float, else None (null, text, NaN)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def count(value: object) -> str:
    found = number(value)
    return "not recorded" if found is None else f"{found:,.0f}"


def figures(value: object) -> str:
    """Four significant figures, for what spans many powers of ten."""
    found = number(value)
    return "not known" if found is None else f"{found:.4g}"


def text(value: object) -> str:
    """A word as it stands, anything else (also the empty word) as JSON."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def decimal(value: float | int | None) -> str:
    """Three decimals, or four figures where the value is no share or score; a whole number as it is."""
    if value is None:
        return "n/a"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:z.3f}" if abs(value) < 10 else f"{value:,.4g}"


def signed(value: float | int | None) -> str:
    """A difference: `decimal` with a plus where it is above 0."""
    return f"{'+' if value is not None and value > 0 else ''}{decimal(value)}"


def interval(low: float | None, high: float | None, write: Callable[[float | int | None], str] = decimal) -> str:
    """Both ends on one line, an undefined one as n/a; nothing where there is neither."""
    if low is None and high is None:
        return ""
    return f"{write(low)}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{write(high)}"


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def moment(when: str) -> str:
    """An ISO date and time as people write them, to the second."""
    whole, _, rest = when.partition(".")
    return (whole + rest.lstrip("0123456789")).replace("T", " ").replace("+00:00", "\N{NO-BREAK SPACE}UTC")


def plural(n: int, noun: str) -> str:
    """plural(2, "image") is "2 images"; a noun in -y gets -ies."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun[:-1]}ies" if noun.endswith("y") else f"{n:,} {noun}s"


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """[("optim.name", "sgd"), ...] in the config's order; an empty group stands as {}."""
    rows: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
