"""What a new policy lets through that the old one did not. Pure.

A loosened line is excused by a newer reason: the check's ``because`` must have changed in the same edit. For a line of
the policy itself, and for a check that is gone, it is the policy's ``because``, which must name that check.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from checkweigh.records.policy import CHECK_TIERS, Check, Policy

NO_EFFECT = ("warn", None, "refuse")  # what a change without effect is, the stricter last; None refuses some
IDENTITY = ("against", "metric", "evalset", "statistic", "kind", "direction", "scale", "where")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loosening:
    """One line that got looser; ``excused`` by a newer reason."""

    path: str
    old: str
    new: str
    excused: bool


def loosenings(old: Policy, new: Policy) -> tuple[Loosening, ...]:
    """Everything that got looser from ``old`` to ``new``, in the order of the old policy."""
    return (*_of_policy(old, new), *(line for check in old.checks for line in _of_check(check, old, new)))


def _of_policy(old: Policy, new: Policy) -> Iterator[Loosening]:
    pairs = (
        ("error_budget.false_pass", old.error_budget.false_pass, new.error_budget.false_pass),
        ("error_budget.false_block", new.error_budget.false_block, old.error_budget.false_block),
        ("failure_margin", old.failure_margin, new.failure_margin),
        ("timing.pairs", new.timing.pairs, old.timing.pairs),
        ("timing.requests", new.timing.requests, old.timing.requests),
        ("timing.grow_to", new.timing.looks[-1], old.timing.looks[-1]),
        ("attempts", old.attempts, new.attempts),
    )
    excused = _newer(old.because, new.because)
    for path, tighter, looser in pairs:
        if looser > tighter:
            values = (
                (tighter, looser)
                if path in ("error_budget.false_pass", "failure_margin", "attempts")
                else (looser, tighter)
            )
            yield _line(path, *values, excused)
    if old.on_inconclusive == "block" and new.on_inconclusive == "hold":
        yield _line("on_inconclusive", "block", "hold", excused)
    if NO_EFFECT.index(new.no_effect) < NO_EFFECT.index(old.no_effect):
        yield _line("no_effect", old.no_effect or "default", new.no_effect or "default", excused)
    if new.anchor != old.anchor and old.anchor is not None:
        yield _line("anchor", old.anchor, new.anchor, excused)
    if old.timing.load is not None and new.timing.load != old.timing.load:  # another load is another question
        yield _line("timing.load", old.timing.load, new.timing.load, excused)
    if len(new.looks) > len(old.looks):
        yield _line("looks", old.looks, new.looks, excused)


def _of_check(check: Check, old: Policy, new: Policy) -> Iterator[Loosening]:
    path = f"checks.{check.id}"
    counterpart = next((other for other in new.checks if other.id == check.id), None)
    if counterpart is None:
        if check.tier != "advisory":
            named = _newer(old.because, new.because) and check.id in new.because
            yield _line(path, check.tier, "dropped", named)
        return
    excused = _newer(check.because, counterpart.because)
    if check.tier == "advisory" and counterpart.tier == "advisory":
        return
    if CHECK_TIERS.index(counterpart.tier) > CHECK_TIERS.index(check.tier):
        yield _line(f"{path}.tier", check.tier, counterpart.tier, excused)
    for name in IDENTITY:
        if getattr(check, name) != getattr(counterpart, name):  # another question: no margin to compare
            yield _line(f"{path}.{name}", getattr(check, name), getattr(counterpart, name), excused)
    if _slack(counterpart) > _slack(check):
        yield _line(f"{path}.margin", check.margin, counterpart.margin, excused)
    for name in ("min_items", "min_clusters"):
        if getattr(counterpart, name) < getattr(check, name):
            yield _line(f"{path}.{name}", getattr(check, name), getattr(counterpart, name), excused)


def _slack(check: Check) -> float:
    """The margin, turned so that more lets more through."""
    tight = check.kind == "superiority" or (check.kind == "absolute" and check.direction == "higher")
    return -check.margin if tight else check.margin


def _newer(old: str, new: str) -> bool:
    return bool(new.split()) and old.split() != new.split()


def _line(path: str, old: object, new: object, excused: bool) -> Loosening:
    return Loosening(path=path, old=_shown(old), new=_shown(new), excused=excused)


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
