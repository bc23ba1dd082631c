"""One sentence for each result of a check: what was found, by how much, how sure. Pure."""

from __future__ import annotations

from checkweigh.decision.formatting import confidence, format_estimate
from checkweigh.records.comparison import Estimate, Identical, Inestimable
from checkweigh.records.decision import CheckResult
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check


def sentence(result: CheckResult) -> str:
    """The sentence of one result."""
    comparison, check = result.comparison, result.check
    if isinstance(comparison, Inestimable):
        return f"{check.id}: cannot be estimated: {comparison.reason}"
    if isinstance(comparison, Identical):
        sure = confidence(comparison.confidence)
        bound = f"at most {comparison.differing_share_upper:.1%} of clusters could differ ({sure} bound)"
        if result.level == 0:
            bound = "this look only blocks"
        few = "" if result.outcome == "passed" or result.level == 0 else "; that is too few clusters to pass"
        return f"{check.id}: both executions gave equal outputs on {comparison.pairs} items; {bound}{few}"
    text = f"{check.id}: {_found(result, comparison)}; {_against(result, comparison)}"
    if check.against == "anchor":
        text += "; against the anchor release"
    if result.declared:
        text += "; the manifest declares this change"
    return text


def _found(result: CheckResult, estimate: Estimate) -> str:
    check = result.check
    what = check.metric.replace("_", " ")
    if check.statistic != "mean":
        what = f"{check.statistic} {what}"
    text = format_estimate(check, estimate, result.margin)
    bounds = f"({_kind(estimate)} {text.bounds})"
    if METRICS[check.metric].estimator == "divergence":
        return f"the candidate's divergence is {text.effect.lstrip('+-')} {bounds}"
    if check.kind == "absolute":
        return f"the candidate's {what} is {text.effect} {bounds}"
    return f"{what} {_verb(check, estimate.effect)} by {text.effect.lstrip('+-')} {bounds}"


def _kind(estimate: Estimate) -> str:
    """Which bounds they are: at the levels of a look where there are several."""
    if estimate.confidence_high is None:
        return f"one-sided {confidence(estimate.confidence)} bounds"
    levels = (
        [estimate.confidence_high]
        if estimate.low is None
        else [estimate.confidence, estimate.confidence_high]
    )
    return f"repeated bounds at {' and '.join(map(confidence, levels))}"


def _verb(check: Check, effect: float) -> str:
    """What happened to the metric, in the words of its kind."""
    if effect == 0:
        return "did not change: it differs"
    if METRICS[check.metric].estimator == "log_length" or check.kind == "equivalence":
        return "grew" if (effect > 0) == (check.direction == "higher") else "shrank"
    return "got better" if effect > 0 else "got worse"


def _against(result: CheckResult, estimate: Estimate) -> str:
    margin = format_estimate(result.check, estimate, result.margin).limit
    p = result.p_adjusted
    sure = "" if p is None else f", adjusted p {'< 1e-6' if p < 1e-6 else f'= {p:.2g}'}"
    notes = "".join(f"; {note}" for note in estimate.exclusions)
    match result.outcome:
        case "blocked":
            worse = "different" if result.check.kind == "equivalence" else "worse"
            return f"{worse}, and beyond the limit {margin}{sure}{notes}"
        case "passed":
            return f"within the limit {margin}{notes}"
        case "warning":
            return f"within the limit {margin}, but certainly worse{sure}{notes}"
        case "anomalous":
            return f"implausibly better than the limit {margin}; look for leaks or a broken baseline{notes}"
    more = ""
    if result.items_to_settle is not None and result.items_to_settle > estimate.pairs:
        what = "pairs of blocks" if METRICS[result.check.metric].estimator == "blocks" else "items"
        more = f"; about {result.items_to_settle - estimate.pairs} more {what} would settle it"
    elif (
        result.items_to_settle is None and result.check.kind == "non_inferiority" and not estimate.exclusions
    ):
        more = "; no affordable number of items would settle an effect this close to the margin"
    return f"not shown to be within the limit {margin}{notes}{more}"
