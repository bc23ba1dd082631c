"""What every report shows of a decision, in words and formatted numbers; layout belongs to the formats.

Texts here may still be hostile: each format escapes them its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from checkweigh.decision import formatting
from checkweigh.records.comparison import Estimate, Identical, Inestimable
from checkweigh.records.decision import (
    CheckResult,
    Decision,
    DivergenceSummary,
    EffectiveDifference,
    Verdict,
)
from checkweigh.records.measurement import Stage, WorstToken
from checkweigh.records.policy import CHECK_TIERS
from checkweigh.report.attempt_line import attempt_lines
from checkweigh.report.safe import clip

HEADLINE = {
    Verdict.PASS: "PASS: the candidate may ship",
    Verdict.INCONCLUSIVE: "INCONCLUSIVE: not shown to be good enough",
    Verdict.BLOCK: "BLOCK: the candidate must not ship",
    Verdict.ERROR: "ERROR: the gate broke; this says nothing about the candidate",
}
_NO_EFFECT = "though what changed altered no output"
P_NOTE = (
    "Critical checks are needed to pass, supporting ones can block and must be estimable, the others gate nothing. "
    "p is one-sided, smaller is surer: 'holds' and 'open' test the limit; 'worse' tests any decline, "
    "Holm-adjusted over the gating checks."
)
RETRY_NOTE = (
    "More items settle it only as a larger set declared before it is measured; "
    "running the same gate again until it passes is not evidence."
)
_WORDS = {
    "passed": "passed",
    "warning": "passed (worse)",
    "blocked": "BLOCKED",
    "inconclusive": "INCONCLUSIVE",
    "anomalous": "IMPLAUSIBLE",
}
_WORDS_NOT_GATING = {
    "passed": "fine",
    "warning": "fine (worse)",
    "blocked": "worse",
    "inconclusive": "unclear",
    "anomalous": "implausible",
}
_VALUE = 60  # characters of a value in a line of its own
_SEVERITY = ("blocked", "anomalous", "inconclusive", "warning", "passed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One check, formatted."""

    id: str
    tier: str
    gating: bool
    outcome: str
    word: str
    effect: str
    bounds: str
    limit: str
    title: str
    sure: str
    magnitude: str
    levels: str
    evidence: str
    sentence: str
    because: str
    settle: int | None
    result: CheckResult


def check_rows(decision: Decision) -> tuple[CheckRow, ...]:
    """All checks: gating ones first (severest first within a tier), advisory and declared ones last."""
    return tuple(check_row(result) for result in sorted(decision.checks, key=_order))


def _order(result: CheckResult) -> tuple[bool, int, int, str]:
    return (
        not result.gating, CHECK_TIERS.index(result.check.tier), _SEVERITY.index(result.outcome), result.check.id,
    )  # fmt: skip


def check_row(result: CheckResult) -> CheckRow:
    """One check's row."""
    check, comparison = result.check, result.comparison
    effect, bounds, limit, title = _numbers(result)
    return CheckRow(
        id=check.id, tier="declared" if result.declared else check.tier, gating=result.gating,
        outcome=result.outcome, word=_word(result),
        effect=effect, bounds=bounds, limit=limit, title=title,
        sure=_sure(result), magnitude=_magnitude(result),
        levels=formatting.levels(check.metric, comparison.baseline, comparison.candidate),
        evidence=_evidence(result), sentence=result.sentence, because=check.because,
        settle=result.items_to_settle, result=result,
    )  # fmt: skip


def headline(decision: Decision) -> str:
    """The first line of every report: the verdict, and whether what changed had any effect."""
    text = HEADLINE[decision.verdict]
    return f"{text}, {_NO_EFFECT}" if decision.no_effect else text


def first_lines(decision: Decision) -> tuple[str, ...]:
    """What stands right below the headline, before the reasons: a change without effect, what nobody verified."""
    arms = (("baseline", decision.baseline), ("anchor", decision.anchor), ("candidate", decision.candidate))
    unverified = (
        f"unverified: {', '.join(arm.unverified)} of the {role}, {arm.name}: only its manifest says so"
        for role, arm in arms
        if arm is not None and arm.unverified
    )
    return (*([decision.no_effect] if decision.no_effect else []), *unverified)


