"""A decision as an in-toto Statement about the candidate's digests, with the test-result predicate."""

from __future__ import annotations

from checkweigh.errors import SigningError
from checkweigh.records.attestation import (
    STATEMENT,
    TEST_RESULT,
    WAIVER,
    Attested,
    AttestedArm,
    AttestedCheck,
    Statement,
    TestResult,
    Tool,
    Waiver,
    subjects,
)
from checkweigh.records.comparison import Estimate, Inestimable
from checkweigh.records.decision import ArmRecord, CheckResult, Decision, Verdict
from checkweigh.records.manifest import Pins
from checkweigh.report import view


def decision_statement(decision: Decision, pins: Pins, weights_signature: str | None = None) -> Statement:
    """The statement of a finished gate. SigningError for one that broke, or that is about other pins."""
    if decision.verdict is Verdict.ERROR:
        raise SigningError("the gate broke: there is no verdict to sign")
    if decision.candidate.pins != pins.record_digest():
        raise SigningError("the candidate's pins are not those of the decision")
    if decision.outdated:
        raise SigningError(decision.outdated)
    predicate = TestResult.of(attested_part(decision, weights_signature))
    return Statement(
        type_=STATEMENT, subject=subjects(pins), predicate_type=TEST_RESULT,
        predicate=predicate.model_dump(mode="json", by_alias=True),
    )  # fmt: skip


def waiver_statement(waiver: Waiver, pins: Pins) -> Statement:
    """The statement of a waiver, about the same subjects as the verdict that it sets aside."""
    return Statement(
        type_=STATEMENT, subject=subjects(pins), predicate_type=WAIVER,
        predicate=waiver.model_dump(mode="json", by_alias=True),
    )  # fmt: skip


def attested_part(decision: Decision, weights_signature: str | None) -> Attested:
    """Our part of the predicate, as this version would sign it. SigningError: nobody knows which build decided."""
    provenance = decision.provenance
    if provenance.build is None:
        raise SigningError("the decision does not say which build of the tool reached it")
    return Attested(
        verdict=decision.verdict, decision=decision.record_digest(),
        baseline=_arm(decision.baseline), candidate=_arm(decision.candidate),
        anchor=None if decision.anchor is None else _arm(decision.anchor), no_effect=decision.no_effect,
        policy=decision.policy, policy_name=decision.policy_name, evalsets=decision.evalsets,
        trace=decision.trace, tool=Tool(version=provenance.tool, digest=provenance.build),
        repository=provenance.repository, commit=provenance.commit, dirty=provenance.dirty,
        hardware=provenance.hardware, started=provenance.started, ended=provenance.ended,
        intends=decision.intends, checks=tuple(_check(result) for result in decision.checks),
        notes=view.notes(decision), weights_signature=weights_signature,
    )  # fmt: skip


def _arm(arm: ArmRecord) -> AttestedArm:
    return AttestedArm(
        name=arm.name,
        manifest=arm.manifest,
        pins=arm.pins,
        measurements=arm.measurements,
        identity=arm.identity,
        unsafe=arm.unsafe,
        unverified=arm.unverified,
    )


def _check(result: CheckResult) -> AttestedCheck:
    c = result.comparison
    effect, low, high = (c.effect, c.low, c.high) if isinstance(c, Estimate) else (None, None, None)
    return AttestedCheck(
        id=result.check.id, gating=result.gating, outcome=result.outcome, margin=result.margin,
        effect=effect, low=low, high=high, pairs=None if isinstance(c, Inestimable) else c.pairs,
    )  # fmt: skip
