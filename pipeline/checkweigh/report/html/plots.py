"""Plots of items and blocks: reply lengths of both arms, levels by stratum, timing pair by pair."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from checkweigh.decision import formatting
from checkweigh.records.measurement import Block
from checkweigh.report.html.svg import (
    Axis,
    dot,
    label,
    line,
    path,
    picture,
    spread,
)
from checkweigh.report.safe import shorten
from checkweigh.report.worst_items import ItemPair
from checkweigh.stats.distances import distances

_STRATA = 30
_DOTS = 400


def width_of(narrow: bool) -> float:
    """Pixels of a plot in the two layouts of the page."""
    return 350 if narrow else 476


def lengths(
    baseline: Sequence[int], candidate: Sequence[int], name: str, key: str, narrow: bool = False
) -> Markup:
    """Cumulative distributions of reply tokens of both arms on one set; Wasserstein and Kolmogorov in its title."""
    width, height = width_of(narrow), 250.0
    x = Axis(0, max(*baseline, *candidate, 1), 44, width - 14)
    y = Axis(0, 1, height - 50, 34)
    parts = [*_legend(44, 18), *_frame(x, y)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line(x.p0, y(share), x.p1, y(share), "grid"))
        parts.append(label(x.p0 - 6, y(share) + 4, f"{share:.0%}", "muted", "end"))
    parts += [path(_steps(baseline, x, y), "arm-b"), path(_steps(candidate, x, y), "arm-c")]
    parts += [label(x(t), height - 32, f"{t:,.0f}", "muted", "middle") for t in x.ticks(4 if narrow else 8)]
    parts.append(
        label((x.p0 + x.p1) / 2, height - 10, "reply tokens: share of replies no longer", "muted", "middle")
    )
    apart = distances(baseline, candidate)
    medians = f"median {_median(baseline):g} tokens (baseline), {_median(candidate):g} (candidate)"
    moved = f"{apart.wasserstein:.2g} tokens apart on average, {apart.kolmogorov:.1%} at most of the replies"
    return picture(key, f"Reply lengths on {name}: {medians}; {moved}", width, height, parts)


def lengths_by_set(pairs: Sequence[ItemPair]) -> dict[str, tuple[list[int], list[int]]]:
    """Reply tokens of both arms for each set that has them, over items that have both."""
    by_set: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for pair in pairs:
        if pair.baseline_tokens is not None and pair.candidate_tokens is not None:
            by_set[pair.set_name][0].append(pair.baseline_tokens)
            by_set[pair.set_name][1].append(pair.candidate_tokens)
    return dict(by_set)


def strata(pairs: Sequence[ItemPair], metric: str, key: str, narrow: bool = False) -> Markup:
    """Mean of one metric by set and stratum in both arms; the strata that moved most where there are many."""
    groups = _means(pairs, metric)
    if not groups:
        return Markup("")
    rows = sorted(groups, key=lambda g: (-abs(g[2] - g[1]), g[0]))[:_STRATA]
    rows.sort()
    width, step = width_of(narrow), 44.0 if narrow else 26.0
    height = 34 + len(rows) * step + 44
    x = Axis(*spread([v for row in rows for v in row[1:3]], 0.12), 10 if narrow else 190, width - 20)
    parts = list(_legend(10 if narrow else 190, 18))
    ticks = x.ticks(3)
    parts += [line(x(t), 34, x(t), height - 42, "grid") for t in ticks]
    for index, (name, base, cand, n) in enumerate(rows):
        top = 34 + index * step
        centre = top + (30 if narrow else 13)
        text = f"{shorten(name, 34 if narrow else 21)} ({n:,})"
        parts.append(label(10 if narrow else 180, top + 17, text, "name", "start" if narrow else "end"))
        parts.append(line(x(base), centre, x(cand), centre, "link"))
        tip = f"{name}: {formatting.level(metric, base)} to {formatting.level(metric, cand)}"
        parts += [dot(x(base), centre, 5, "dot-b", tip), dot(x(cand), centre, 5, "dot-c", tip)]
    parts += [label(x(t), height - 24, _tick(metric, t), "muted", "middle") for t in ticks]
    parts.append(label((x.p0 + x.p1) / 2, height - 6, f"mean {metric}", "muted", "middle"))
    return picture(key, f"Mean {metric} by set and stratum, baseline against candidate", width, height, parts)


def timing(blocks: Sequence[Block], name: str, key: str, narrow: bool = False) -> Markup:
    """One metric's change (candidate over baseline, percent) pair by pair, in the order measured."""
    changes = [
        (b.pair, formatting.percent_of_log(math.log(b.candidate[name] / b.baseline[name])), b.order[0])
        for b in blocks
        if b.baseline.get(name, 0) > 0 and b.candidate.get(name, 0) > 0
    ]
    if not changes:
        return Markup("")
    width, height = width_of(narrow), 200.0
    thin = math.ceil(len(changes) / _DOTS)
    middle = _median([c for _, c, _ in changes])
    x = Axis(*spread([float(p) for p, _, _ in changes], 0.03), 56, width - 14)
    y = Axis(*spread([0.0, *(c for _, c, _ in changes)], 0.08), height - 46, 14)
    parts = _frame(x, y)
    for t in y.ticks(4):
        parts.append(line(x.p0, y(t), x.p1, y(t), "zero" if t == 0 else "grid"))
        parts.append(
            label(
                x.p0 - 6,
                y(t) + 4,
                f"{formatting.fixed(t, 0 if abs(t) >= 1 or t == 0 else 2)}%",
                "muted",
                "end",
            )
        )
    parts.append(line(x.p0, y(middle), x.p1, y(middle), "median"))
    for p, change, first in changes[::thin]:
        tip = f"pair {p}: {formatting.fixed(change, 1)}%, {first} first"
        parts.append(dot(x(p), y(change), 3.5, "dot-b" if first == "baseline" else "dot-c", tip))
    parts += [label(x(t), height - 28, f"{t:,.0f}", "muted", "middle") for t in x.ticks(5)]
    every = "" if thin == 1 else f", one in {thin} drawn"
    parts.append(label((x.p0 + x.p1) / 2, height - 8, f"pair of blocks, in order{every}", "muted", "middle"))
    title = f"{name}: change from baseline to candidate by pair; median {formatting.fixed(middle, 1)}%"
    return picture(key, title, width, height, parts)


