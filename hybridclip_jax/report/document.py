"""The frame of every page: one self-contained HTML file that loads nothing and runs no script."""

from __future__ import annotations

import base64
import hashlib

from hybridclip_jax.report.markup import Markup, element
from hybridclip_jax.report.style import CSS

SYNTHETIC = "Synthetic data: drawn phantoms, not patients"  # how every page says so; each ends the sentence


def document(title: str, body: Markup, *, pictures: bool = False) -> str:
    """The page. With `pictures`, images may stand in it as data: URLs; nothing else can be shown or loaded."""
    style_hash = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
    if pictures:
        policy += "; img-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(CSS)),
    )
    page = f"<!doctype html>\n{element('html', head, element('body', body), lang='en')}\n"
    return page.encode(errors="backslashreplace").decode()  # a folder's name may be no UTF-8
