"""Line, bar and ROC charts as inline SVG: no script, no font, colours from the page's style sheet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from hybridclip_jax.report.frame import LEFT, TOP, Frame, ticks, whole_ticks
from hybridclip_jax.report.markup import Markup, element

MOST_POINTS = 300
MOST_DOTS = 60
RUN_COLOURS = 6  # of the style sheet; further runs have the same colours, dashed
ROC_SIDE = 240

Point = tuple[float, float | None]


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve: points (x, y) by rising x; y None breaks the curve. `style` is a class of the style sheet.

    band: (x, low, high) by rising x, an interval around the curve.
    """

    name: str
    points: Sequence[Point]
    style: str = "main"
    band: Sequence[tuple[float, float, float]] = ()


def run_style(place: int) -> str:
    """The class of the run at this place among those that are drawn together."""
    return f"run{place % RUN_COLOURS}" + (" dashed" if place // RUN_COLOURS % 2 else "")


def thin(points: Sequence[Point]) -> tuple[list[Point], int]:
    """At most MOST_POINTS points, each the mean of `k` neighbours, and that k. A group of None stays None."""
    k = max(math.ceil(len(points) / MOST_POINTS), 1)
    if k == 1:
        return list(points), 1
    groups = [points[i : i + k] for i in range(0, len(points), k)]
    thinned: list[Point] = []
    for group in groups:
        ys = [y for _, y in group if y is not None]
        thinned.append((sum(x for x, _ in group) / len(group), sum(ys) / len(ys) if ys else None))
    return thinned, k


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "step",
    reference: tuple[float, str] | None = None,
    mark: tuple[float, str] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    include: Sequence[float] = (),
    x_max: float = 1,
) -> Markup:
    """An SVG of the curves. `reference` is a labelled level (chance), `mark` a labelled step (the chosen).

    `limits` are the values y cannot pass (an AUROC's 0 and 1), `include` those that must be in view,
    `x_max` the step that x reaches at least. Without a finite point: a line that says so.
    """
    ys = [y for s in series for _, y in s.points if y is not None]
    if not ys:
        return element("p", f"{title}: no finite value was logged.", class_="note")
    xs = [x for s in series for x, _ in s.points] + ([mark[0]] if mark else [])
    x_high = max(*xs, x_max) or 1  # a run may have logged step 0 alone
    bands = [y for s in series for _, *ends in s.band for y in ends]
    frame = Frame((0, x_high), _y_range([*ys, *bands, *include, *([reference[0]] if reference else [])], limits))
    parts = [_band(s, frame) for s in series if s.band]
    if mark:
        at = frame.px(mark[0])
        parts.append(element("line", x1=at, x2=at, y1=TOP - 4, y2=frame.bottom, class_="mark"))
    parts += [_curve(s, frame) for s in series]
    if reference:
        parts += _reference(reference, mark, frame)
    if mark:
        anchor, dx = ("start", -3) if frame.px(mark[0]) < frame.width / 2 else ("end", 3)
        at = frame.px(mark[0]) + dx
        parts.append(element("text", mark[1], x=at, y=TOP - 9, text_anchor=anchor, class_="marked"))
    return frame.draw(title, parts, x_label=x_label, x_ticks=whole_ticks(*frame.x), y_ticks=ticks(*frame.y))


def key(series: Sequence[Series]) -> Markup:
    """The names of the curves, each behind a piece of its line."""
    items = []
    for one in series:
        piece = element("g", element("path", d="M0 5H26"), class_=f"curve {one.style}")
        items.append(element("li", element("svg", piece, viewBox="0 0 26 10", class_="piece"), one.name))
    return element("ul", items, class_="key")


