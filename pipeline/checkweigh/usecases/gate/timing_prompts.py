"""What of a gate's evidence is timed: whether a check asks for it, and the conversations that both arms answered."""

from __future__ import annotations

from checkweigh.measure.paired_blocks import ARMS
from checkweigh.records.evalset import Generation, Message
from checkweigh.records.measurement import Scored
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Policy
from checkweigh.usecases.gate.measured import Evidence


def wanted(policy: Policy) -> bool:
    """Whether a check looks at timing, memory or a rate."""
    return any(METRICS[check.metric].estimator == "blocks" for check in policy.checks)


def conversations(evidence: Evidence) -> list[tuple[Message, ...]]:
    """Conversations to time: those that both arms answered. One that fails is a failed item, not a slow one."""
    answered = {
        role: {
            (name, o.item)
            for name, r in evidence.records[role].items()
            for o in r.observations
            if isinstance(o.outcome, Scored)
        }
        for role in ARMS
    }
    return [
        item.messages
        for evalset in evidence.sets
        for item in evalset.items
        if isinstance(item, Generation)
        and all((evalset.card.name, item.id) in found for found in answered.values())
    ]
