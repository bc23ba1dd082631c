"""What a decision promises and what it does not, in words, beside every verdict."""

from __future__ import annotations

from collections.abc import Sequence

from checkweigh.decision.verdict import checks_of, declared
from checkweigh.records.policy import Policy


def guarantees(policy: Policy, intends: Sequence[str] = ()) -> tuple[str, ...]:
    """Sentences for people; the numbers are the policy's. Declared checks do not gate and promise nothing."""
    checks = [check for check in checks_of(policy) if not declared(check, intends)]
    critical = [check.id for check in checks if check.tier == "critical"]
    gating = [check.id for check in checks if check.tier != "advisory"]
    budget = policy.error_budget
    return (
        f"A candidate that is worse by its margin on any critical check ({', '.join(critical)}) passes with a "
        f"probability of at most {budget.false_pass:.0%}: for each candidate, not for each year.",
        f"A candidate that is equal on all {len(gating)} gating checks is blocked with a probability of at most "
        f"{budget.false_block:.0%} (Holm over those checks).",
        "Inconclusive is not a pass: the evidence does not suffice either way.",
        "Nothing is promised about advisory checks, about prompts unlike those in the sets, about reruns until one "
        "passes, or about many small losses over many releases.",
    )
