"""Evidence -> a judgement: what may be compared, against which noise floor, at which look. No engine runs here."""

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
from checkweigh.sources.undeclared import comparable_metrics
from checkweigh.usecases.gate.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.inputs import Inputs
from checkweigh.usecases.gate.measured import Evidence


@dataclass(frozen=True)
class Judge:
    """Judges the evidence of one gate. ``identities``: digests of what the baseline's engine says of itself."""

    inputs: Inputs
    arms: Mapping[str, ArmMeasurement]
    identities: frozenset[str]

    def at(self, number: int, evidence: Evidence) -> Judgement:
        """The judgement at look ``number``."""
        look = self.looks[number - 1]
        comparisons = {
            check.id: self._compare(check, look, evidence) for check in all_checks(self.inputs.policy)
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
        """The policy, with divergence checks that have no noise floor here informing only (STATISTICS, verdict)."""
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
        mine = [c for c in self.inputs.calibrations if {c.identity} == self.identities]
        return floor_of(check, self.inputs.evalsets, mine)

    def _compare(self, check: Check, look: Look, evidence: Evidence) -> Comparison:
        inputs, level = self.inputs, look.levels[check.id]
        other = inputs.anchor if check.against == "anchor" else inputs.baseline
        assert other is not None
        valid = comparable_metrics(other.pins, inputs.candidate.pins)[check.metric]
        if valid != "yes":
            return Inestimable(reason=valid)
        estimator = METRICS[check.metric].estimator
        absent = self._absent(check, evidence)
        late = any(arm.late for arm in self.arms.values())
        if absent or (estimator == "blocks" and evidence.timing is None and late):
            limit = f"max_minutes ({inputs.policy.max_minutes:g}) had passed before"
            return Inestimable(reason=f"{limit} {absent or 'both arms could be timed'}")
        if estimator == "blocks":
            return _timed(check, evidence, level)
        sets = [evalset for evalset in evidence.sets if evalset.card.name in check.evalset]
        if estimator == "divergence":
            found = evidence.divergences
            return compare_divergence(
                check, sets, found.records, found.why_absent, floor=self._floor(check), alpha=level
            )
        records = evidence.records
        sample = pair(check.metric, sets, records[check.against], records["candidate"], where=check.where)
        return compare(check, sample, alpha=level)

    def _absent(self, check: Check, evidence: Evidence) -> str:
        """What the check needs and an arm had no time left to measure, in words; empty when all of it is there."""
        missing = [
            f"{name} on the {role}"
            for role, arm in self.arms.items()
            for name in check.evalset
            if role in (check.against, "candidate") and arm.late and name not in evidence.records[role]
        ]
        return f"{' and '.join(missing)} was measured" if missing else ""


def _timed(check: Check, evidence: Evidence, level: Level) -> Comparison:
    if evidence.timing is None:
        return Inestimable(reason=evidence.untimed)
    found = compare_blocks(check, evidence.timing, alpha=level)
    if isinstance(found, Inestimable) and evidence.timing.notes:
        return found.model_copy(update={"reason": "; ".join((found.reason, *evidence.timing.notes))})
    return found
