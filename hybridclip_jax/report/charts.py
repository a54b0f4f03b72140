"""Line and bar charts as inline SVG: no script, no font, colours from the page's style sheet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from hybridclip_jax.report.markup import Markup, element

# In SVG units. The page shows a chart 350 to 550 px wide, so 13 units of text are 10 to 15 px.
WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 22, 40
MOST_POINTS = 300
MOST_DOTS = 60

Point = tuple[float, float | None]


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve: points (x, y) by rising x; y None breaks the curve. `style` is a class of the style sheet."""

    name: str
    points: Sequence[Point]
    style: str = "main"


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


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most about `most` of them."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * m for m in (1, 2, 2.5, 5, 10, 20) if span / (power * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


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
    low, high = _y_range([*ys, *include, *([reference[0]] if reference else [])], limits)

    def px(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * x / x_high, 1)

    def py(y: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low), 1)

    parts: list[Markup] = []
    y_ticks = ticks(low, high)
    digits = _digits(y_ticks)
    for y in y_ticks:
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=py(y), y2=py(y), class_="grid"))
        parts.append(element("text", f"{y:,.{digits}f}", x=LEFT - 6, y=py(y) + 4, text_anchor="end"))
    x_ticks = [x for x in ticks(0, x_high, 5) if x == round(x)]
    for x in x_ticks:
        anchor = "end" if px(x) > WIDTH - 40 else "middle"
        parts.append(element("text", f"{x:,.0f}", x=px(x), y=HEIGHT - BOTTOM + 18, text_anchor=anchor))
    parts.append(
        element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle", class_="quiet")
    )
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"))
    if mark:
        parts.append(element("line", x1=px(mark[0]), x2=px(mark[0]), y1=TOP - 4, y2=HEIGHT - BOTTOM, class_="mark"))
    parts += [_curve(s, px, py) for s in series]
    if reference:
        y = py(reference[0])
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="reference"))
        above = y - 6 if y > TOP + 16 else y + 16
        left = mark is not None and px(mark[0]) > WIDTH / 2  # away from the mark's line
        x, anchor = (LEFT + 4, "start") if left else (WIDTH - RIGHT - 4, "end")
        parts.append(element("text", reference[1], x=x, y=above, text_anchor=anchor, class_="halo"))
    if mark:
        anchor, dx = ("start", -3) if px(mark[0]) < WIDTH / 2 else ("end", 3)
        parts.append(element("text", mark[1], x=px(mark[0]) + dx, y=TOP - 9, text_anchor=anchor, class_="marked"))
    return element(
        "svg",
        element("title", title),
        parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=title,
        class_="chart",
    )


def bar_chart(left_edges: Sequence[float], counts: Sequence[int], *, title: str, x_label: str) -> Markup:
    """An SVG histogram: bars of equal width from each left edge on; the last holds all from its edge on."""
    width = left_edges[1] - left_edges[0]
    x_low, x_high = left_edges[0], left_edges[-1] + width
    most = max(*counts, 1)

    def px(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / (x_high - x_low), 1)

    def height(y: float) -> float:
        return round((HEIGHT - TOP - BOTTOM) * y / most, 1)

    bottom = HEIGHT - BOTTOM
    parts: list[Markup] = []
    for y in (y for y in ticks(0, most) if y == round(y)):
        at = bottom - height(y)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(element("text", f"{y:,.0f}", x=LEFT - 6, y=at + 4, text_anchor="end"))
    for i, (edge, count) in enumerate(zip(left_edges, counts, strict=True)):
        last = i == len(counts) - 1
        said = f"{edge:,.0f} and more: {count:,}" if last else f"{edge:,.0f} to {edge + width - 1:,.0f}: {count:,}"
        bar = element("title", said)
        x, wide = px(edge), max(px(edge + width) - px(edge) - 1, 0.5)
        where = f"M{x:g} {bottom}v{-height(count):g}h{wide:g}V{bottom}z"
        parts.append(element("g", bar, element("path", d=where), class_="bars"))
    for x in ticks(x_low, x_high, 6):
        parts.append(element("text", f"{x:,.0f}", x=px(x), y=bottom + 18, text_anchor="middle"))
    parts.append(
        element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle", class_="quiet")
    )
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    return element(
        "svg",
        element("title", title),
        parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=title,
        class_="chart",
    )


def _y_range(values: Sequence[float], limits: tuple[float | None, float | None]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    if limits[0] is not None:
        low = max(low, limits[0])
    if limits[1] is not None:
        high = min(high, limits[1])
    return (low, high) if high > low else (low - 1, high + 1)


def _digits(values: Sequence[float]) -> int:
    """Decimals that tell the ticks apart."""
    step = values[1] - values[0] if len(values) > 1 else 1.0
    return next((d for d in range(6) if abs(step * 10**d - round(step * 10**d)) < 1e-6 * 10**d), 6)


def _curve(series: Series, px: Callable[[float], float], py: Callable[[float], float]) -> Markup:
    commands, pen = [], "M"
    dots: list[Markup] = []
    shown = [(px(x), py(y)) if y is not None else None for x, y in series.points]
    finite = [point for point in shown if point]
    for i, point in enumerate(shown):
        if point is None:
            pen = "M"
            continue
        commands.append(f"{pen}{point[0]:g} {point[1]:g}")
        pen = "L"
        alone = (i == 0 or shown[i - 1] is None) and (i == len(shown) - 1 or shown[i + 1] is None)
        if alone or (series.style == "main" and len(finite) <= MOST_DOTS):
            dots.append(element("circle", cx=point[0], cy=point[1], r=2.6))
    path = element("path", d="".join(commands))
    return element("g", element("title", series.name), path, dots, class_=f"curve {series.style}")
