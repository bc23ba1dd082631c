"""Forest plot: every check's estimate and one-sided bounds, in multiples of its own margin, on one axis.

Left is worse. Beyond -1 (shaded) lies what the policy does not allow; a check passes when its left bound
stays right of its own mark. Estimates beyond the axis are an arrow at the edge, with their size beside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from checkweigh.decision import formatting
from checkweigh.records.comparison import Estimate, Identical
from checkweigh.report.html.svg import (
    Axis,
    dot,
    el,
    label,
    line,
    picture,
)
from checkweigh.report.view import CheckRow

_LEAST, _MOST = 2.0, 4.0  # the axis reaches at least and at most so many margins each way


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """Geometry: a wide layout has columns beside the plot, a narrow one has its labels above each line."""

    width: float
    left: float
    right: float
    step: float
    drop: float  # from a row's label baseline to its whisker
    top: float = 34

    @property
    def narrow(self) -> bool:
        """Whether labels stand above their lines."""
        return self.drop > 0


_WIDE = _Frame(width=960, left=210, right=300, step=32, drop=0)
_NARROW = _Frame(width=350, left=8, right=8, step=50, drop=18)


def forest(rows: Sequence[CheckRow], key: str, narrow: bool = False) -> Markup:
    """The plot of all rows, grouped by tier in the order given."""
    frame = _NARROW if narrow else _WIDE
    reach = _reach(rows)
    x = Axis(-reach[0], reach[1], frame.left, frame.width - frame.right)
    body: list[Markup] = []
    y, tier = frame.top, ""
    for row in rows:
        if row.tier != tier:
            body.append(label(frame.left if frame.narrow else 0, y + 14, row.tier, "tier"))
            y, tier = y + 24, row.tier
        body.extend(_row(row, frame, x, y))
        y += frame.step
    bottom = y + 2
    parts = [*_ground(frame, x, bottom), *body, *_axis(frame, x, bottom)]
    return picture(key, _title(rows), frame.width, bottom + 44, parts)


def _values(row: CheckRow) -> tuple[float, float, float] | None:
    """Effect, low and high in margins; None where there is nothing to draw. No bound is infinitely bad."""
    comparison, margin = row.result.comparison, row.result.margin
    if margin <= 0 or not isinstance(comparison, Estimate):
        return None
    low = -math.inf if comparison.low is None else comparison.low / margin
    return comparison.effect / margin, low, comparison.high / margin


def _reach(rows: Sequence[CheckRow]) -> tuple[float, float]:
    drawn = [v for v in map(_values, rows) if v is not None]
    left = max((-low for _, low, _ in drawn), default=0.0)
    right = max((high for _, _, high in drawn), default=0.0)
    return min(_MOST, max(_LEAST, left * 1.05)), min(_MOST, max(_LEAST, right * 1.05))


def _ground(frame: _Frame, x: Axis, bottom: float) -> Iterator[Markup]:
    height = bottom - frame.top
    edge = x(x.d0)
    yield el("rect", x=edge, y=frame.top, width=x(-1) - edge, height=height, class_="beyond")
    for tick in range(math.ceil(x.d0), math.floor(x.d1) + 1):
        yield line(x(tick), frame.top, x(tick), bottom, "zero" if tick == 0 else "grid")
    yield line(x(-1), frame.top, x(-1), bottom, "limit")
    yield label(
        edge + 4, frame.top - 8, "◀ worse than allowed" if not frame.narrow else "◀ not allowed", "bad"
    )
    yield label(x(x.d1), frame.top - 8, "better ▶", "muted", "end")


def _axis(frame: _Frame, x: Axis, bottom: float) -> Iterator[Markup]:
    for tick in range(math.ceil(x.d0), math.floor(x.d1) + 1):
        yield label(x(tick), bottom + 16, f"{tick:+d}" if tick else "0", "muted", "middle")
    middle = (x.p0 + x.p1) / 2
    title = (
        "effect in margins of each check"
        if frame.narrow
        else "effect, in multiples of each check's own margin"
    )
    yield label(middle, bottom + 36, title, "muted", "middle")


def _row(row: CheckRow, frame: _Frame, x: Axis, y: float) -> Iterator[Markup]:
    base = y + 15
    centre = base + frame.drop if frame.narrow else base - 4
    faint = "" if row.gating else " faint"
    end = frame.width - frame.right
    if frame.narrow:
        yield label(frame.left, base, row.id, f"name{faint}", limit=26)
        yield label(end, base, row.effect, f"value o-{row.outcome}{faint}", "end")
    else:
        yield label(0, base, row.id, f"name{faint}", limit=30)
        yield label(end + 16, base, row.effect, f"value o-{row.outcome}{faint}")
        yield label(end + 172, base, formatting.without_unit(row.limit), f"muted{faint}")
    yield from _marks(row, x, centre)
    yield from _drawn(row, x, centre, faint)


def _marks(row: CheckRow, x: Axis, y: float) -> Iterator[Markup]:
    marks = {"superiority": (1.0,), "equivalence": (-1.0, 1.0), "absolute": (0.0,)}
    for at in marks.get(row.result.check.kind, ()):
        yield line(x(at), y - 9, x(at), y + 9, "limit")


def _drawn(row: CheckRow, x: Axis, y: float, faint: str) -> Iterator[Markup]:
    values = _values(row)
    if values is None:  # the column beside says "identical" or "no estimate"
        if isinstance(row.result.comparison, Identical):
            yield el("rect", x=x(0) - 5, y=y - 5, width=10, height=10, class_=f"same o-{row.outcome}{faint}")
        return
    effect, low, high = values
    kind = f"o-{row.outcome}{faint}"
    yield line(x(low), y, x(high), y, f"whisker {kind}")
    for bound in (low, high):
        if x.d0 <= bound <= x.d1:
            yield line(x(bound), y - 6, x(bound), y + 6, f"whisker {kind}")
    if x.d0 <= effect <= x.d1:
        yield dot(
            x(effect),
            y,
            5.5,
            f"point {kind}",
            f"{row.id}: {row.effect}, bounds {row.bounds}, limit {row.limit}",
        )
        return
    edge, way = (x(x.d0), 1) if effect < x.d0 else (x(x.d1), -1)
    points = f"{edge:.1f},{y:.1f} {edge + way * 14:.1f},{y - 8:.1f} {edge + way * 14:.1f},{y + 8:.1f}"
    yield el(
        "polygon", el("title", f"{row.id}: {row.effect}, off the axis"), points=points, class_=f"point {kind}"
    )
    size = row.magnitude or f"{effect:+.1f} margins"
    yield label(edge + way * 20, y + 4, size, f"value {kind}", "start" if way > 0 else "end")


def _title(rows: Sequence[CheckRow]) -> str:
    rows_in_words = "; ".join(f"{r.id}: {r.effect}, {r.word}" for r in rows[:12])
    return f"Estimate and one-sided bounds of each check in multiples of its margin. {rows_in_words}"
