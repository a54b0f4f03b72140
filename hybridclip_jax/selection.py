"""Which step is the run's model, and why, in a sentence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from hybridclip_jax.errors import UserError


def history(lines: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """(step, value) of `<eval>/<name>` from the lines of metrics.jsonl; undefined values are left out.

    Raises UserError when an evaluation has no value of that name: the run would choose nothing.
    """
    name, _, key = metric.partition("/")
    found = []
    for line in lines:
        if line["split"] != f"eval/{name}":
            continue
        if key not in line:
            near = difflib.get_close_matches(key, line, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"select.metric = {metric}: the evaluation has no such value{hint}")
        if isinstance(line[key], str):
            raise UserError(f"select.metric = {metric}: not a number")
        if line[key] is not None:
            found.append((line["step"], line[key]))
    return found


def choose(values: Sequence[tuple[int, float]], metric: str, mode: str) -> dict[str, Any] | None:
    """The body of `best.json`, or None when no value is defined. Among equals the earliest step wins."""
    if not values:
        return None
    sign = 1 if mode == "max" else -1
    ranked = sorted(values, key=lambda pair: (-sign * pair[1], pair[0]))
    (step, value), rest = ranked[0], ranked[1:]
    return {
        "step": step,
        "metric": metric,
        "value": value,
        "interval": None,
        "runner_up": {"step": rest[0][0], "value": rest[0][1]} if rest else None,
        "why": _why(ranked, metric, "highest" if mode == "max" else "lowest"),
    }


def _why(ranked: Sequence[tuple[int, float]], metric: str, word: str) -> str:
    (step, value), rest = ranked[0], ranked[1:]
    if not rest:
        return f"step {step} has the only {metric} ({value:.4f})"
    why = f"step {step} has the {word} {metric} ({value:.4f}) of {len(ranked)} evaluations; "
    if rest[0][1] == value:
        return why + f"step {rest[0][0]} equals it, and the earlier is taken"
    return why + f"the runner-up is step {rest[0][0]} ({rest[0][1]:.4f})"