def bar_chart(left_edges: Sequence[float], counts: Sequence[int], *, title: str, x_label: str) -> Markup:
    """An SVG histogram: bars of equal width from each left edge on; the last holds all from its edge on."""
    width = left_edges[1] - left_edges[0]
    frame = Frame((left_edges[0], left_edges[-1] + width), (0, max(*counts, 1)))
    parts: list[Markup] = []
    for i, (edge, count) in enumerate(zip(left_edges, counts, strict=True)):
        last = i == len(counts) - 1
        said = f"{edge:,.0f} and more: {count:,}" if last else f"{edge:,.0f} to {edge + width - 1:,.0f}: {count:,}"
        x, wide = frame.px(edge), max(frame.px(edge + width) - frame.px(edge) - 1, 0.5)
        where = f"M{x:g} {frame.bottom}v{frame.py(count) - frame.bottom:g}h{wide:g}V{frame.bottom}z"
        parts.append(element("g", element("title", said), element("path", d=where), class_="bars"))
    return frame.draw(title, parts, x_label=x_label, x_ticks=ticks(*frame.x, 6), y_ticks=whole_ticks(*frame.y))


def roc_chart(false_positive_rate: Sequence[float], true_positive_rate: Sequence[float], *, title: str) -> Markup:
    """A square SVG of one ROC curve over the diagonal of chance."""
    frame = Frame((0, 1), (0, 1), ROC_SIDE, ROC_SIDE)
    chance = element("line", x1=frame.px(0), x2=frame.px(1), y1=frame.py(0), y2=frame.py(1), class_="reference")
    corners = zip(false_positive_rate, true_positive_rate, strict=True)
    where = "L".join(f"{frame.px(x):g} {frame.py(y):g}" for x, y in corners)
    curve = element("g", element("path", d=f"M{where}"), class_="curve main")
    halves = (0.0, 0.5, 1.0)
    return frame.draw(title, [chance, curve], x_label="false positive rate", x_ticks=halves, y_ticks=halves)


def _y_range(values: Sequence[float], limits: tuple[float | None, float | None]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    if limits[0] is not None:
        low = max(low, limits[0])
    if limits[1] is not None:
        high = min(high, limits[1])
    return (low, high) if high > low else (low - 1, high + 1)


def _reference(reference: tuple[float, str], mark: tuple[float, str] | None, frame: Frame) -> list[Markup]:
    y = frame.py(reference[0])
    above = y - 6 if y > TOP + 16 else y + 16
    left = mark is not None and frame.px(mark[0]) > frame.width / 2  # away from the mark's line
    x, anchor = (LEFT + 4, "start") if left else (frame.right - 4, "end")
    return [
        element("line", x1=LEFT, x2=frame.right, y1=y, y2=y, class_="reference"),
        element("text", reference[1], x=x, y=above, text_anchor=anchor, class_="halo"),
    ]


def _band(series: Series, frame: Frame) -> Markup:
    there = [f"{frame.px(x):g} {frame.py(high):g}" for x, _, high in series.band]
    back = [f"{frame.px(x):g} {frame.py(low):g}" for x, low, _ in reversed(series.band)]
    where = "M" + "L".join([*there, *back]) + "z"
    return element("g", element("path", d=where), class_=f"band {series.style}")


def _curve(series: Series, frame: Frame) -> Markup:
    commands, pen = [], "M"
    dots: list[Markup] = []
    shown = [(frame.px(x), frame.py(y)) if y is not None else None for x, y in series.points]
    few = sum(point is not None for point in shown) <= MOST_DOTS and series.style not in ("label", "second")
    for i, point in enumerate(shown):
        if point is None:
            pen = "M"
            continue
        commands.append(f"{pen}{point[0]:g} {point[1]:g}")
        pen = "L"
        alone = (i == 0 or shown[i - 1] is None) and (i == len(shown) - 1 or shown[i + 1] is None)
        if alone or few:
            dots.append(element("circle", cx=point[0], cy=point[1], r=2.6))
    path = element("path", d="".join(commands))
    return element("g", element("title", series.name), path, dots, class_=f"curve {series.style}")
