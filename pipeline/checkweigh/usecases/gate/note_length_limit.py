"""What is said of checks on longer replies where the limit on tokens leaves them no room. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import expm1, log

from checkweigh.decision.compare import margin_of
from checkweigh.records.decision import CheckResult
from checkweigh.records.metrics import METRICS


def no_room(results: Iterable[CheckResult], max_tokens: int) -> Iterator[str]:
    """A note on each check that cannot find longer replies, even if all of the candidate's end at ``max_tokens``."""
    for check, level in ((r.check, r.comparison.baseline) for r in results):
        if METRICS[check.metric].estimator != "log_length" or check.direction != "lower" or level is None:
            continue
        if (room := log(max_tokens) - level) <= margin_of(check):
            yield (
                f"{check.id}: the {check.against}'s replies leave the candidate's room to grow by {expm1(room):.0%} "
                f"before max_tokens ({max_tokens}) cuts them all: the check cannot block"
            )
