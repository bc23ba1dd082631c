"""Everything a gate has come to -> the decision that is written, signed and sent."""

from __future__ import annotations

from checkweigh.decision.compare_divergence import divergence_summary
from checkweigh.decision.verdict import Judgement
from checkweigh.measure import host_facts
from checkweigh.records.decision import ArmRecord, Budget, Decision, DivergenceSummary, LookHistory
from checkweigh.sources.undeclared import declared_changes
from checkweigh.usecases.gate import notes
from checkweigh.usecases.gate.arms.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.inputs import Inputs
from checkweigh.usecases.gate.ledger import LedgerAttempt
from checkweigh.usecases.gate.look_loop import LookLoop
from checkweigh.usecases.gate.measured import Measured


def compose_decision(
    loop: LookLoop, judgement: Judgement, started: str, attempt: LedgerAttempt | None
) -> Decision:
    """The decision of a gate that ended with this judgement.

    ``started``: when the gate began, ISO 8601. ``attempt``: None where the ledger could not be read.
    """
    inputs, measured = loop.inputs, loop.measured
    arms = {role: _arm(arm, measured) for role, arm in loop.arms.items()}
    manifests = inputs.baseline.manifest, inputs.candidate.manifest
    provenance = host_facts.provenance(started)
    return Decision(
        verdict=judgement.verdict, reasons=judgement.reasons, checks=judgement.results,
        baseline=arms["baseline"], candidate=arms["candidate"], anchor=arms.get("anchor"),
        changes=declared_changes(*manifests),
        intends=manifests[1].intends, policy=inputs.policy.record_digest(), policy_name=inputs.policy.name,
        on_inconclusive=inputs.policy.on_inconclusive,
        evalsets={s.card.name: s.card.digest for s in inputs.evalsets},
        guarantees=notes.guarantees(inputs.policy, inputs.candidate.manifest.intends), timing=measured.timing,
        looks=None if attempt is None else _looks(loop, attempt), budget=_budget(loop),
        attempt=None if attempt is None else attempt.label(provenance.ended),
        divergence=_summaries(inputs, measured), notes=_notes(loop, judgement),
        stages=tuple(stage for arm in loop.arms.values() for stage in arm.stages), provenance=provenance,
    )  # fmt: skip


def _notes(loop: LookLoop, judgement: Judgement) -> tuple[str, ...]:
    inputs, records = loop.inputs, loop.measured.records
    baseline, candidate = inputs.baseline.manifest, inputs.candidate.manifest
    all_notes = [
        *inputs.notes,
        *notes.noise_floor_notes(loop.judge.unfounded if loop.judge else (), baseline.name),
        *notes.short_tail_notes(inputs.policy),
        *notes.length_limit_notes(judgement.results, candidate.sampling.max_tokens),
        *notes.fork_note(baseline, candidate),
        *notes.vocabulary_note(inputs.policy, inputs.baseline.pins, inputs.candidate.pins),
    ]
    for role, arm in loop.arms.items():
        session, manifest = arm.session, arm.session.resolved.manifest
        all_notes += notes.speculation_notes(manifest, records[role])
        all_notes += notes.server_notes(role, manifest, records[role], session.telemetry)
        all_notes += notes.swap_note(role, session.swapped)
    return tuple(all_notes)


def _looks(loop: LookLoop, attempt: LedgerAttempt) -> LookHistory:
    return LookHistory(
        plan=attempt.entry.plan, shares=loop.inputs.policy.looks, made=tuple(loop.made),
        items=sum(loop.measured.items.values()), planned=sum(len(s.items) for s in loop.inputs.evalsets),
        saved_seconds=loop.saved_seconds(),
    )  # fmt: skip


def _budget(loop: LookLoop) -> Budget:
    policy = loop.inputs.policy
    return Budget(
        false_pass=policy.error_budget.false_pass, false_block=policy.error_budget.false_block,
        hypotheses=loop.hypotheses, looks=len(policy.looks), attempts=policy.attempts,
    )  # fmt: skip


def _summaries(inputs: Inputs, measured: Measured) -> tuple[DivergenceSummary, ...]:
    records = measured.divergences.records
    summaries = (
        divergence_summary(s, records[s.card.name]) for s in inputs.evalsets if s.card.name in records
    )
    return tuple(summary for summary in summaries if summary is not None)


def _arm(arm: ArmMeasurement, measured: Measured) -> ArmRecord:
    identity = next((record.key.identity for record in measured.records[arm.role].values()), None)
    resolved = arm.session.resolved
    return ArmRecord(
        name=resolved.manifest.name, manifest=resolved.pins.manifest, pins=arm.session.pins,
        measurements=dict(measured.keys[arm.role]), identity=identity,
        replicate=arm.replicate, unsafe=resolved.manifest.unsafe,
    )  # fmt: skip
