"""Everything a gate has come to -> the decision that is written, signed and sent."""

from __future__ import annotations

from checkweigh.decision.compare_divergence import divergence_summary
from checkweigh.decision.verdict import Judgement
from checkweigh.measure import host_facts
from checkweigh.records.decision import (
    ArmRecord,
    Budget,
    Decision,
    DivergenceSummary,
    EffectiveDifference,
    LookHistory,
    Verdict,
)
from checkweigh.records.measurement import EngineIdentity
from checkweigh.sources.load_trace import trace_digest
from checkweigh.sources.undeclared import LoadedArm, declared_changes, effective_differences, unverified
from checkweigh.usecases.gate import notes
from checkweigh.usecases.gate.arms.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.inputs import Inputs
from checkweigh.usecases.gate.ledger import LedgerAttempt
from checkweigh.usecases.gate.look_loop import LookLoop
from checkweigh.usecases.gate.measured import Measured
from checkweigh.usecases.gate.no_effect import find_no_effect


def compose_decision(
    loop: LookLoop, judgement: Judgement, started: str, attempt: LedgerAttempt | None
) -> Decision:
    """The decision of a gate that ended with this judgement.

    ``started``: when the gate began, ISO 8601. ``attempt``: None where the ledger could not be read. Raises Broken for
    a verdict on an engine whose files nobody read again after it had measured.
    """
    if judgement.verdict is not Verdict.ERROR:
        for arm in loop.arms.values():
            arm.session.require_settled()
    inputs, measured = loop.inputs, loop.measured
    arms = {role: _arm(arm, measured) for role, arm in loop.arms.items()}
    manifests = inputs.baseline.manifest, inputs.candidate.manifest
    without_effect = find_no_effect(inputs, measured)
    provenance = inputs.provenance.model_copy(update={"started": started, "ended": host_facts.now()})
    return Decision(
        verdict=judgement.verdict, reasons=judgement.reasons, checks=judgement.results,
        baseline=arms["baseline"], candidate=arms["candidate"], anchor=arms.get("anchor"),
        changes=declared_changes(*manifests), effective_differences=_effective_differences(loop),
        no_effect="" if without_effect is None else without_effect.sentence,
        intends=manifests[1].intends, policy=inputs.policy.record_digest(), policy_name=inputs.policy.name,
        on_inconclusive=inputs.policy.on_inconclusive,
        evalsets={s.card.name: s.content_digest() for s in inputs.evalsets}, trace=trace_digest(inputs.trace),
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
        all_notes += notes.server_note(role, manifest, session.telemetry)
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


def _effective_differences(loop: LookLoop) -> tuple[EffectiveDifference, ...]:
    """What the loaded engines of baseline and candidate differ in; empty until both have measured."""
    arms = []
    for resolved, role in ((loop.inputs.baseline, "baseline"), (loop.inputs.candidate, "candidate")):
        identity = _identity(loop.measured, role)
        if identity is None:
            return ()
        arms.append(LoadedArm(manifest=resolved.manifest, pins=resolved.pins, identity=identity))
    return effective_differences(*arms)


def _identity(measured: Measured, role: str) -> EngineIdentity | None:
    """What the engine that measured an arm says of itself; None where nothing was measured."""
    return next((record.identity for record in measured.records[role].values()), None)


def _arm(arm: ArmMeasurement, measured: Measured) -> ArmRecord:
    identity, resolved = _identity(measured, arm.role), arm.session.resolved
    return ArmRecord(
        name=resolved.manifest.name, manifest=resolved.pins.manifest, pins=arm.session.pins,
        measurements=dict(measured.keys[arm.role]), replicate=arm.replicate, unsafe=resolved.manifest.unsafe,
        identity=None if identity is None else identity.record_digest(),
        unverified=unverified(resolved.manifest, identity),
        effective={} if identity is None else dict(sorted(identity.effective.items())),
    )  # fmt: skip
