"""The self-contained HTML page: jinja2 with autoescape, no script, no external resource, a strict CSP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import jinja2
from markupsafe import Markup

from checkweigh.canonical import short
from checkweigh.decision import formatting
from checkweigh.decision.compare_timing import block_key
from checkweigh.records.decision import ArmRecord, Decision
from checkweigh.records.metrics import METRICS
from checkweigh.report import view
from checkweigh.report.commands.show_diff import Piece, sides
from checkweigh.report.html import plots
from checkweigh.report.html.forest import forest
from checkweigh.report.html.load_plot import sweep
from checkweigh.report.safe import clip, one_line, visible
from checkweigh.report.worst_items import ItemPair, left_out, worst_pairs

_ITEMS = 8
_TEXT = 3000
_PLOTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One plot in both layouts of the page; CSS shows the one that fits."""

    caption: str
    wide: Markup
    narrow: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemCard:
    """One item side by side."""

    pair: ItemPair
    prompt: str
    values: str
    loss: str
    baseline: tuple[Piece, ...]
    candidate: tuple[Piece, ...]


def page(decision: Decision, pairs: Sequence[ItemPair]) -> str:
    """The whole report as one HTML document."""
    rows = view.check_rows(decision)
    return _template().render(
        d=decision, rows=rows, deciding=view.deciding_checks(decision),
        headline=view.headline(decision), first_lines=view.first_lines(decision),
        notes=view.notes(decision), settling=view.settling_checks(decision), retry=view.RETRY_NOTE,
        p_note=view.P_NOTE, bounds_head=view.bounds_head(decision),
        **plots_of(decision, rows, pairs),
        cards=[_card(pair) for pair in worst_pairs(pairs, _ITEMS)], compared=len(pairs),
        left_out=left_out(pairs), pins=_pins(decision),
        exit_code=int(decision.exit_code),
    )  # fmt: skip


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("checkweigh.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        line=one_line,
        short=short,
        count=formatting.count,
        divergence=view.divergence,
        favourites=view.likeliest_tokens,
        duration=formatting.duration,
        speed=view.speed,
        size=formatting.size,
    )
    return environment.get_template("report.html.j2")


def plots_of(
    decision: Decision, rows: Sequence[view.CheckRow], pairs: Sequence[ItemPair]
) -> dict[str, list[Plot]]:
    """All plots by kind; a kind without data is an empty list."""
    return {
        "forest": _forest(rows), "lengths": _lengths(pairs), "strata": _strata(pairs), "timing": _timing(decision),
        "sweep": _sweep(decision),
    }  # fmt: skip


def _forest(rows: Sequence[view.CheckRow]) -> list[Plot]:
    if not rows:
        return []
    return [Plot(caption="", wide=forest(rows, "forest"), narrow=forest(rows, "forest-n", narrow=True))]


def _lengths(pairs: Sequence[ItemPair]) -> list[Plot]:
    drawn = []
    for index, (name, (base, cand)) in enumerate(sorted(plots.lengths_by_set(pairs).items())[:_PLOTS]):
        wide = plots.lengths(base, cand, name, f"len{index}")
        narrow = plots.lengths(base, cand, name, f"len{index}-n", narrow=True)
        drawn.append(Plot(caption=f"{name}, {len(base):,} replies an arm", wide=wide, narrow=narrow))
    return drawn


def _strata(pairs: Sequence[ItemPair]) -> list[Plot]:
    drawn = []
    for index, metric in enumerate(sorted({pair.metric for pair in pairs})[:_PLOTS]):
        wide = plots.strata(pairs, metric, f"str{index}")
        if wide:
            narrow = plots.strata(pairs, metric, f"str{index}-n", narrow=True)
            drawn.append(Plot(caption=_better(metric), wide=wide, narrow=narrow))
    return drawn


def _better(metric: str) -> str:
    known = next((m for name, m in METRICS.items() if metric in (name, m.unit)), None)
    return metric if known is None else f"{metric}: {known.better} is better"


def _timing(decision: Decision) -> list[Plot]:
    """One plot for each timing metric that a check looks at."""
    blocks = decision.timing.blocks if decision.timing else ()
    timed = [r.check for r in decision.checks if METRICS[r.check.metric].estimator == "blocks"]
    keys = [block_key(check) for check in timed if METRICS[check.metric].unit != "share"]
    drawn = []
    for index, name in enumerate(dict.fromkeys(keys)):
        wide = plots.timing(blocks, name, f"tim{index}")
        if wide:
            narrow = plots.timing(blocks, name, f"tim{index}-n", narrow=True)
            drawn.append(
                Plot(caption=f"{name}: above zero the candidate takes more", wide=wide, narrow=narrow)
            )
    return drawn


def _sweep(decision: Decision) -> list[Plot]:
    points = decision.timing.sweep if decision.timing else ()
    if not points:
        return []
    wide, narrow = sweep(points, "sweep"), sweep(points, "sweep-n", narrow=True)
    return [Plot(caption="grey: everything offered; dashed: nine in ten of it", wide=wide, narrow=narrow)]


def _card(pair: ItemPair) -> ItemCard:
    texts = [
        None if t is None else clip(visible(t), _TEXT) for t in (pair.baseline_text, pair.candidate_text)
    ]
    base, cand = texts
    if base is not None and cand is not None:
        left, right = sides(base, cand)
    else:
        left, right = ((Piece(t, False),) if t is not None else () for t in texts)
    values = formatting.levels(pair.metric, pair.baseline, pair.candidate)
    loss = (
        f"worse by {formatting.loss(pair.metric, pair.loss)}"
        if pair.loss is not None and pair.loss > 0
        else ""
    )
    return ItemCard(
        pair=pair,
        prompt=clip(visible(pair.prompt), _TEXT),
        values=values,
        loss=loss,
        baseline=left,
        candidate=right,
    )


def _pins(decision: Decision) -> list[tuple[str, str]]:
    """(what, digest) of everything the decision rests on."""
    pins = [(f"policy {decision.policy_name}", decision.policy)]
    arms = (("baseline", decision.baseline), ("anchor", decision.anchor), ("candidate", decision.candidate))
    for label, arm in ((label, arm) for label, arm in arms if arm is not None):
        pins += [(f"{label}: {what}", digest) for what, digest in _arm_pins(arm)]
    pins += [(f"set {name}", digest) for name, digest in sorted(decision.evalsets.items())]
    return pins


def _arm_pins(arm: ArmRecord) -> list[tuple[str, str]]:
    pins = [("manifest", arm.manifest), ("pins", arm.pins)]
    if arm.identity is not None:
        pins.append(("engine identity", arm.identity))
    return pins + [(f"measurement of {name}", digest) for name, digest in sorted(arm.measurements.items())]