def effective_line(difference: EffectiveDifference) -> str:
    """One field in which the loaded engines differ, and why, in a line."""
    values = f"{clip(difference.baseline, _VALUE)} -> {clip(difference.candidate, _VALUE)}"
    return f"loaded {difference.field}: {values} ({', '.join(difference.explained)})"


def deciding_checks(decision: Decision, most: int = 4) -> tuple[CheckRow, ...]:
    """The checks that made the verdict: those blocked, those holding back a pass, or the critical ones."""
    gating = [r for r in check_rows(decision) if r.gating]
    blocked = [r for r in gating if r.outcome == "blocked"]
    holding = [r for r in gating if r.result.prevents_pass]
    critical = sorted((r for r in gating if r.tier == "critical"), key=_risk)
    chosen = {Verdict.BLOCK: blocked, Verdict.INCONCLUSIVE: holding, Verdict.PASS: critical}
    return tuple(chosen.get(decision.verdict, [])[:most])


def _risk(row: CheckRow) -> float:
    """Sorts the check that came closest to failing first."""
    comparison = row.result.comparison
    return -comparison.p_pass if isinstance(comparison, Estimate) else 0.0


def settling_checks(decision: Decision) -> tuple[tuple[str, int, int], ...]:
    """(check, items it had, items that would settle it) of every check that holds back a pass."""
    if decision.verdict is not Verdict.INCONCLUSIVE:
        return ()
    return tuple(
        (r.id, _pairs(r.result), r.settle)
        for r in check_rows(decision)
        if r.result.prevents_pass and r.settle is not None
    )


def bounds_head(decision: Decision) -> str:
    """``95% bounds``: with the confidence where all estimates share one; ``repeated bounds`` where looks set them."""
    estimates = [r.comparison for r in decision.checks if isinstance(r.comparison, Estimate)]
    if any(e.confidence_high is not None for e in estimates):
        return "repeated bounds"
    levels = {r.comparison.confidence for r in decision.checks if isinstance(r.comparison, Estimate)}
    return f"{levels.pop() * 100:.4g}% bounds" if len(levels) == 1 else "bounds"


def speed(stage: Stage) -> str:
    """Tokens a second, or a dash where nothing was timed."""
    if stage.seconds <= 0 or stage.tokens <= 0:
        return "-"
    rate = stage.tokens / stage.seconds
    return formatting.fixed(rate, 0 if rate >= 100 else 1, False)


def divergence(summary: DivergenceSummary) -> str:
    """One set's divergence in a line."""
    failed = f", {formatting.count(summary.failed)} failed" if summary.failed else ""
    spread = ", ".join(
        f"{name} {value:.3g}"
        for name, value in (
            ("p50", summary.p50), ("p90", summary.p90), ("p99", summary.p99), ("largest", summary.largest),
        )
    )  # fmt: skip
    return (
        f"{summary.set_name}: KL {summary.typical:.3g} nats/token in the typical document; over tokens mean "
        f"{summary.mean:.3g}, {spread}; same likeliest token in {summary.agreement:.2%} of "
        f"{formatting.count(summary.tokens)} tokens ({formatting.count(summary.documents)} documents{failed})"
    )


def likeliest_tokens(token: WorstToken) -> str:
    """What either arm would have said there: ``' the' 91% -> ' a' 40%``."""
    return f"{token.baseline!r} {token.baseline_p:.0%} → {token.candidate!r} {token.candidate_p:.0%}"


def notes(decision: Decision) -> tuple[str, ...]:
    """What every output must say beside the verdict: unsafe manifests, declared changes and the like."""
    lines = [
        *attempt_lines(decision),
        *(
            f"UNSAFE: the manifest of {arm.name} allows {', '.join(arm.unsafe)}"
            for arm in (decision.baseline, decision.candidate)
            if arm.unsafe
        ),
    ]
    if decision.intends:
        lines.append(
            f"The candidate's manifest intends: {', '.join(decision.intends)}; checks on that are not gating"
        )
    if decision.verdict is Verdict.INCONCLUSIVE and decision.on_inconclusive == "block":
        lines.append("The policy treats inconclusive as a block")
    if uncommitted := decision.provenance.uncommitted:
        lines.append(f"Read otherwise than committed: {', '.join(uncommitted)}")
    elif decision.provenance.dirty:
        lines.append("Run from a working directory with uncommitted changes")
    lines.extend(decision.notes)
    if decision.timing is not None:
        lines.extend(f"Timing: {note}" for note in decision.timing.notes)
    return tuple(lines)


