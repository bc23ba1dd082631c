"""Policy + comparisons -> decision. Pure: no IO, no clock. The rules, numbered (docs/statistics.md).

1. Every policy has an implicit critical check on failed items.
2. p-values of deterioration are adjusted by Holm over all gating checks, the number of which is fixed by the
   policy; an inestimable check counts with p = 1 and an equivalence check counts twice.
3. A check *blocks* when its adjusted p is at most the block level and the estimate is beyond the margin.
4. It is *anomalous* when an implausible quality gain is certain: lower bound > 2 m and estimate > 3 m.
5. It *passes* when its pass test rejects at the false-pass level; a significant decline inside the margin
   passes with a *warning*. Identical arms pass when at most 5% of clusters could differ.
6. Everything else is inconclusive.
7. At one of several looks the pass test is held against that look's spending and the block test against the policy's
   level divided by the looks (``looks``); all critical checks pass at the same look or none does.
8. The verdict is the worst of its parts: any block blocks; otherwise any check that prevents a pass
   (``records.decision.prevents_pass``) makes it inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from checkweigh.decision.compare import EVENTS, margin_of
from checkweigh.decision.looks import Level, Look, design_looks
from checkweigh.decision.wording import sentence
from checkweigh.records.comparison import Comparison, Estimate, Identical, Inestimable
from checkweigh.records.decision import MOST_DIFFERING, CheckOutcome, CheckResult, Verdict, prevents_pass
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import FAILURES, Check, Policy
from checkweigh.stats import holm, items_to_settle

# Raise it with every change of a rule in a ``compare`` module or here: stored verdicts are then judged again.
JUDGING = 1
FAILURE_ITEMS = 300  # that the implicit check on failures needs, over all sets together


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdict, reasons and results of one gate."""

    verdict: Verdict
    reasons: tuple[str, ...]
    results: tuple[CheckResult, ...]


def all_checks(policy: Policy) -> tuple[Check, ...]:
    """The policy's checks and the implicit one on failed items, over every set the policy uses."""
    if not policy.evalsets():
        return policy.checks
    implicit = Check(
        id=FAILURES, metric="failed", evalset=policy.evalsets(), direction="lower", margin=policy.failure_margin,
        because="implicit in every policy: an item without a result is evidence, never dropped",
        min_items=FAILURE_ITEMS, tier="critical",
    )  # fmt: skip
    return (*policy.checks, implicit)


def is_declared_change(check: Check, intends: Sequence[str]) -> bool:
    """Whether the candidate's manifest declares the change that this check looks for."""
    if METRICS[check.metric].estimator != "log_length":
        return False
    return ("longer" if check.direction == "lower" else "shorter") in intends


def gating_checks(policy: Policy, intends: Sequence[str] = ()) -> tuple[Check, ...]:
    """The checks that can change the verdict."""
    return tuple(c for c in all_checks(policy) if c.tier != "advisory" and not is_declared_change(c, intends))


def hypothesis_count(policy: Policy, intends: Sequence[str] = ()) -> int:
    """K, the number of hypotheses of the block test: one a gating check, two an equivalence check."""
    return sum(2 if check.kind == "equivalence" else 1 for check in gating_checks(policy, intends))


def last_look(policy: Policy, intends: Sequence[str] = ()) -> Look:
    """The last look of the policy: with one look, the look at everything."""
    return design_looks(policy, all_checks(policy), {}, hypothesis_count(policy, intends))[-1]


def decide(
    policy: Policy,
    comparisons: Mapping[str, Comparison],
    intends: Sequence[str] = (),
    look: Look | None = None,
) -> Judgement:
    """The verdict of a policy, its reasons, and the result of every check.

    ``comparisons``: check id -> comparison, made at the levels of ``look``; a check without one is inestimable.
    ``intends``: the changes that the candidate's manifest declares. ``look``: the policy's last one by default.
    """
    look = look or last_look(policy, intends)
    checks = all_checks(policy)
    missing = Inestimable(reason="no comparison was made")
    compared = {check.id: comparisons.get(check.id, missing) for check in checks}
    adjusted = _adjust(gating_checks(policy, intends), compared)
    results = tuple(_result(look, check, compared[check.id], adjusted, intends) for check in checks)
    verdict, reasons = _verdict(results)
    return Judgement(verdict, reasons, results)


