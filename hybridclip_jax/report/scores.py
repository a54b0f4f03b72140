"""What an evaluation measured: a table a kind of value, published results beside them, notes and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hybridclip_jax.report import published
from hybridclip_jax.report.markup import Markup, element, join, pairs, table
from hybridclip_jax.report.published import Result
from hybridclip_jax.report.values import COUNTS, Value, by_kind, kind_title, read, rest_title
from hybridclip_jax.report.words import decimal, flatten, interval, plural, text

BARS = ("auroc", "probe_auroc")  # kinds that are drawn as a bar from 0 to 1 with chance in the middle
# Of a description, what the page says elsewhere or in words of its own.
_SAID = {
    "protocol",
    "data",
    "unit",
    "units",
    "images",
    "patients",
    "synthetic",
    "notes",
    "labels",
    "prompts",
    "compat",
    "meanings",
}


def scores(line: Mapping[str, Any], info: Mapping[str, Any], *, unverified: bool = False) -> Markup:
    """The values of one evaluation with what its description says of them.

    `line` holds values by public name; `info` is Evaluator.describe(), or empty where it was not written.
    """
    results, sentence = published.beside(info, unverified=unverified) if info else ([], "")
    values = [value for value in read(line) if value.rest != COUNTS]
    averaged = line.get(f"auroc/{COUNTS}")
    kinds = by_kind(values)
    plain = [value for rows in kinds.values() if not _judged(rows) for value in rows]
    return join(
        [
            notes(info.get("notes") or []),
            [_table(kind, rows, info, averaged) for kind, rows in kinds.items() if _judged(rows)],
            pairs([(value.name, decimal(value.value)) for value in plain]) if plain else None,
            [element("p", f"{kind_title(value.kind)}: {said}", class_="note") for value, said in _plainly(plain, info)],
            _intervals(values, info),
            _compat(info.get("compat")),
            _beside(values, results),
            element("p", f"Published results: {sentence}", class_="note") if sentence else None,
            prompts(info.get("prompts")),
            _rest(info),
        ]
    )


def _judged(rows: Sequence[Value]) -> bool:
    """Whether any of them has something beside it; counts and the like have not."""
    return any(row.low is not None or row.why or row.chance is not None for row in rows)


def measured(info: Mapping[str, Any]) -> str:
    """What was measured on what, as one sentence."""
    said = f"Protocol {info['protocol']} on {info['data']}"
    units, images, patients = info.get("units"), info.get("images"), info.get("patients")
    if units is None:
        return said + "."
    said += f": {plural(units, info.get('unit') or 'unit')}"
    if images is not None and info.get("unit") != "image":
        said += f" ({plural(images, 'image')})"
    return said + (f" of {plural(patients, 'patient')}." if patients is not None else ".")


def notes(said: Sequence[str]) -> Markup | None:
    return element("ul", [element("li", sentence) for sentence in said], class_="notes") if said else None


def _table(kind: str, rows: Sequence[Value], info: Mapping[str, Any], averaged: int | None) -> Markup:
    """A row a value. `info` is a description, `averaged` is how many labels a mean is over."""
    columns = _columns(kind, rows, info.get("labels") or {})
    head = element("tr", element("th", ""), [element("th", title, class_=class_) for title, class_, _ in columns])
    body = []
    for row in rows:
        cells = [element("td", cell(row), class_=class_) for _, class_, cell in columns]
        name = element("th", rest_title(row, averaged), scope="row")
        body.append(element("tr", name, cells, class_="total" if row.summary else None))
    chances = {row.chance for row in rows}
    chance = chances.pop() if len(chances) == 1 else None
    said = [] if chance is None else [f"Chance: {chance:.3g}."]
    said += filter(None, (_meaning(kind, info), _thresholds(kind, info)))
    note = element("p", " ".join(said), class_="note") if said else None
    return element("section", element("h4", kind_title(kind)), table(head, body), note)


def _meaning(kind: str, info: Mapping[str, Any]) -> str:
    """What the protocol says that values of this kind are; empty where it says nothing."""
    meanings = info.get("meanings") or {}
    said = meanings.get(kind) or meanings.get(kind.partition("@")[0]) or ""
    return f"{said[:1].upper()}{said[1:].rstrip('.')}." if said else ""


def _plainly(values: Sequence[Value], info: Mapping[str, Any]) -> list[tuple[Value, str]]:
    """The first value of each kind that has a meaning, and that."""
    first = {value.kind: value for value in reversed(values)}
    return [(value, said) for value in values if value is first[value.kind] and (said := _meaning(value.kind, info))]


def _thresholds(kind: str, info: Mapping[str, Any]) -> str:
    chosen_on = info.get("validation")
    if kind not in ("f1", "mcc") or not isinstance(chosen_on, dict):
        return ""
    return f"The threshold of each label is the one with the largest MCC on {text(chosen_on.get('data'))}."


def _columns(
    kind: str, rows: Sequence[Value], labels: Mapping[str, Any]
) -> list[tuple[str, str, Callable[[Value], object]]]:
    """Title, class and cell of every column that has something to show in one of the rows."""
    columns: list[tuple[str, str, Callable[[Value], object]]] = [("value", "n", lambda row: decimal(row.value))]
    if any(row.point is not None for row in rows):
        columns.append(("of the set itself", "n", lambda row: decimal(row.point)))
    if kind.partition("@")[0] in BARS:
        columns.append(("0 to 1", "bars", lambda row: None if row.value is None else bar(row.value)))
    if any(row.low is not None or row.why for row in rows):
        columns.append(("95 % interval", "why", _interval_or_why))
    if len({row.chance for row in rows}) > 1:
        columns.append(("chance", "n", lambda row: "" if row.chance is None else f"{row.chance:.3g}"))
    if any(row.ceiling is not None for row in rows):
        columns.append(("at best", "n", lambda row: "" if row.ceiling is None else f"{row.ceiling:.3g}"))
    if any(row.resamples is not None for row in rows):
        columns.append(("resamples", "n", lambda row: "" if row.resamples is None else f"{row.resamples:,}"))
    if any(row.rest in labels for row in rows):
        columns.append(("positive", "n", lambda row: _positives(labels.get(row.rest))))
    return columns


def _interval_or_why(row: Value) -> str:
    return "; ".join(filter(None, (interval(row.low, row.high), row.why)))


def _positives(counts: Mapping[str, Any] | None) -> str:
    if counts is None:
        return ""
    return f"{counts['positives']:,} of {counts['positives'] + counts['negatives']:,}"


def _intervals(values: Sequence[Value], info: Mapping[str, Any]) -> Markup | None:
    if info.get("compat") or not any(value.low is not None for value in values):
        return None
    said = "Intervals: 95 %, percentile bootstrap over patients; resamples: in how many of them a value is defined."
    return element("p", said, class_="note")


def _compat(quirks: Any) -> Markup | None:
    """Of a protocol that repeats another program's: where it departs from what this program would do."""
    if not isinstance(quirks, list):
        return None
    title = element("p", "This protocol keeps the ways of the program that it repeats:")
    return join([title, notes([text(quirk) for quirk in quirks])])


