"""What is said of checks on lengths where most replies end at the limit on tokens. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementSet
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, Policy

Records = Mapping[str, MeasurementSet]


def cut_lengths(policy: Policy, sets: Sequence[EvalSet], records: Mapping[str, Records]) -> Iterator[str]:
    """A note on each check of whose replies more than half were cut in an arm. ``records``: role -> set -> record."""
    for check in policy.checks:
        if METRICS[check.metric].estimator == "log_length":
            other, own = (_cut(check, sets, records[role]) for role in (check.against, "candidate"))
            if max(other, own) > 0.5:
                ended = f"{other:.0%} of the {check.against}'s replies and {own:.0%} of the candidate's"
                yield f"{check.id}: {ended} ended at max_tokens; how much longer they would be cannot show"


def _cut(check: Check, sets: Sequence[EvalSet], records: Records) -> float:
    """Of the replies that the check looks at, the share that ended at max_tokens."""
    ends = []
    for evalset in sets:
        if (name := evalset.card.name) in check.evalset and name in records:
            asked = {i.id for i in evalset.items if i.stratum == check.where.get("stratum", i.stratum)}
            ends += [o.finish for o in records[name].observations if o.finish and o.item in asked]
    return ends.count("length") / max(1, len(ends))
