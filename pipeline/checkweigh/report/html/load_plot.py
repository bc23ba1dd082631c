"""Goodput against offered load: both arms of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from checkweigh.records.measurement import KNEE, SweepPoint
from checkweigh.report.html.plots import width_of
from checkweigh.report.html.svg import (
    Axis,
    dot,
    label,
    line,
    path,
    picture,
)

_ARMS = (("baseline", "b"), ("candidate", "c"))


def sweep(points: Sequence[SweepPoint], key: str, narrow: bool = False) -> Markup:
    """Requests a second that kept the slo against those offered; the grey line is all of them, dashed is the knee."""
    if not points:
        return Markup("")
    width, height = width_of(narrow), 260.0
    most = max(point.offered for point in points)
    x, y = Axis(0, most, 50, width - 14), Axis(0, most, height - 50, 34)
    parts = [line(x.p0, y.p0, x.p1, y.p0, "axis"), line(x.p0, y.p0, x.p0, y.p1, "axis")]
    parts += [line(x(0), y(0), x(most), y(most), "grid"), line(x(0), y(0), x(most), y(KNEE * most), "median")]
    for t in y.ticks(4):
        parts.append(label(x.p0 - 6, y(t) + 4, f"{t:g}", "muted", "end"))
    parts += [label(x(t), height - 32, f"{t:g}", "muted", "middle") for t in x.ticks(4 if narrow else 8)]
    for offset, (arm, kind) in zip((0, 110), _ARMS, strict=True):
        parts.append(dot(56 + offset, 14, 4.5, f"dot-{kind}"))
        parts.append(label(68 + offset, 18, arm, "name"))
        of_arm = [point for point in points if point.arm == arm]
        parts.append(path([(x(p.offered), y(p.goodput)) for p in of_arm], f"arm-{kind}"))
        for p in of_arm:
            tip = f"{arm}, {p.offered:.3g} requests/s: {p.share:.0%} kept the slo"
            tip += ", over-saturated" * p.saturated + ", sender late" * p.late
            parts.append(dot(x(p.offered), y(p.goodput), 4, f"dot-{kind}", tip))
    parts.append(
        label(
            (x.p0 + x.p1) / 2,
            height - 10,
            "requests/s offered: requests/s that kept the slo",
            "muted",
            "middle",
        )
    )
    best = ", ".join(
        f"{arm} {max((p.goodput for p in points if p.arm == arm), default=0):.3g} requests/s"
        for arm, _ in _ARMS
    )
    return picture(key, f"Goodput against offered load; at most: {best}", width, height, parts)