def _pairs(result: CheckResult) -> int:
    return 0 if isinstance(result.comparison, Inestimable) else result.comparison.pairs


def _numbers(result: CheckResult) -> tuple[str, str, str, str]:
    check, comparison = result.check, result.comparison
    if isinstance(comparison, Estimate):
        s = formatting.format_estimate(check, comparison, result.margin)
        return s.effect, s.bounds, s.limit, s.title
    effect = "identical" if isinstance(comparison, Identical) else "no estimate"
    return effect, "-", formatting.limit(check, result.margin), ""


def _word(result: CheckResult) -> str:
    words = _WORDS if result.gating else _WORDS_NOT_GATING
    if isinstance(result.comparison, Inestimable) and result.outcome == "inconclusive":
        return "NO ESTIMATE" if result.gating else "no estimate"
    if result.gating and result.outcome == "inconclusive" and not result.prevents_pass:
        return "unclear"
    return words[result.outcome]


def _sure(result: CheckResult) -> str:
    comparison = result.comparison
    if isinstance(comparison, Inestimable):
        return "-"
    if isinstance(comparison, Identical):
        share = formatting.fixed(comparison.differing_share_upper * 100, 1, False)
        return f"≤ {share}% may differ"
    alpha = round(1 - comparison.confidence, 12)
    if result.level == 0 and result.outcome == "inconclusive":
        return "this look only blocks"
    holds = formatting.probability(comparison.p_pass, alpha or None)
    if result.level and comparison.confidence_high is not None:
        holds += f" ({formatting.boundary(result.level)} needed)"
    if result.outcome in ("blocked", "warning"):
        p = comparison.p_worse if result.p_adjusted is None else result.p_adjusted
        return f"worse, {formatting.probability(p)}"
    if result.outcome == "passed":
        return f"holds, {holds}"
    return f"open, {holds}" if result.outcome == "inconclusive" else "gain too good"


def _look(result: CheckResult, estimate: Estimate) -> str:
    """What the look allowed this check."""
    high = f"upper bound at {formatting.confidence(estimate.confidence_high or 0.0)}"
    if not result.level:
        return f"information {result.information:.3f}, this look only blocks; {high}"
    z = -NormalDist().inv_cdf(result.level)
    return (
        f"information {result.information:.3f}, passes at {formatting.boundary(result.level)} (z {z:.3f}); "
        f"lower bound at {formatting.confidence(estimate.confidence)}, {high}"
    )


def _magnitude(result: CheckResult) -> str:
    check, comparison = result.check, result.comparison
    scaled = check.kind in ("non_inferiority", "equivalence") and result.margin > 0
    if not isinstance(comparison, Estimate) or not scaled:
        return ""
    ratio = -comparison.effect / result.margin
    if check.kind == "equivalence":
        ratio = abs(ratio)
    return f"{formatting.times(ratio)} the margin" if ratio > 0.05 else ""


def _evidence(result: CheckResult) -> str:
    comparison = result.comparison
    if isinstance(comparison, Inestimable):
        return f"no estimate: {comparison.reason}"
    parts = [
        f"{formatting.count(comparison.pairs)} pairs in {formatting.count(comparison.clusters)} clusters"
    ]
    if isinstance(comparison, Estimate):
        if comparison.flips is not None:
            parts.append(f"{formatting.count(comparison.flips)} flips")
        if comparison.failed_baseline or comparison.failed_candidate:
            parts.append(
                f"failed: baseline {comparison.failed_baseline}, candidate {comparison.failed_candidate}"
            )
        parts.append(f"design effect {comparison.design_effect:.2f}")
        parts.append(comparison.method)
        if comparison.confidence_high is not None:
            parts.append(_look(result, comparison))
        parts.extend(f"excluded: {reason}" for reason in comparison.exclusions)
    return "; ".join(parts)
