"""What is said of checks on longer replies where the limit on tokens leaves them no room. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from checkweigh.compare import margin_of
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementSet
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, Policy

Records = Mapping[str, MeasurementSet]


def no_room(
    policy: Policy, sets: Sequence[EvalSet], records: Mapping[str, Records], max_tokens: int
) -> Iterator[str]:
    """A note on each check that cannot find longer replies, because all of the candidate's may end at ``max_tokens``.

    ``records``: role -> set -> record.
    """
    for check in policy.checks:
        if METRICS[check.metric].estimator != "log_length" or check.direction != "lower":
            continue
        tokens = np.array(_tokens(check, sets, records[check.against]), dtype=np.float64)
        if len(tokens) and (room := float(np.log(max_tokens / tokens).mean())) <= margin_of(check):
            yield (
                f"{check.id}: the {check.against}'s replies leave the candidate's room to grow by {np.expm1(room):.0%} "
                f"before max_tokens ({max_tokens}) cuts them all: the check cannot block"
            )


def _tokens(check: Check, sets: Sequence[EvalSet], records: Records) -> list[int]:
    """Lengths of the replies that the check looks at."""
    found = []
    for evalset in sets:
        if (name := evalset.card.name) in check.evalset and name in records:
            asked = {i.id for i in evalset.items if i.stratum == check.where.get("stratum", i.stratum)}
            found += [max(o.output_tokens or 1, 1) for o in records[name].observations if o.item in asked]
    return found
