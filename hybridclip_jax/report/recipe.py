"""The recipe's settings beside what published work does, and whether a run kept to them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.report.markup import Markup, element, table
from hybridclip_jax.report.words import flatten, plural, text

FILE = Path(__file__).with_name("recipe.json")


@functools.cache
def recipe() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def recipe_section(config: Mapping[str, Any]) -> Markup:
    """What the recipe asks for, what this run was given, and who else does what."""
    settings, ran = recipe()["settings"], dict(flatten(config))
    rows = [_row(setting, [ran.get(field) for field in setting["fields"]]) for setting in settings]
    differ = sum(bool(_differs(setting, ran)) for setting in settings)
    said = f"{plural(len(settings), 'setting')} of the recipe; this run differs in {differ or 'none'}. "
    said += "Sources marked unverified are recalled or inferred; the others were read in the named repository."
    head = element("tr", [element("th", title) for title in ("setting", "recipe", "this run", "elsewhere")])
    title = element("h2", "What was asked for and what was run")
    return element("section", title, element("p", said, class_="quiet"), table(head, rows))


def _differs(setting: Mapping[str, Any], ran: Mapping[str, Any]) -> list[str]:
    pairs = zip(setting["fields"], setting["recipe"], strict=True)
    return [field for field, asked in pairs if field in ran and ran[field] != asked]


def _row(setting: Mapping[str, Any], ran: Sequence[Any]) -> Markup:
    asked = setting["recipe"]
    kept = [None if got is None else got == want for got, want in zip(ran, asked, strict=True)]
    if all(kept):
        here: Any = "as the recipe"
    elif None in kept:
        here = "not recorded"
    else:
        here = element("strong", _shown(ran))
    note = element("div", setting["note"], class_="note") if setting.get("note") else None
    cells = [
        element("th", [element("div", field) for field in setting["fields"]], scope="row"),
        element("td", _shown(asked), note, class_="long"),
        element("td", here, class_="long"),
        element("td", [_source(source) for source in setting["sources"]], class_="source"),
    ]
    return element("tr", cells)


def _source(source: Mapping[str, Any]) -> Markup:
    mark = "" if source["mark"] == "verified" else f" ({source['mark']})"
    where = element("span", f" {source['where']}", class_="note")
    return element("div", f"{source['who']}: {source['says']}{mark}.", where)


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(_one(value) for value in values)


def _one(value: Any) -> str:
    """Four figures of a number: the statistics of an image have eight."""
    if isinstance(value, list):
        return f"({', '.join(map(_one, value))})"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
