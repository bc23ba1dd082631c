"""What is signed: an in-toto Statement about one decision, and a waiver of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from checkweigh.records.base import Digest, Name, Record
from checkweigh.records.decision import CheckOutcome, Verdict
from checkweigh.records.manifest import PLACES, Pins

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
WAIVER = "urn:checkweigh:waiver:1"
PAYLOAD = "application/vnd.in-toto+json"
ATTESTED: Literal["checkweigh/attestation@2"] = "checkweigh/attestation@2"
OLDER = ("checkweigh/attestation@1",)  # by versions that did not verify what was loaded
# Digests of something else than a file's bytes have names of their own, so that nobody takes one for the other.
TENSORS = "checkweighTensorsSha256"  # of sorted name, dtype, shape and bytes
CONTENT = "checkweighContentSha256"  # of canonical JSON, or of a text as JSON

_LINE = r"^[^\x00-\x1f\x7f]+$"
Reason = Annotated[str, Field(min_length=10, max_length=1000, pattern=_LINE)]
Owner = Annotated[str, Field(min_length=1, max_length=200, pattern=_LINE)]


class Subject(Record):
    """Something the statement is about, by digest."""

    name: str = Field(min_length=1)
    digest: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)


class Statement(Record):
    """in-toto Statement v1. The types are checked by rule, so that each wrong one has its own reason."""

    type_: str = Field(alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=1)
    predicate_type: str = Field(alias="predicateType")
    predicate: dict[str, Any]


class AttestedArm(Record):
    """One arm by digest."""

    name: str
    manifest: Digest
    pins: Digest
    measurements: dict[str, Digest]
    identity: Digest | None = Field(
        description="of the engine that was measured, its effective configuration included"
    )
    unsafe: tuple[str, ...]
    unverified: tuple[str, ...]


class AttestedCheck(Record):
    """One check's outcome and its numbers, on the scale of the comparison; None where there is no estimate."""

    id: str
    gating: bool
    outcome: CheckOutcome
    margin: float
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int | None = None


class Tool(Record):
    """What decided."""

    version: str = Field(min_length=1)
    digest: Digest = Field(description="of the package's own files, by name")


class Attested(Record):
    """Our part of the predicate: every digest behind the verdict, and the numbers. No field may be left out."""

    schema_: Literal["checkweigh/attestation@2"] = Field(default=ATTESTED, alias="schema")
    verdict: Verdict
    decision: Digest
    baseline: AttestedArm
    candidate: AttestedArm
    anchor: AttestedArm | None
    no_effect: str
    policy: Digest
    policy_name: str
    evalsets: dict[str, Digest] = Field(description="set -> digest of its items and scorer")
    trace: Digest | None = Field(description="of the recorded traffic that was replayed")
    tool: Tool
    repository: str | None = Field(
        description="of the manifests; its commit, and whether what was read is another"
    )
    commit: str | None
    dirty: bool | None
    hardware: str
    started: str
    ended: str
    intends: tuple[str, ...] = Field(
        description="what the candidate's manifest declares to change: checks on that did not gate"
    )
    checks: tuple[AttestedCheck, ...]
    notes: tuple[str, ...]
    weights_signature: Digest | None = Field(
        description="the OpenSSF model signature of the weights' directory, if there is one"
    )

    @property
    def arms(self) -> dict[str, AttestedArm]:
        """Role -> arm."""
        arms = {"baseline": self.baseline, "candidate": self.candidate}
        return arms if self.anchor is None else arms | {"anchor": self.anchor}


class Resource(Record):
    """in-toto ResourceDescriptor."""

    name: str
    digest: dict[str, str]


class TestResult(Record):
    """The test-result predicate v0.1, with our part beside the standard's."""

    __test__ = False  # not a test, whatever pytest thinks of its name

    result: Literal["PASSED", "WARNED", "FAILED"]
    configuration: tuple[Resource, ...]
    passed: tuple[str, ...] = Field(default=(), alias="passedTests")
    warned: tuple[str, ...] = Field(default=(), alias="warnedTests")
    failed: tuple[str, ...] = Field(default=(), alias="failedTests")
    checkweigh: Attested

    @classmethod
    def of(cls, attested: Attested) -> TestResult:
        """The whole predicate: what stands beside our part follows from it."""
        outcomes = [(check.id, check.outcome) for check in attested.checks]
        warned = tuple(name for name, outcome in outcomes if outcome == "warning")
        passed: Literal["PASSED", "WARNED"] = "WARNED" if warned else "PASSED"
        named = {"policy": attested.policy, "baseline": attested.baseline.pins}
        named |= {} if attested.anchor is None else {"anchor": attested.anchor.pins}
        named |= {f"evalset/{name}": digest for name, digest in sorted(attested.evalsets.items())}
        return cls(
            result=passed if attested.verdict is Verdict.PASS else "FAILED",
            configuration=tuple(Resource(name=n, digest={"sha256": bare(d)}) for n, d in named.items()),
            passed=tuple(name for name, outcome in outcomes if outcome == "passed"),
            warned=warned,
            failed=tuple(name for name, outcome in outcomes if outcome not in ("passed", "warning")),
            checkweigh=attested,
        )


class Waiver(Record):
    """One person's word that a candidate that did not pass may be served for a while."""

    schema_: Literal["checkweigh/waiver@1"] = Field(default="checkweigh/waiver@1", alias="schema")
    candidate: Digest = Field(description="digest of the candidate's pins")
    candidate_name: Name
    policy: Digest
    decision: Digest
    verdict: Verdict
    reason: Reason
    owner: Owner
    issued: str
    expires: str

    def sentence(self) -> str:
        """What every output says of it."""
        return f"WAIVED by {self.owner} until {self.expires}: {self.reason} (the verdict stays {self.verdict.value})"


def bare(digest: str) -> str:
    """The hex digits of a digest."""
    return digest.removeprefix("sha256:")


def subjects(pins: Pins) -> tuple[Subject, ...]:
    """Everything a manifest's pins hold, each under a name of its own."""
    return tuple(Subject(name=name, digest=digest) for name, digest in sorted(_subjects(pins)))


def _subjects(pins: Pins) -> Iterator[tuple[str, dict[str, str]]]:
    """By kind of field, so that a pin that comes later is a subject as well; the probes are under ``pins``."""
    yield "pins", {CONTENT: bare(pins.record_digest())}
    for name in Pins.model_fields:
        value = getattr(pins, name)
        if name in PLACES:
            continue
        if isinstance(value, str):
            files = name == "source" and pins.tensors
            yield name, {"sha256" if files else CONTENT: bare(value)}
        elif isinstance(value, dict):
            for file, digest in value.items():
                yield f"{name}/{file}", {_kind(pins, name, file): bare(digest)}
        elif isinstance(value, tuple) and name != "probes":
            for i, digest in enumerate(value):
                if digest is not None:
                    yield f"{name}/{i}", {CONTENT: bare(digest)}


def _kind(pins: Pins, name: str, file: str) -> str:
    """What the digest of a file is one of."""
    if name == "draft" or file.endswith(".json"):
        return CONTENT
    return TENSORS if name == "weights" and pins.tensors else "sha256"
