"""How the report writes numbers, and what it says where there is none."""

from __future__ import annotations

import json
import math


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
