"""The page of one evaluation: what `evaluate` found, of which models, on whom, and how far it may be trusted."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.errors import UserError
from hybridclip_jax.logs import duration
from hybridclip_jax.report import shapes
from hybridclip_jax.report.charts import roc_chart
from hybridclip_jax.report.document import SYNTHETIC, document
from hybridclip_jax.report.markup import Markup, element, join, pairs, table
from hybridclip_jax.report.scores import measured, scores
from hybridclip_jax.report.values import Value, headline, kind_title, read, rest_title
from hybridclip_jax.report.words import decimal, flatten, interval, moment, number, p_value, plural, signed, text
from hybridclip_jax.rundir import write_whole

MOST_CURVES = 40


def render(out: Path, unverified: bool = False) -> Path:
    """Writes `out/report.html` from metrics.json and, where there is one, examples.json; returns its path.

    The page loads nothing and runs no script. Published results that were not checked in their source are in it only
    with `unverified`. Raises UserError where the folder holds no evaluation, or a file that `evaluate` does not write
    so, StorageError when the disk refuses.
    """
    out = Path(out)
    found = shapes.read(out / "metrics.json")
    if not found:
        raise UserError(f"{out}: no evaluation's folder (no metrics.json); give the --out of an evaluation")
    path = out / "report.html"
    name = out.resolve().name
    write_whole(path, page(name, found, shapes.read(out / "examples.json"), unverified=unverified))
    return path


def page(name: str, found: Mapping[str, Any], examples: Mapping[str, Any], *, unverified: bool = False) -> str:
    """The page. `found` is metrics.json, `examples` examples.json or empty."""
    info = found["evaluation"]
    body = element(
        "main",
        element("header", element("h1", name), element("p", measured(info), class_="quiet")),
        _banners(found),
        _tiles(found),
        _models(found),
        _checks(found),
        element("section", element("h2", "Values"), scores(found["values"], info, unverified=unverified)),
        _against(found),
        _curves(found),
        _examples(examples),
        _machine(found),
        _reproduce(found),
    )
    return document(f"{name}: hybridclip evaluation", body, pictures=bool(examples))


def _banners(found: Mapping[str, Any]) -> Markup:
    said: list[object] = list(found.get("warnings") or [])
    if what := synthetic(found):
        said.insert(0, element("strong", f"{what}. No number here says anything about people."))
    return join([element("p", one, class_="banner") for one in said])


def synthetic(found: Mapping[str, Any]) -> str:
    """What of an evaluation is drawn and not of patients, in a sentence without its end; empty where nothing is."""
    models = [*found["models"], *((found.get("against") or {}).get("models") or ())]
    drawn = [model for model in models if model.get("synthetic")]
    if found["evaluation"].get("synthetic") or (found.get("synthetic") and not drawn):
        return SYNTHETIC
    if not drawn:
        return ""
    which = "The model was" if len(models) == 1 else f"{len(drawn)} of the {len(models)} models were"
    return f"Synthetic model: {which[0].lower()}{which[1:]} made with drawn phantoms, not patients"


def _tiles(found: Mapping[str, Any]) -> Markup:
    values, info = read(found["values"]), found["evaluation"]
    labels = number(found["values"].get("auroc/n_labels"))
    tiles = []
    for value in headline(values)[:4]:
        ends = interval(value.low, value.high)
        what = f"{kind_title(value.kind)}, {rest_title(value, None if labels is None else int(labels))}"
        tiles.append((decimal(value.value), f"{what}{f', {ends}' if ends else ''}"))
    if len(found["models"]) > 1:
        tiles.append((f"{len(found['models'])}", "models, their mean"))
    for key, what in (("units", info.get("unit") or "unit"), ("patients", "patient")):
        if (n := info.get(key)) is not None:
            said = plural(n, what).split(" ", 1)
            tiles.append((said[0], said[1]))
    return element("div", [element("div", element("b", b), element("span", s)) for b, s in tiles], class_="tiles")


def _models(found: Mapping[str, Any]) -> Markup:
    models, each = found["models"], found.get("each") or []
    said = "The values are of the mean of these models' scores." if len(models) > 1 else None
    chosen = found.get("chosen")
    parts = [element("p", said) if said else None, _models_table(models, each)]
    parts.append(element("p", f"Chosen: {chosen}.", class_="note") if chosen else None)
    return element("section", element("h2", "Models" if len(models) > 1 else "The model"), parts)


def _models_table(models: Sequence[Mapping[str, Any]], each: Sequence[Mapping[str, Any]] = ()) -> Markup:
    titles = [value.name for value in headline(read(each[0]))[:3]] if each else []
    head = [element("th", title) for title in ("model", "step", "fingerprint")]
    head += [element("th", f"{title} alone", class_="n") for title in titles]
    rows = []
    for i, model in enumerate(models):
        step = model.get("step")
        cells = [
            element("td", model["folder"], class_="long"),
            element("td", "" if step is None else f"{step:,}"),
            element("td", f"{(model.get('fingerprint') or 'not recorded')[:12]}"),
        ]
        alone = each[i] if i < len(each) else {}
        cells += [element("td", decimal(number(alone.get(title))), class_="n") for title in titles]
        rows.append(element("tr", cells))
    return table(element("tr", head), rows)


def _checks(found: Mapping[str, Any]) -> Markup:
    rows = [(name.replace("_", " "), text(said)) for name, said in (found.get("checks") or {}).items()]
    before = found.get("used_before") or []
    used = "never before, as far as the runs' folders know"
    if before:
        counted = collections.Counter(one.get("protocol") or "another protocol" for one in before)
        said = ", ".join(f"{protocol} {times}" for protocol, times in counted.items())
        used = f"{plural(len(before), 'time')} before ({said}), last {moment(before[-1]['when'])}"
    parts = [pairs([*rows, ("this store with these runs", used)])]
    if before:
        said = "A choice made after a look at a test set is not tested by it."
        parts.append(element("p", said, class_="note"))
    return element("section", element("h2", "Checks"), parts)


def _against(found: Mapping[str, Any]) -> Markup | None:
    against = found.get("against")
    if not against:
        return None
    ours = {value.name: value for value in read(found["values"])}
    theirs = {value.name: value for value in read(against["values"])}
    tested = any(one.get("p") is not None for one in against["differences"].values())
    titles = [("", None), ("difference", "n"), ("95 % interval", None)] + [("p", "n")] * tested
    titles += [("this", "n"), ("the other", "n"), ("method", None)]
    head = element("tr", [element("th", title, class_=class_) for title, class_ in titles])
    rows = []
    for name, one in against["differences"].items():
        cells = [
            element("th", name, scope="row"),
            element("td", signed(one.get("value")), class_="n"),
            element("td", _difference(one), class_="why"),
            element("td", p_value(one.get("p")), class_="n") if tested else None,
            *(element("td", _of(side.get(name)), class_="n") for side in (ours, theirs)),
            element("td", one.get("method") or ""),
        ]
        rows.append(element("tr", cells))
    judged = "Intervals and two-sided p are" if tested else "Intervals are"
    note = "Difference: this side minus the other, on the same units. "
    note += f"{judged} not corrected for the {len(rows)} comparisons in this table."
    title = element("h2", "Against")
    return element(
        "section", title, _models_table(against["models"]), table(head, rows), element("p", note, class_="note")
    )


def _of(value: Value | None) -> str:
    return decimal(value.value if value else None)


def _difference(one: Mapping[str, Any]) -> str:
    if one.get("low") is None or one.get("high") is None:
        return text(one["why"]) if one.get("why") else "no interval"
    return interval(one["low"], one["high"], signed)


def _curves(found: Mapping[str, Any]) -> Markup | None:
    curves = list((found.get("curves") or {}).items())
    if not curves:
        return None
    values = {value.name: value for value in read(found["values"])}
    figures = []
    for label, curve in curves[:MOST_CURVES]:
        value = values.get(f"auroc/{label}")
        said = f"AUROC {decimal(value.value if value.point is None else value.point)}" if value else ""
        if curve.get("positives") is not None and curve.get("negatives") is not None:
            said += f"; {curve['positives']:,} positive, {curve['negatives']:,} negative"
        chart = roc_chart(curve["false_positive_rate"], curve["true_positive_rate"], title=f"ROC curve, {label}")
        figures.append(element("figure", element("h3", label), chart, element("figcaption", said)))
    more = len(curves) - MOST_CURVES
    note = element("p", f"{more} more are in metrics.json.", class_="note") if more > 0 else None
    title = element("h2", "ROC curves")
    said = "Across: share of the negatives called positive. Up: share of the positives found. Dashed: chance."
    small = element("div", figures, class_="small")
    return element("section", title, element("p", said, class_="quiet"), small, note)


def _examples(examples: Mapping[str, Any]) -> Markup | None:
    if not examples:
        return None
    parts = [element("p", examples["about"], class_="quiet")] if examples.get("about") else []
    for label, found in examples["labels"].items():
        rows = []
        for kind, title in (("hits", "Most confident hits"), ("misses", "Most confident misses")):
            if found[kind]:
                shown = element("div", [_example(one) for one in found[kind]], class_="thumbs")
                rows.append(element("section", element("h4", title), shown))
        parts.append(element("section", element("h3", label), element("div", rows, class_="beside")))
    return element("section", element("h2", "Examples"), parts)


def _example(one: Mapping[str, Any]) -> Markup:
    truth = "positive" if one["truth"] else "negative"
    said = f"{truth}, score {one['score']:.3f}, row {one['source_row']:,}"
    picture = element("img", src=one["url"], alt="", width=128, height=128)
    return element("figure", picture, element("figcaption", said), class_="one")


def _machine(found: Mapping[str, Any]) -> Markup:
    rows = [(name, text(value)) for name, value in flatten(found.get("machine") or {})]
    rows += [(name, text(value)) for name, value in (found.get("versions") or {}).items()]
    if found.get("eval_s") is not None:
        rows.append(("time", duration(found["eval_s"])))
    return element("section", element("h2", "Machine and versions"), pairs(rows or [("machine", "not recorded")]))


def _reproduce(found: Mapping[str, Any]) -> Markup:
    command = element("pre", found.get("command") or "The command was not recorded.")
    said = "Values are in metrics.json, the score of each unit in predictions.parquet, both beside this page."
    return element("section", element("h2", "To reproduce"), command, element("p", said, class_="note"))
