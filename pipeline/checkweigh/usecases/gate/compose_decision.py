"""Everything a gate has come to -> the decision that is written, signed and sent."""

from __future__ import annotations

from checkweigh.decision.compare_divergence import divergence_summary
from checkweigh.decision.verdict import Judgement
from checkweigh.measure import host_facts
from checkweigh.records.decision import Arm, Budget, Decision, DivergenceSummary, Looks
from checkweigh.sources.undeclared import declared_changes
from checkweigh.usecases.gate import notes
from checkweigh.usecases.gate.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.inputs import Inputs
from checkweigh.usecases.gate.ledger import Try
from checkweigh.usecases.gate.look_loop import Looking
from checkweigh.usecases.gate.measured import Evidence


def compose_decision(looking: Looking, judgement: Judgement, started: str, mine: Try | None) -> Decision:
    """The decision of a gate that ended with this judgement.

    ``started``: when the gate began, ISO 8601. ``mine``: None where the ledger could not be read.
    """
    inputs, evidence = looking.inputs, looking.evidence
    arms = {role: _arm(arm, evidence) for role, arm in looking.arms.items()}
    manifests = inputs.baseline.manifest, inputs.candidate.manifest
    provenance = host_facts.provenance(started)
    return Decision(
        verdict=judgement.verdict, reasons=judgement.reasons, checks=judgement.results,
        baseline=arms["baseline"], candidate=arms["candidate"], anchor=arms.get("anchor"),
        changes=declared_changes(*manifests),
        intends=manifests[1].intends, policy=inputs.policy.record_digest(), policy_name=inputs.policy.name,
        on_inconclusive=inputs.policy.on_inconclusive,
        evalsets={s.card.name: s.card.digest for s in inputs.evalsets},
        guarantees=notes.guarantees(inputs.policy, inputs.candidate.manifest.intends), timing=evidence.timing,
        looks=None if mine is None else _looks(looking, mine), budget=_budget(looking),
        attempt=None if mine is None else mine.label(provenance.ended),
        divergence=_summaries(inputs, evidence), notes=_notes(looking, judgement),
        stages=tuple(stage for arm in looking.arms.values() for stage in arm.stages), provenance=provenance,
    )  # fmt: skip


def _notes(looking: Looking, judgement: Judgement) -> tuple[str, ...]:
    inputs, records = looking.inputs, looking.evidence.records
    baseline, candidate = inputs.baseline.manifest, inputs.candidate.manifest
    all_notes = [
        *inputs.notes,
        *notes.noise_floor_notes(looking.judge.unfounded if looking.judge else (), baseline.name),
        *notes.short_tail_notes(inputs.policy),
        *notes.length_limit_notes(judgement.results, candidate.sampling.max_tokens),
        *notes.fork_note(baseline, candidate),
        *notes.vocabulary_note(inputs.policy, inputs.baseline.pins, inputs.candidate.pins),
    ]
    for role, arm in looking.arms.items():
        session, manifest = arm.session, arm.session.resolved.manifest
        all_notes += notes.speculation_notes(manifest, records[role])
        all_notes += notes.server_notes(role, manifest, records[role], session.telemetry)
        all_notes += notes.swap_note(role, session.swapped)
    return tuple(all_notes)


def _looks(looking: Looking, mine: Try) -> Looks:
    return Looks(
        plan=mine.entry.plan, shares=looking.inputs.policy.looks, made=tuple(looking.made),
        items=sum(looking.evidence.items.values()), planned=sum(len(s.items) for s in looking.inputs.evalsets),
        saved_seconds=looking.saved_seconds(),
    )  # fmt: skip


def _budget(looking: Looking) -> Budget:
    policy = looking.inputs.policy
    return Budget(
        false_pass=policy.error_budget.false_pass, false_block=policy.error_budget.false_block,
        hypotheses=looking.hypotheses, looks=len(policy.looks), attempts=policy.attempts,
    )  # fmt: skip


def _summaries(inputs: Inputs, evidence: Evidence) -> tuple[DivergenceSummary, ...]:
    records = evidence.divergences.records
    found = (divergence_summary(s, records[s.card.name]) for s in inputs.evalsets if s.card.name in records)
    return tuple(one for one in found if one is not None)


def _arm(arm: ArmMeasurement, evidence: Evidence) -> Arm:
    identity = next((record.key.identity for record in evidence.records[arm.role].values()), None)
    resolved = arm.session.resolved
    return Arm(
        name=resolved.manifest.name, manifest=resolved.pins.manifest, pins=arm.session.pins,
        measurements=dict(evidence.keys[arm.role]), identity=identity,
        replicate=arm.replicate, unsafe=resolved.manifest.unsafe,
    )  # fmt: skip
