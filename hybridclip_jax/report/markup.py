"""HTML and SVG built so that text is escaped unless it came from here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

VOID = {"meta", "br", "wbr", "img", "line", "path", "circle", "rect"}


class Markup(str):
    """Text that is already HTML. Every other string is escaped where it enters an element."""


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name attributes>children</name>`: children and attribute values escaped, Markup passed through.

    An attribute's trailing underscore is dropped (`class_`), other underscores become hyphens; None leaves
    the attribute out. A list or tuple child stands for its items, None for nothing.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{shown}>" if name in ("meta", "br", "wbr") else f"<{name}{shown}/>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """The children one after another, escaped as `element` does."""
    return Markup("".join(_child(child) for child in children))


def _child(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, (list, tuple)):
        return join(child)
    return html.escape(str(child))


def breakable(name: str) -> Markup:
    """A name such as val/auroc/mean, which may be broken behind each slash."""
    first, *more = name.split("/")
    return join([first, *(join(["/", element("wbr"), part]) for part in more)])


def pairs(rows: Sequence[tuple[str, str]]) -> Markup:
    """A table of names and what stands for each."""
    return table(
        None,
        [element("tr", element("th", name, scope="row"), element("td", v, class_="long")) for name, v in rows],
    )


def table(head: Markup | None, rows: Sequence[Markup]) -> Markup:
    """A table that scrolls by itself where it is wider than the page."""
    return element(
        "div",
        element("table", element("thead", head) if head else None, element("tbody", rows)),
        class_="wide",
    )
