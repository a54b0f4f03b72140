"""Published results that may stand beside an evaluation: those of the same set and labels, and no others.

The rules are in published.json. An evaluation is of a set where its store has that set's namespace and format, and its
split, text and number of units where the set names one; no phantom is of any. Its labels must hold those of the result;
for `auroc/mean` they must be the same. A result marked `unverified` has not been read in its source.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.report.words import plural

FILE = Path(__file__).with_name("published.json")


@dataclasses.dataclass(frozen=True)
class Result:
    """One published number: `name` is that of the value that it stands beside."""

    name: str
    model: str
    value: float
    interval: tuple[float, float] | None
    source: str
    mark: str
    note: str


@functools.cache
def table() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def beside(info: Mapping[str, Any], *, unverified: bool) -> tuple[list[Result], str]:
    """The results that may stand beside the evaluation that `info` describes, and a sentence on what may not.

    Without `unverified` only verified ones. The sentence is empty where nothing is held back.
    """
    known = [(row, result) for row in table()["results"] if _same(row, info) for result in _results(row, info)]
    if not known:
        return [], _none(info)
    shown = [result for row, result in known if unverified or row["mark"] == "verified"]
    held = len(known) - len(shown)
    if not held:
        return shown, ""
    said = f"{plural(held, 'published value')} on this set {'is' if held == 1 else 'are'} known but not checked in "
    return shown, said + "the source, and not shown; --unverified shows them."


def key(label: str) -> str:
    """The form in which names of labels are compared."""
    return " ".join(label.replace("_", " ").lower().split())


def _same(row: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    wanted = dict(table()["sets"][row["set"]])
    del wanted["name"]
    is_of = {**(info.get("set") or {}), "units": info.get("units")}
    same_set = all(is_of.get(field) == value for field, value in wanted.items())
    return same_set and info.get("protocol") in row["protocols"] and not info.get("synthetic")


def _results(row: Mapping[str, Any], info: Mapping[str, Any]) -> list[Result]:
    wanted = set(map(key, row["labels"]))
    measured = {key(label): label for label in info.get("labels") or {}}
    found = []
    for name, value in row["values"].items():
        kind, _, rest = name.partition("/")
        if not wanted <= measured.keys() or (rest == "mean" and wanted != measured.keys()):
            continue
        ends = (row.get("intervals") or {}).get(name)
        found.append(
            Result(
                f"{kind}/{measured.get(key(rest), rest)}",
                row["model"],
                value,
                (ends[0], ends[1]) if ends else None,
                row["source"],
                row["mark"],
                row.get("note", ""),
            )
        )
    return found


def _none(info: Mapping[str, Any]) -> str:
    if info.get("synthetic"):
        return "No published result stands beside drawn phantoms."
    sets: Sequence[Mapping[str, Any]] = list(table()["sets"].values())
    names = "; ".join(f"{one['name']} ({one['units']:,})" for one in sets)
    return f"No published result of this protocol on the same units and labels is known here; known are: {names}."
