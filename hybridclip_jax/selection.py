"""Which step is the run's model, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def history(lines: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """(step, value) of `<eval>/<name>` from the lines of metrics.jsonl; undefined values are left out."""
    name, _, key = metric.partition("/")
    found = [(line["step"], line.get(key)) for line in lines if line["split"] == f"eval/{name}"]
    return [(step, value) for step, value in found if value is not None]


def choose(values: Sequence[tuple[int, float]], metric: str, mode: str) -> dict[str, Any] | None:
    """The body of `best.json`, or None when no value is defined. Among equals the earliest step wins."""
    if not values:
        return None
    sign = 1 if mode == "max" else -1
    ranked = sorted(values, key=lambda pair: (-sign * pair[1], pair[0]))
    (step, value), rest = ranked[0], ranked[1:]
    word = "highest" if mode == "max" else "lowest"
    why = f"step {step} has the {word} {metric} ({value:.4f}) of {len(values)} evaluations"
    if rest:
        why += f"; the runner-up is step {rest[0][0]} ({rest[0][1]:.4f})"
    return {
        "step": step,
        "metric": metric,
        "value": value,
        "interval": None,
        "runner_up": {"step": rest[0][0], "value": rest[0][1]} if rest else None,
        "why": why,
    }
