"""The page of an audit, and its two tables for the page of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hybridclip_jax.report.charts import bar_chart
from hybridclip_jax.report.document import SYNTHETIC, document
from hybridclip_jax.report.markup import Markup, element, join, pairs, table
from hybridclip_jax.report.words import count

NOT_COMPARABLE = "not comparable"
_NAMED_ROWS = 20


@dataclasses.dataclass(frozen=True)
class Plate:
    """Pictures that stand side by side, as data: URLs, and what to say of them."""

    urls: Sequence[str]
    caption: str


def audit_page(audit: Mapping[str, Any], plates: Mapping[str, Sequence[Plate]]) -> str:
    """One self-contained HTML page. `plates` holds pictures by the heading they stand under."""
    splits = audit["splits"]
    records = sum(split["records"] for split in splits)
    said = f"{len(splits)} split{'s' * (len(splits) != 1)}, {records:,} images"
    body = element(
        "main",
        element("header", element("h1", "Audit of stores"), element("p", said, class_="quiet")),
        _banners(audit),
        element("section", element("h2", "Each split"), splits_table(audit)),
        element("section", element("h2", "In more than one split"), pairs_table(audit)) if audit["pairs"] else None,
        element("section", element("h2", "Near copies"), _near(audit)),
        [_plates(title, shown) for title, shown in plates.items() if shown],
        [_split_section(split) for split in splits],
    )
    return document("hybridclip audit", body, pictures=True)


def _banners(audit: Mapping[str, Any]) -> Markup:
    said = [element("p", f"{text}.", class_="banner bad") for text in audit["problems"]]
    if any(split["synthetic"] for split in audit["splits"]):
        text = f"{SYNTHETIC}. They are alike: near copies among them are expected."
        said.append(element("p", element("strong", text), class_="banner"))
    return join(said)


def splits_table(audit: Mapping[str, Any]) -> Markup:
    """One row a split: how much, what is there twice, and how long the texts are."""
    contexts = list(audit["splits"][0]["tokens"]["beyond"]) if audit["splits"] else []
    titles = ["images", "studies", "patients", "copies", "constant", "near copies", "no text", "repeated text"]
    titles += ["tokens, median", *(f"beyond {context}" for context in contexts)]
    head = element("tr", element("th", "split"), *(element("th", title, class_="n") for title in titles))
    rows = []
    for split in audit["splits"]:
        images, texts, tokens, records = split["images"], split["texts"], split["tokens"], split["records"]
        cells = [
            count(records),
            count(split["studies"]),
            count(split["patients"]) if split["patients_known"] else "not known",
            count(sum(len(group) - 1 for group in images["duplicates"])),
            count(len(images["constant"])),
            _near_count(split["near_copies"]),
            count(texts["without"]),
            count(texts["studies_with_a_repeated_text"]),
            f"{tokens['median']:,.0f}",
            *(share(beyond, records) for beyond in tokens["beyond"].values()),
        ]
        name = element("th", split["name"], scope="row")
        rows.append(element("tr", name, *(element("td", cell, class_="n") for cell in cells)))
    note = "Copies: images equal to another in every pixel. Repeated text: studies that share their text with another."
    return join([table(head, rows), element("p", note, class_="note")])


def pairs_table(audit: Mapping[str, Any]) -> Markup:
    """One row for each two splits: what is in both. What cannot be compared says so and is never 0."""
    if not audit["pairs"]:
        return Markup("")
    titles = ("patients", "studies", "images", "near copies", "texts")
    head = element("tr", element("th", "in both"), *(element("th", title, class_="n") for title in titles))
    rows: list[Markup] = []
    whys: dict[str, list[str]] = {}
    for pair in audit["pairs"]:
        cells = [_or_not(pair[key]) for key in ("patients", "studies", "images")]
        cells += [_near_count(pair["near_copies"]), count(pair["texts"])]
        name = element("th", f"{pair['a']} and {pair['b']}", scope="row")
        rows.append(element("tr", name, *(element("td", cell, class_="n") for cell in cells)))
        for why in (pair["ids_why"], pair["images_why"]):
            if why:
                whys.setdefault(why, []).append(f"{pair['a']} and {pair['b']}")
    notes = [element("p", f"{why}: {'; '.join(names)}.", class_="note") for why, names in whys.items()]
    note = "Different ones of each; texts with white space and case folded."
    return join([table(head, rows), element("p", note, class_="note"), *notes])


def _or_not(value: int | None) -> str:
    return NOT_COMPARABLE if value is None else count(value)


def _near_count(found: Sequence[object] | None) -> str:
    return "not looked for" if found is None else count(len(found))


def share(part: int, whole: int) -> str:
    """A share in per cent that is 0 or 100 only where it is so."""
    if not whole or part in (0, whole):
        return "100%" if part else "0%"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f}%"


def near_copies(audit: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The names of both splits and the pair, of every near copy that was found; none where none was looked for."""
    within = [(split["name"], split["name"], copy) for split in audit["splits"] for copy in split["near_copies"] or ()]
    between = [(pair["a"], pair["b"], copy) for pair in audit["pairs"] for copy in pair["near_copies"] or ()]
    return within + between


