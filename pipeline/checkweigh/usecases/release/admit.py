"""Whether these bytes may be served: everything that an attestation says, verified again, now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from checkweigh import canonical
from checkweigh.attest import weights
from checkweigh.attest.bindings import DemandedBaseline
from checkweigh.attest.envelope import MAX_ENVELOPE_BYTES, Refusal, unseal
from checkweigh.attest.keys import public_key
from checkweigh.attest.rules import Requirements, admission_refusals, read_attested, waiver_refusals
from checkweigh.canonical import short
from checkweigh.errors import BadInput, ExitCode, PinMismatch
from checkweigh.progress import Progress, no_progress
from checkweigh.records.attestation import Attested, Waiver
from checkweigh.records.manifest import Pins
from checkweigh.records.policy import Policy
from checkweigh.report.safe import one_line
from checkweigh.sinks.mlflow_target import resolve_target
from checkweigh.sources.pin import read_pinned, verify_files
from checkweigh.usecases.release.policy_content import read_policy_content
from checkweigh.usecases.release.registry import is_registered, registered_manifest

MAX_AGE = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What is presented for admission, and what is demanded of it.

    ``weights_signature``: weights.sig beside the attestation if it is not named. ``evalsets``: digests of sets that are
    not beside the policy. ``baseline``: a manifest with its lock, or ``models:/NAME@ALIAS`` in the registry of
    ``mlflow``, that the candidate must have been compared with. ``tool``: digest of the only one that may decide.
    """

    attestation: Path
    key: Path
    policy: Path
    max_age: timedelta = MAX_AGE
    waiver: Path | None = None
    waiver_key: Path | None = None
    weights_signature: Path | None = None
    evalsets: Mapping[str, str] = field(default_factory=dict)
    baseline: Path | None = None
    mlflow: str | None = None
    tool: str | None = None
    accept_unverified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBytes:
    """How much was read to verify the files, and how long that took."""

    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionDecision:
    """Whether these bytes may be served: only without any refusal. ``notes`` must be shown either way.

    ``verified``: the bytes that were read anew and the seconds that took; None where the files are not what is pinned.
    """

    refusals: tuple[Refusal, ...]
    attested: Attested | None
    waiver: Waiver | None
    pins: Pins
    notes: tuple[str, ...] = field(default=())
    verified: VerifiedBytes | None = None

    @property
    def admitted(self) -> bool:
        """Whether these bytes may be served."""
        return not self.refusals and self.attested is not None

    @property
    def exit_code(self) -> ExitCode:
        """0 admitted, 1 refused."""
        return ExitCode.PASS if self.admitted else ExitCode.BLOCK

    def lines(self, manifest: Path) -> list[str]:
        """For people: every refusal, every note, what the verdict rests on, the answer."""
        return [
            *(f"refused: {one_line(str(refusal), 1000)}" for refusal in self.refusals),
            *(f"note: {one_line(note, 1500)}" for note in self.notes),
            *(one_line(line, 1500) for line in self._evidence()),
            f"{'ADMITTED' if self.admitted else 'REFUSED'}: {one_line(str(manifest))}",
        ]

    def _evidence(self) -> Iterator[str]:
        """What is attested, and what was read to verify it."""
        if (attested := self.attested) is not None:
            if attested.no_effect:
                yield attested.no_effect
            yield f"verdict: {attested.verdict.value}, decided {attested.ended}"
            for role, arm in attested.arms.items():
                unverified = f", UNVERIFIED: {', '.join(arm.unverified)}" if arm.unverified else ""
                yield f"{role}: {arm.name}, pins {short(arm.pins)}, settings {short(arm.manifest)}{unverified}"
            if attested.intends:
                yield f"intends: {', '.join(attested.intends)}; checks on that did not gate"
            yield f"sets: {', '.join(f'{name} {short(digest)}' for name, digest in attested.evalsets.items())}"
            yield f"policy: {attested.policy_name} {short(attested.policy)}"
            yield f"tool: {attested.tool.version} {short(attested.tool.digest)}"
        if self.verified is not None:
            yield f"verified: {self.verified.bytes:,} bytes read anew in {self.verified.seconds:.2f} s"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "admitted": self.admitted,
            "refusals": [{"code": r.code, "text": r.text} for r in self.refusals],
            "notes": list(self.notes),
            "pins": self.pins.record_digest(),
            "verified": None if self.verified is None else asdict(self.verified),
            "waiver": None if self.waiver is None else self.waiver.model_dump(mode="json"),
            "attested": None if self.attested is None else self.attested.model_dump(mode="json"),
        }