def _tick(metric: str, value: float) -> str:
    text = formatting.level(metric, value).split(" ")[0]
    return (text.rstrip("%").rstrip("0").rstrip(".") + "%" * text.endswith("%")) if "." in text else text


def _means(pairs: Sequence[ItemPair], metric: str) -> list[tuple[str, float, float, int]]:
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for pair in pairs:
        if pair.metric == metric and pair.baseline is not None and pair.candidate is not None:
            groups[f"{pair.set_name} / {pair.stratum}"].append((pair.baseline, pair.candidate))
    return [
        (name, math.fsum(b for b, _ in v) / len(v), math.fsum(c for _, c in v) / len(v), len(v))
        for name, v in groups.items()
    ]


def _frame(x: Axis, y: Axis) -> list[Markup]:
    return [line(x.p0, y.p0, x.p1, y.p0, "axis"), line(x.p0, y.p0, x.p0, y.p1, "axis")]


def _legend(x: float, y: float) -> Iterator[Markup]:
    for offset, kind, name in ((0, "b", "baseline"), (110, "c", "candidate")):
        yield line(x + offset, y - 4, x + offset + 24, y - 4, f"arm-{kind}")
        yield dot(x + offset + 12, y - 4, 4.5, f"dot-{kind}")
        yield label(x + offset + 32, y, name, "name")


def _steps(values: Sequence[int], x: Axis, y: Axis) -> list[tuple[float, float]]:
    """Corners of the empirical distribution function; one step for each distinct value, at most 1,000."""
    ranked = sorted(values)
    last = {value: index + 1 for index, value in enumerate(ranked)}
    kept = sorted(last)[:: max(1, math.ceil(len(last) / 1000))]
    if kept[-1] != ranked[-1]:
        kept.append(ranked[-1])
    corners = [(x(0), y(0))]
    for value in kept:
        corners += [(x(value), corners[-1][1]), (x(value), y(last[value] / len(ranked)))]
    return [*corners, (x.p1, corners[-1][1])]


def _median(values: Sequence[float]) -> float:
    ranked = sorted(values)
    half = len(ranked) // 2
    return float(ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2)
