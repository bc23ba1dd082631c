"""One sentence for each result of a check: what was found, by how much, how sure. Pure."""

from __future__ import annotations

import math

from checkweigh.records.comparison import Estimate, Identical, Inestimable
from checkweigh.records.decision import CheckResult
from checkweigh.records.metrics import METRICS


def sentence(result: CheckResult) -> str:
    """The sentence of one result."""
    comparison, check = result.comparison, result.check
    if isinstance(comparison, Inestimable):
        return f"{check.id}: cannot be estimated: {comparison.reason}"
    if isinstance(comparison, Identical):
        bound = f"at most {comparison.differing_share_upper:.1%} of clusters could differ (95% bound)"
        few = "" if result.outcome == "passed" else "; that is too few clusters to pass"
        return f"{check.id}: both executions gave equal outputs on {comparison.pairs} items; {bound}{few}"
    text = f"{check.id}: {_found(result, comparison)}; {_against(result, comparison)}"
    if result.declared:
        text += "; the manifest declares this change"
    return text


def effect_text(result: CheckResult, value: float) -> str:
    """A difference in the unit people think in: nats a token, points, or percent of a ratio."""
    metric = METRICS[result.check.metric]
    if result.check.kind == "absolute":
        return f"{value:+.4f}"
    if metric.estimator in ("log_length", "blocks"):
        return f"{math.expm1(value):+.1%}"
    if metric.estimator == "ratio":
        return f"{value:+.4f} {metric.unit}"
    return f"{100 * value:+.2f} points"


def _toward(result: CheckResult, value: float) -> float:
    """From 'higher is better' back to the metric's own direction."""
    return value if result.check.direction == "higher" else -value


def _found(result: CheckResult, estimate: Estimate) -> str:
    check = result.check
    what = check.metric.replace("_", " ")
    if check.statistic != "mean":
        what = f"{check.statistic} {what}"
    if check.kind == "absolute":
        return f"{what} is {estimate.candidate:.4f} against a limit of {check.margin:g}"
    change = effect_text(result, _toward(result, estimate.effect))
    ends = sorted(_toward(result, end) for end in (estimate.low, estimate.high) if end is not None)
    bounds = " to ".join(effect_text(result, end) for end in ends)
    verb = "changed by"
    if estimate.effect < 0:
        verb = "got worse by"
    elif estimate.effect > 0:
        verb = "got better by"
    if METRICS[check.metric].estimator == "log_length":
        verb = "changed by"
    return f"{what} {verb} {change} (one-sided {estimate.confidence:.0%} bounds {bounds})"


def _against(result: CheckResult, estimate: Estimate) -> str:
    margin = effect_text(result, result.margin).lstrip("+")
    p = result.p_adjusted
    sure = "" if p is None else f", adjusted p {'< 1e-6' if p < 1e-6 else f'= {p:.2g}'}"
    notes = "".join(f"; {note}" for note in estimate.exclusions)
    match result.outcome:
        case "blocked":
            return f"worse, and beyond the margin of {margin}{sure}{notes}"
        case "passed":
            return f"within the margin of {margin}{notes}"
        case "warning":
            return f"within the margin of {margin}, but certainly worse{sure}{notes}"
        case "anomalous":
            return f"implausibly better than the margin of {margin}; look for leaks or a broken baseline{notes}"
    more = ""
    if result.items_to_settle is not None and result.items_to_settle > estimate.pairs:
        more = f"; about {result.items_to_settle - estimate.pairs} more items would settle it"
    elif result.items_to_settle is None and result.check.kind == "non_inferiority":
        more = "; no affordable number of items would settle an effect this close to the margin"
    return f"not shown to be within the margin of {margin}{notes}{more}"
