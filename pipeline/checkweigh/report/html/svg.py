"""Inline SVG from small pure functions. All that enters is escaped; colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from checkweigh.report.safe import one_line, shorten


def num(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value == value else "0"


def el(tag: str, *children: str, **attributes: float | str) -> Markup:
    """One element. ``children`` that are ``Markup`` stay, all else is escaped; ``class_`` gives ``class``."""
    pairs = []
    for key, value in attributes.items():
        text = value if isinstance(value, str) else num(value)
        pairs.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), text))
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), Markup("").join(pairs), inside)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A line."""
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def label(x: float, y: float, text: str, class_: str = "", anchor: str = "start", limit: int = 60) -> Markup:
    """Text whose baseline starts (``anchor``: start, middle, end) at x, y."""
    return el("text", shorten(text, limit), x=x, y=y, class_=class_, text_anchor=anchor)


def dot(x: float, y: float, r: float, class_: str, title: str = "") -> Markup:
    """A circle with a tooltip."""
    inside = [el("title", one_line(title))] if title else []
    return el("circle", *inside, cx=x, cy=y, r=r, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """An open polyline."""
    return el("polyline", points=" ".join(f"{num(x)},{num(y)}" for x, y in points), class_=class_)


def picture(key: str, title: str, width: float, height: float, parts: Iterable[Markup]) -> Markup:
    """A whole ``svg`` with an accessible title; ``key`` must be unique in the page."""
    return el(
        "svg", el("title", one_line(title, 500), id=f"t-{key}"), *parts,
        xmlns="http://www.w3.org/2000/svg", role="img", aria_labelledby=f"t-{key}",
        viewBox=f"0 0 {num(width)} {num(height)}", width=width, height=height,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map from data [d0, d1] to pixels [p0, p1]."""

    d0: float
    d1: float
    p0: float
    p1: float

    def __call__(self, value: float) -> float:
        """Pixel of a value, clamped to the range."""
        share = (value - self.d0) / (self.d1 - self.d0) if self.d1 > self.d0 else 0.5
        return self.p0 + min(1.0, max(0.0, share)) * (self.p1 - self.p0)

    def ticks(self, about: int) -> tuple[float, ...]:
        """Round values inside the data range, about that many."""
        span = self.d1 - self.d0
        if not (span > 0 and math.isfinite(span)):
            return (self.d0,)
        raw = span / max(1, about)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next((m * power for m in (1, 2, 5) if m * power >= raw), 10 * power)
        first = math.ceil(self.d0 / step - 1e-9)
        last = math.floor(self.d1 / step + 1e-9)
        return tuple(k * step for k in range(first, last + 1))


def spread(values: Sequence[float], pad: float = 0.05) -> tuple[float, float]:
    """A data range around the values that is never empty."""
    low, high = min(values), max(values)
    gap = (high - low) * pad or max(abs(low) * pad, 1e-9)
    return low - gap, high + gap
