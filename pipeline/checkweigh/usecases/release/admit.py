"""Whether these bytes may be served: everything that an attestation says, verified again, now."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from checkweigh import canonical
from checkweigh.attest import weights
from checkweigh.attest.envelope import MAX_ENVELOPE_BYTES, Refusal, unseal
from checkweigh.attest.keys import public_key
from checkweigh.attest.rules import Requirements, admission_refusals, read_attested, waiver_refusals
from checkweigh.errors import BadInput, ExitCode, PinMismatch
from checkweigh.progress import Progress, no_progress
from checkweigh.records.attestation import Attested, Waiver
from checkweigh.records.manifest import Pins
from checkweigh.records.policy import Policy
from checkweigh.report.safe import one_line
from checkweigh.sources.documents import read_policy
from checkweigh.sources.pin import read_pinned, verify_files

MAX_AGE = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What is presented for admission. ``weights_signature``: weights.sig beside the attestation if it is not named."""

    attestation: Path
    key: Path
    policy: Path
    max_age: timedelta = MAX_AGE
    waiver: Path | None = None
    waiver_key: Path | None = None
    weights_signature: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionDecision:
    """Whether these bytes may be served: only without any refusal. ``notes`` must be shown either way."""

    refusals: tuple[Refusal, ...]
    attested: Attested | None
    waiver: Waiver | None
    pins: Pins
    notes: tuple[str, ...] = field(default=())

    @property
    def admitted(self) -> bool:
        """Whether these bytes may be served."""
        return not self.refusals and self.attested is not None

    @property
    def exit_code(self) -> ExitCode:
        """0 admitted, 1 refused."""
        return ExitCode.PASS if self.admitted else ExitCode.BLOCK

    def lines(self, manifest: Path) -> list[str]:
        """For people: every refusal, every note, the answer."""
        return [
            *(f"refused: {one_line(str(refusal), 1000)}" for refusal in self.refusals),
            *(f"note: {one_line(note, 1500)}" for note in self.notes),
            f"{'ADMITTED' if self.admitted else 'REFUSED'}: {one_line(str(manifest))}",
        ]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "admitted": self.admitted,
            "refusals": [{"code": r.code, "text": r.text} for r in self.refusals],
            "notes": list(self.notes),
            "pins": self.pins.record_digest(),
            "waiver": None if self.waiver is None else self.waiver.model_dump(mode="json"),
            "attested": None if self.attested is None else self.attested.model_dump(mode="json"),
        }


def admit(
    manifest: Path, proof: Proof, progress: Progress = no_progress, now: datetime | None = None
) -> AdmissionDecision:
    """Verify a manifest, its files and its attestation against key and policy, as of ``now`` (the clock's).

    1. Read what the operator names: key, policy, manifest and lock. BadInput when one of them is not sound.
    2. Hold the files that are there against the lock; a difference is a refusal.
    3. Open the attestation and apply every rule (attest.rules); all refusals are listed.
    4. Verify the model signature of the weights where the attestation names one.
    """
    now = now or datetime.now(UTC)
    key, policy = public_key(proof.key), read_policy(proof.policy)
    _, lock = read_pinned(manifest)
    folder, file_differences = _verify_files(manifest, progress)
    envelope = unseal(_bytes(proof.attestation, "--attestation"), key)
    claimed = read_attested(envelope).attested
    waiver, waiver_wrong = _waiver(proof, key, claimed, lock.pins, policy, now)
    requirements = Requirements(
        pins=lock.pins, policy=policy, now=now, max_age=proof.max_age, file_differences=file_differences
    )
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
    )


def _verify_files(manifest: Path, progress: Progress) -> tuple[Path | None, tuple[str, ...]]:
    """The folder of the weights, or None and every difference between the files and the lock."""
    try:
        folder, _ = verify_files(manifest, progress)
    except PinMismatch as error:
        return None, tuple(str(problem) for problem in error.problems)
    return folder, ()


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