def admit(
    manifest: Path, proof: Proof, progress: Progress = no_progress, now: datetime | None = None
) -> AdmissionDecision:
    """Verify a manifest, its files and its attestation against key and policy, as of ``now`` (the clock's).

    1. Read what the operator names: key, manifest and lock, baseline, policy and what that names. BadInput when one of
       them is not sound.
    2. Read every file and hold it against the lock; a difference is a refusal.
    3. Open the attestation and apply every rule (attest.rules); all refusals are listed.
    4. Verify the model signature of the weights where the attestation names one.

    Raises RegistryError where the baseline's registry does not answer.
    """
    now = now or datetime.now(UTC)
    key = public_key(proof.key)
    document, lock = read_pinned(manifest)
    baseline = _demanded_baseline(proof)
    content = read_policy_content(proof.policy, proof.evalsets, progress)
    folder, verified, file_differences = _verify_files(manifest, progress)
    envelope = unseal(_bytes(proof.attestation, "--attestation"), key)
    claimed = read_attested(envelope).attested
    waiver, waiver_wrong = _waiver(proof, key, claimed, lock.pins, content.policy, now)
    requirements = Requirements(
        pins=lock.pins, intends=document.intends, content=content, now=now, max_age=proof.max_age,
        file_differences=file_differences, baseline=baseline, tool=proof.tool,
        accept_unverified=proof.accept_unverified,
    )  # fmt: skip
    attested, refusals = admission_refusals(envelope, requirements, waiver)
    signature = () if attested is None else _signature_refusals(attested, folder, proof)
    notes = () if attested is None else attested.notes
    if waiver is not None:
        notes = (waiver.sentence(), *notes)
    return AdmissionDecision(
        refusals=refusals + waiver_wrong + signature,
        attested=attested,
        waiver=waiver,
        pins=lock.pins,
        notes=notes,
        verified=verified,
    )


def _verify_files(
    manifest: Path, progress: Progress
) -> tuple[Path | None, VerifiedBytes | None, tuple[str, ...]]:
    """The folder of the weights and what was read, or None and every difference between the files and the lock."""
    began = time.monotonic()
    try:
        files = verify_files(manifest, progress)
    except PinMismatch as error:
        return None, None, tuple(str(problem) for problem in error.problems)
    return files.folder, VerifiedBytes(bytes=files.bytes, seconds=time.monotonic() - began), ()


def _demanded_baseline(proof: Proof) -> DemandedBaseline | None:
    """The release that must have been the baseline, as of now. Its files are not read."""
    if proof.baseline is None:
        return None
    if not is_registered(proof.baseline):
        manifest, lock = read_pinned(proof.baseline)
        return DemandedBaseline(shown=f"{manifest.name} ({proof.baseline})", pins=lock.pins)
    found = registered_manifest(proof.baseline, resolve_target(proof.mlflow))
    shown = f"{found.manifest.name} ({found.shown}, version {found.version})"
    return DemandedBaseline(shown=shown, pins=found.lock.pins)


def _waiver(
    proof: Proof, key: Any, attested: Attested | None, pins: Pins, policy: Policy, now: datetime
) -> tuple[Waiver | None, tuple[Refusal, ...]]:
    if proof.waiver is None:
        return None, ()
    if proof.waiver_key is not None:
        key = public_key(proof.waiver_key)
    envelope = unseal(_bytes(proof.waiver, "--waiver"), key)
    return waiver_refusals(envelope, attested, pins, policy.record_digest(), now)


def _signature_refusals(attested: Attested, folder: Path | None, proof: Proof) -> tuple[Refusal, ...]:
    """The model signature that the attestation names must be there, be that one, and hold for the directory."""
    if attested.weights_signature is None:
        return ()
    path = proof.weights_signature or proof.attestation.parent / weights.SIGNATURE
    try:
        digest = canonical.digest_bytes(path.read_bytes())
    except OSError:
        return (Refusal(code="weights-signature", text=f"{path}: attested, and not there"),)
    if digest != attested.weights_signature:
        return (Refusal(code="weights-signature", text=f"{path}: another one than was attested"),)
    if folder is None:
        return ()  # the files are refused already
    why = weights.verify_weights(folder, path, proof.key)
    return (Refusal(code="weights-signature", text=why),) if why else ()


def _bytes(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_ENVELOPE_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{option} {path}: expected a file that can be read ({error.strerror})") from None
