"""After a gate: its verdict signed beside decision.json, and waivers of verdicts that were no pass."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from checkweigh import canonical
from checkweigh.attest import weights
from checkweigh.attest.envelope import peek, seal
from checkweigh.attest.keys import PrivateKey, private_key
from checkweigh.attest.statement import of_decision, of_waiver
from checkweigh.errors import BadInput, Broken, SigningError
from checkweigh.files import write_atomic
from checkweigh.progress import Say
from checkweigh.records.attestation import Statement, Waiver
from checkweigh.records.decision import Decision, Verdict
from checkweigh.records.yaml.document import parse_json
from checkweigh.report.waived import write_waived
from checkweigh.sources.pin import Resolved, read_pinned
from checkweigh.usecases.ci.run import show_waived
from checkweigh.usecases.read_decision import read_decision

ATTESTATION = "attestation.json"
WAIVER = "waiver.json"
MOST = timedelta(days=90)  # of a waiver: an emergency that lasts longer is a policy


def signing_key(where: str | None) -> PrivateKey | None:
    """The key of ``--attest``, read before anything is measured; None where nothing is to be signed."""
    return None if where is None else private_key(where)


def sign(decision: Decision, candidate: Resolved, out: Path, key: PrivateKey | None, say: Say) -> bool:
    """Attest a decision if there is a key, and say so; False when that was asked for and failed."""
    if key is None:
        return True
    try:
        for line in attest(decision, candidate, out, key):
            say(line)
    except Broken as error:
        say(f"attestation: NOT SIGNED: {error}")
        return False
    return True


def attest(decision: Decision, candidate: Resolved, out: Path, key: PrivateKey) -> tuple[str, ...]:
    """Sign a finished gate into ``out``; what to say of it. SigningError, and then nothing signed is left.

    1. The weights, where they are a directory of the user's own and the key can make a model signature.
    2. The verdict, with the digest of that signature.
    """
    target = out / ATTESTATION
    signature, said = _weights(candidate, out, key)
    try:
        digest = None if signature is None else canonical.digest_bytes(signature.read_bytes())
        write_atomic(target, seal(of_decision(decision, candidate.pins, digest), key))
    except BaseException as error:
        for path in (target, out / weights.SIGNATURE):
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SigningError(f"{out}: the signature cannot be written ({error.strerror})") from None
        raise
    return (f"attestation: {target}, key {key.keyid[:12]}", said)


def _weights(candidate: Resolved, out: Path, key: PrivateKey) -> tuple[Path | None, str]:
    if candidate.manifest.model.derive is not None:
        return None, "weights: derived, so the verdict names their tensors; no file of them is signed"
    if not candidate.model_dir.is_dir():
        return None, "weights: no directory; the verdict names their digests"
    if not key.elliptic:
        return None, "weights: the verdict names their digests; a model signature needs an ECDSA key"
    target = out / weights.SIGNATURE
    weights.sign(candidate.model_dir, target, key)
    return target, f"weights: {target}, an OpenSSF model signature of {candidate.model_dir}"


def waive(run: Path, manifest: Path, reason: str, owner: str, lasts: timedelta, key: PrivateKey) -> Waiver:
    """Write a signed waiver of a run's verdict beside it, and into its reports. BadInput when there is none to waive.

    A pass needs none, a gate that broke has no verdict, and the manifest must be the one that was gated.
    """
    decision = read_decision(run)
    out = run if run.is_dir() else run.parent
    _, lock = read_pinned(manifest)
    if decision.verdict in (Verdict.PASS, Verdict.ERROR):
        why = (
            "a pass needs no waiver"
            if decision.verdict is Verdict.PASS
            else "a gate that broke decided nothing"
        )
        raise BadInput(f"{out}: {why}")
    if decision.candidate.pins != lock.pins.record_digest():
        raise BadInput(
            f"{manifest}: expected the candidate of {out}, {decision.candidate.name}, found other pins"
        )
    if not timedelta(0) < lasts <= MOST:
        raise BadInput(f"--expires: expected more than nothing and at most {MOST.days}d")
    now = datetime.now(UTC).replace(microsecond=0)
    made = _waiver(
        candidate=decision.candidate.pins, candidate_name=decision.candidate.name, policy=decision.policy,
        decision=decision.record_digest(), verdict=decision.verdict, reason=reason, owner=owner,
        issued=now.isoformat(), expires=(now + lasts).isoformat(),
    )  # fmt: skip
    sealed = seal(of_waiver(made, lock.pins), key)
    write_waived(out, made.sentence())
    show_waived(out, made.sentence())
    write_atomic(out / WAIVER, sealed)
    return made


def _waiver(**fields: object) -> Waiver:
    from pydantic import ValidationError

    try:
        return Waiver.model_validate(fields)
    except ValidationError as error:
        wrong = {str(e["loc"][0]) for e in error.errors() if e["loc"]}
        wanted = {"reason": "--reason: expected one line of 10 to 1000 characters",
                  "owner": "--owner: expected one line, a name or an address"}  # fmt: skip
        raise BadInput("; ".join(wanted.get(name, name) for name in sorted(wrong))) from None


def waiver_said(run: Path, decision: Decision) -> str | None:
    """What a report says of the waiver beside a decision; None where there is none. No signature is verified here."""
    path = (run if run.is_dir() else run.parent) / WAIVER
    try:
        statement = parse_json(Statement, peek(path.read_bytes()), str(path))
        waiver = parse_json(Waiver, canonical.dumps(statement.predicate).encode(), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, BadInput) as error:
        return f"a waiver that cannot be read ({path}: {type(error).__name__}); checkweigh admit refuses it"
    if waiver.decision != decision.record_digest():
        return f"a waiver of another decision ({path}); checkweigh admit refuses it"
    return f"{waiver.sentence()}; its signature is checkweigh admit's to verify"
