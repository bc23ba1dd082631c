"""Measurements -> a judgement: what may be compared, against which noise floor, at which look. No engine runs here.

One policy is read in three forms on the way:

1. As it was read: the ledger's digests are of this one.
2. With ``attempts`` as the ledger's entry has it (``run``): an attempt keeps the share of the error budget that it
   began with. The loop takes its looks from this one, and the decision names it.
3. With divergence checks that have no noise floor here advisory (``Judge.policy``): only this one is judged by, and the
   number of hypotheses, K, is counted on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from checkweigh.decision.compare import compare
from checkweigh.decision.compare_divergence import compare_divergence
from checkweigh.decision.compare_timing import compare_blocks
from checkweigh.decision.looks import Level, Look, looks_for_sets
from checkweigh.decision.noise_floor import floor_of
from checkweigh.decision.pairing import pair
from checkweigh.decision.verdict import (
    Judgement,
    all_checks,
    decide,
    hypothesis_count,
)
from checkweigh.records.calibration import Floor
from checkweigh.records.comparison import Comparison, Inestimable
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, Policy
from checkweigh.usecases.gate.arms.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.inputs import Inputs
from checkweigh.usecases.gate.measured import Measured


@dataclass(frozen=True)
class Judge:
    """Judges what one gate has measured. ``identities``: digests of what the baseline's engine says of itself."""

    inputs: Inputs
    arms: Mapping[str, ArmMeasurement]
    identities: frozenset[str]

    def at(self, number: int, measured: Measured) -> Judgement:
        """The judgement at look ``number``."""
        look = self.looks[number - 1]
        comparisons = {
            check.id: self._compare(check, look, measured) for check in all_checks(self.inputs.policy)
        }
        return decide(self.policy, comparisons, self.inputs.candidate.manifest.intends, look)

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        """All looks, with what each check may spend there."""
        return looks_for_sets(self.policy, all_checks(self.policy), self.inputs.evalsets, self.hypotheses)

    @property
    def hypotheses(self) -> int:
        """K of the block test."""
        return hypothesis_count(self.policy, self.inputs.candidate.manifest.intends)

    @cached_property
    def policy(self) -> Policy:
        """The policy, with divergence checks that have no noise floor here informing only."""
        checks = tuple(
            check.model_copy(update={"tier": "advisory"}) if check.id in self.unfounded else check
            for check in self.inputs.policy.checks
        )
        return self.inputs.policy.model_copy(update={"checks": checks})

    @cached_property
    def unfounded(self) -> tuple[str, ...]:
        """Divergence checks that would gate and have no noise floor here."""
        return tuple(
            check.id
            for check in self.inputs.policy.checks
            if METRICS[check.metric].estimator == "divergence"
            and check.tier != "advisory"
            and self._floor(check) is None
        )

    def _floor(self, check: Check) -> Floor | None:
        """The check's noise floor, measured with the very engine that measured the baseline here."""
        calibrations = [c for c in self.inputs.calibrations if {c.identity} == self.identities]
        return floor_of(check, self.inputs.evalsets, calibrations)

    def _compare(self, check: Check, look: Look, measured: Measured) -> Comparison:
        inputs, level = self.inputs, look.levels[check.id]
        if check.id in inputs.inestimable:
            return Inestimable(reason=inputs.inestimable[check.id])
        estimator = METRICS[check.metric].estimator
        absent = self._absent(check, measured)
        late = any(arm.late for arm in self.arms.values())
        if absent or (estimator == "blocks" and measured.timing is None and late):
            limit = f"max_minutes ({inputs.policy.max_minutes:g}) had passed before"
            return Inestimable(reason=f"{limit} {absent or 'both arms could be timed'}")
        if estimator == "blocks":
            return _timed(check, measured, level)
        sets = [evalset for evalset in measured.sets if evalset.card.name in check.evalset]
        if estimator == "divergence":
            divergences = measured.divergences
            return compare_divergence(
                check,
                sets,
                divergences.records,
                divergences.why_absent,
                floor=self._floor(check),
                alpha=level,
            )
        records = measured.records
        sample = pair(check.metric, sets, records[check.against], records["candidate"], where=check.where)
        return compare(check, sample, alpha=level)

    def _absent(self, check: Check, measured: Measured) -> str:
        """What the check needs and an arm had no time left to measure, in words; empty when all of it is there."""
        missing = [
            f"{name} on the {role}"
            for role, arm in self.arms.items()
            for name in check.evalset
            if role in (check.against, "candidate") and arm.late and name not in measured.records[role]
        ]
        return f"{' and '.join(missing)} was measured" if missing else ""


def _timed(check: Check, measured: Measured, level: Level) -> Comparison:
    if measured.timing is None:
        return Inestimable(reason=measured.untimed)
    comparison = compare_blocks(check, measured.timing, alpha=level)
    if isinstance(comparison, Inestimable) and measured.timing.notes:
        return comparison.model_copy(
            update={"reason": "; ".join((comparison.reason, *measured.timing.notes))}
        )
    return comparison