def _adjust(gating_checks: Sequence[Check], compared: Mapping[str, Comparison]) -> dict[str, float]:
    """Holm-adjusted p of deterioration for each gating check; the smaller of an equivalence check's two."""
    names: list[str] = []
    p: list[float] = []
    for check in gating_checks:
        comparison = compared[check.id]
        estimate = comparison if isinstance(comparison, Estimate) else None
        names.append(check.id)
        p.append(estimate.p_worse if estimate else 1.0)
        if check.kind == "equivalence":
            names.append(check.id)
            p.append(estimate.p_better if estimate and estimate.p_better is not None else 1.0)
    adjusted: dict[str, float] = {}
    for name, value in zip(names, holm(np.array(p)), strict=True) if p else ():
        adjusted[name] = min(float(value), adjusted.get(name, 1.0))
    return adjusted


def _result(
    look: Look, check: Check, comparison: Comparison, adjusted: Mapping[str, float], intends: Sequence[str]
) -> CheckResult:
    margin, level = margin_of(check), look.levels[check.id]
    p_adjusted = adjusted.get(check.id)
    outcome = _outcome(check, comparison, margin, p_adjusted, level.passing, look.block)
    settle = None
    if isinstance(comparison, Estimate) and outcome == "inconclusive" and not comparison.exclusions:
        settle = _to_settle(check, comparison, margin, level, look, max(1, len(adjusted)))
    result = CheckResult(
        check=check, implicit=check.id == FAILURES, declared=is_declared_change(check, intends), outcome=outcome,
        margin=margin, comparison=comparison, p_adjusted=p_adjusted, information=level.information,
        level=None if check.tier == "advisory" else level.passing, planned=level.items,
        items_to_settle=settle, sentence="",
        prevents_pass=prevents_pass(check, is_declared_change(check, intends), outcome, comparison),
    )  # fmt: skip
    return result.model_copy(update={"sentence": sentence(result)})


def _to_settle(
    check: Check, estimate: Estimate, margin: float, level: Level, look: Look, checks: int
) -> int | None:
    """Items in all that would settle it, by the last look's pass level and this policy's block level."""
    if check.kind != "non_inferiority" or estimate.se <= 0:
        return None
    return items_to_settle(
        estimate.effect,
        estimate.se,
        estimate.pairs,
        margin,
        level.final,
        checks=checks,
        block_alpha=look.block,
    )


def _outcome(
    check: Check,
    comparison: Comparison,
    margin: float,
    p_adjusted: float | None,
    alpha: float,
    alpha_block: float,
) -> CheckOutcome:
    """Steps 3 to 6 for one check; an advisory check is judged alone, unadjusted, and never gates."""
    if isinstance(comparison, Inestimable):
        return "inconclusive"
    if isinstance(comparison, Identical):
        enough = comparison.differing_share_upper <= MOST_DIFFERING
        return "passed" if enough and check.kind in ("non_inferiority", "equivalence") else "inconclusive"
    limit = 0.0 if check.kind == "absolute" else margin
    p_worse = comparison.p_worse if p_adjusted is None else p_adjusted
    beyond = -comparison.effect >= limit
    if check.kind == "equivalence":
        beyond = abs(comparison.effect) >= limit
        if p_adjusted is None and comparison.p_better is not None:
            p_worse = min(p_worse, comparison.p_better)
    if beyond and p_worse <= alpha_block:
        return "blocked"
    quality = METRICS[check.metric].estimator in ("ratio", "graded", "binary") and check.metric not in EVENTS
    gain = check.kind == "non_inferiority" or (check.kind == "superiority" and margin > 0)
    low = comparison.low
    implausible = low is not None and low > 2 * margin and comparison.effect > 3 * margin
    if quality and gain and implausible:
        return "anomalous"
    if comparison.p_pass < alpha and low is not None:
        return "warning" if p_worse <= alpha_block else "passed"
    return "inconclusive"


def _verdict(results: Sequence[CheckResult]) -> tuple[Verdict, tuple[str, ...]]:
    """Step 8: the worst verdict of the checks, with the sentences of those that say so."""
    parts = [(_part(result), result.sentence) for result in results]
    verdict = Verdict.worst(Verdict.PASS, *(part for part, _ in parts))
    if verdict is not Verdict.PASS:
        return verdict, tuple(sentence for part, sentence in parts if part is verdict)
    passed = [r for r in results if r.gating and r.check.tier == "critical" and not r.implicit]
    if not passed:
        return Verdict.INCONCLUSIVE, ("no critical check is left to pass: every one is declared by intends",)
    warned = [r.sentence for r in results if r.gating and r.outcome == "warning"]
    summary = f"all {len(passed)} critical checks show the candidate to be no worse than their margins allow"
    return Verdict.PASS, (summary, *warned)


def _part(result: CheckResult) -> Verdict:
    """What one check alone makes of the gate."""
    if not result.prevents_pass:
        return Verdict.PASS
    return Verdict.BLOCK if result.outcome == "blocked" else Verdict.INCONCLUSIVE