def _near(audit: Mapping[str, Any]) -> Markup:
    facts = audit["near_copies"]
    if not facts["looked_for"]:
        return element("p", "They were not looked for.")
    said = (
        f"Pairs whose details correlate at {facts['confirmed_from']} or more once one image is laid over the other: "
        f"new encodings, crops that keep {facts['kept_by_crops']:.0%} of each side, small shifts, other brightness. "
        f"A list to look at, not a verdict. Not looked for: {', '.join(facts['not_looked_for'])} copies."
    )
    found = near_copies(audit)
    if not found:
        return join([element("p", said), element("p", "None was found.")])
    head = element("tr", *(element("th", title) for title in ("image", "is a near copy of", "correlation")))
    rows = [
        element(
            "tr",
            element("td", f"{a}, row {copy['a']['source_row']:,}"),
            element("td", f"{b}, row {copy['b']['source_row']:,}"),
            element("td", f"{copy['correlation']:.3f}", class_="n"),
        )
        for a, b, copy in found
    ]
    folded = element("details", element("summary", f"all {len(rows):,} pairs, by source row"), table(head, rows))
    return join([element("p", said), folded])


def _plates(title: str, plates: Sequence[Plate]) -> Markup:
    shown = [
        element("figure", [element("img", src=url, alt="") for url in plate.urls], element("figcaption", plate.caption))
        for plate in plates
    ]
    return element("section", element("h2", title), element("div", shown, class_="thumbs"))


def _split_section(split: Mapping[str, Any]) -> Markup:
    records, histogram = split["records"], split["tokens"]["histogram"]
    chart = bar_chart(
        histogram["left_edges"], histogram["counts"], title=f"Tokens a text, {split['name']}", x_label="tokens"
    )
    caption = f"Tokens a text, start and end counted; the longest has {split['tokens']['longest']:,}."
    figure = element("figure", element("h3", "Text length"), chart, element("figcaption", caption))
    parts = [figure]
    if split["labels"]["counts"]:
        parts.append(_labels(split["labels"]))
    for title, counts in (("Sections", split["sections"]), ("Views", split["views"]), ("Licences", split["licences"])):
        if counts:
            rows = [(name, f"{n:,} ({share(n, records)})") for name, n in counts.items()]
            parts.append(element("section", element("h3", title), pairs(rows)))
    parts.append(_faults(split))
    return element("section", element("h2", split["name"]), element("div", parts, class_="beside"))


def _labels(labels: Mapping[str, Any]) -> Markup:
    titles = ("positive", "negative", "unknown")
    head = element("tr", element("th", "label"), *(element("th", title, class_="n") for title in titles))
    rows = [
        element("tr", element("th", name, scope="row"), *(element("td", count(n[key]), class_="n") for key in titles))
        for name, n in labels["counts"].items()
    ]
    note = f"uncertain: {labels['uncertain']}; blank: {labels['blank']}"
    return element("section", element("h3", "Labels"), table(head, rows), element("p", note, class_="note"))


def _faults(split: Mapping[str, Any]) -> Markup:
    images, texts = split["images"], split["texts"]
    rows = [
        ("constant images", _rows(images["constant"])),
        ("of them all zero", count(images["all_zero"])),
        ("no contrast in the middle", _rows(images["blank_middle"], "not looked for")),
        ("images equal to another", _rows([where for group in images["duplicates"] for where in group])),
        ("most repeated texts", ", ".join(f"{n:,} studies" for n in texts["most_repeated"]) or "none"),
        ("damaged records", _rows(split["damaged"], "not looked for (--deep)")),
    ]
    return element("section", element("h3", "To look at"), pairs(rows))


def _rows(found: Sequence[Mapping[str, int]] | None, unknown: str = "") -> str:
    if found is None:
        return unknown
    shown = ", ".join(f"{where['source_row']}" for where in found[:_NAMED_ROWS])
    more = ", ..." if len(found) > _NAMED_ROWS else ""
    return f"{len(found):,}" + (f" (rows {shown}{more})" if found else "")