def _beside(values: Sequence[Value], results: Sequence[Result]) -> Markup | None:
    """This evaluation's values in a row above those that were published of the same set and labels."""
    named = {result.name for result in results}
    shown = [value for value in values if value.name in named]
    if not shown:
        return None
    titles = [f"{kind_title(value.kind)}, {rest_title(value, None)}" for value in shown]
    head = element("tr", element("th", ""), [element("th", one, class_="n") for one in titles])
    own = [_beside_cell(value.value, value.low, value.high) for value in shown]
    rows = [element("tr", element("th", "this evaluation", scope="row"), own, class_="total")]
    sources = []
    for model in dict.fromkeys(result.model for result in results):
        found = {result.name: result for result in results if result.model == model}
        cells = []
        for value in shown:
            one = found.get(value.name)
            cells.append(_beside_cell(one.value, *(one.interval or (None, None))) if one else element("td", ""))
        first = next(iter(found.values()))
        rows.append(element("tr", element("th", model, element("div", first.mark, class_="note"), scope="row"), cells))
        sources.append(f"{model} ({first.mark}): {'; '.join(filter(None, (first.source, first.note)))}")
    title = element("h4", "Published results on the same set and labels")
    return element("section", title, table(head, rows), notes(sources))


def _beside_cell(value: float | None, low: float | None, high: float | None) -> Markup:
    ends = interval(low, high)
    return element("td", decimal(value), element("div", ends, class_="note") if ends else None, class_="n")


def bar(value: float) -> Markup:
    """A share as a bar from 0 to 1 with a tick at a half."""
    return element(
        "svg",
        element("rect", x=0, y=2, width=130, height=6),
        element("rect", x=0, y=2, width=round(130 * min(max(value, 0.0), 1.0), 1), height=6, class_="fill"),
        element("line", x1=65, x2=65, y1=0, y2=10),
        viewBox="0 0 130 10",
        class_="bar",
        aria_hidden="true",
    )


def prompts(said: Any) -> Markup | None:
    """Every sentence that a model was given, in full: one prompt file as `describe` gives it, or several in a list."""
    if isinstance(said, list):
        return join([prompts(one) for one in said])
    if not isinstance(said, dict):
        return None
    if not isinstance(said.get("labels"), dict):
        return join([prompts(one) for one in said.values()])
    rows = []
    for label, sides in said["labels"].items():
        sides = sides if isinstance(sides, dict) else {"": sides}
        rows += [_prompt_row(label, side, sentences) for side, sentences in sides.items() if sentences]
    title = f"Prompts: {said.get('name', '')} version {said.get('version', '')}"
    mark = str(said.get("sha256") or "")[:12]
    note = element("p", f"sha256 of the file: {mark}...", class_="note") if mark else None
    return element("details", element("summary", title), table(None, rows), note)


def _prompt_row(label: str, side: str, sentences: Any) -> Markup:
    lines = sentences if isinstance(sentences, list) else [sentences]
    shown = [element("div", text(line)) for line in lines]
    return element("tr", element("th", label, scope="row"), element("td", side), element("td", shown, class_="long"))


def _rest(info: Mapping[str, Any]) -> Markup | None:
    """Whatever else the description holds, as it stands."""
    rest = {name: value for name, value in info.items() if name not in _SAID}
    rows = [(name, _short(value)) for name, value in flatten(rest)]
    if not rows:
        return None
    return element("details", element("summary", "How it was measured"), pairs(rows))


def _short(value: Any) -> str:
    shown = text(value)
    return shown if len(shown) <= 400 else f"{shown[:400]}... (whole in the JSON file)"
