"""The frame of a chart: where values stand in an SVG, its grid, its ticks and its axis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from hybridclip_jax.report.markup import Markup, element

# In SVG units. The page shows a chart 350 to 550 px wide, so 13 units of text are 10 to 15 px.
WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 22, 40


@dataclasses.dataclass(frozen=True)
class Frame:
    """A plot of values x[0]..x[1] by y[0]..y[1]; `width` and `height` hold its margins too."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def right(self) -> int:
        return self.width - RIGHT

    @property
    def bottom(self) -> int:
        return self.height - BOTTOM

    def px(self, x: float) -> float:
        return round(LEFT + (self.right - LEFT) * (x - self.x[0]) / (self.x[1] - self.x[0]), 1)

    def py(self, y: float) -> float:
        return round(self.bottom - (self.bottom - TOP) * (y - self.y[0]) / (self.y[1] - self.y[0]), 1)

    def draw(
        self, title: str, parts: Sequence[Markup], *, x_label: str, x_ticks: Sequence[float], y_ticks: Sequence[float]
    ) -> Markup:
        """The SVG: grid and ticks, the axis, then the parts."""
        middle = (LEFT + self.right) / 2
        return element(
            "svg",
            element("title", title),
            self._levels(y_ticks),
            self._places(x_ticks),
            element("text", x_label, x=middle, y=self.height - 4, text_anchor="middle", class_="quiet"),
            element("line", x1=LEFT, x2=self.right, y1=self.bottom, y2=self.bottom, class_="axis"),
            parts,
            viewBox=f"0 0 {self.width} {self.height}",
            role="img",
            aria_label=title,
            class_="chart",
        )

    def _levels(self, values: Sequence[float]) -> list[Markup]:
        digits = _digits(values)
        parts = []
        for y in values:
            at = self.py(y)
            parts.append(element("line", x1=LEFT, x2=self.right, y1=at, y2=at, class_="grid"))
            parts.append(element("text", f"{y:,.{digits}f}", x=LEFT - 6, y=at + 4, text_anchor="end"))
        return parts

    def _places(self, values: Sequence[float]) -> list[Markup]:
        digits = _digits(values)
        parts = []
        for x in values:
            anchor = "end" if self.px(x) > self.width - 40 else "middle"
            parts.append(element("text", f"{x:,.{digits}f}", x=self.px(x), y=self.bottom + 18, text_anchor=anchor))
        return parts


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most about `most` of them."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * m for m in (1, 2, 2.5, 5, 10, 20) if span / (power * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def whole_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Those of `ticks` that are whole numbers, as steps and counts are."""
    return [tick for tick in ticks(low, high, most) if tick == round(tick)]


def _digits(values: Sequence[float]) -> int:
    """Decimals that tell the ticks apart."""
    step = values[1] - values[0] if len(values) > 1 else 1.0
    return next((d for d in range(6) if abs(step * 10**d - round(step * 10**d)) < 1e-6 * 10**d), 6)
