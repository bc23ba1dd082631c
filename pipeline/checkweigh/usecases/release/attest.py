"""After a gate: its verdict, and the candidate's weights where that can be done, signed beside decision.json."""

from __future__ import annotations

from pathlib import Path

from checkweigh import canonical
from checkweigh.attest import weights
from checkweigh.attest.envelope import seal
from checkweigh.attest.keys import PrivateKey, private_key
from checkweigh.attest.statement import decision_statement
from checkweigh.errors import Broken, SigningError
from checkweigh.files import write_atomic
from checkweigh.progress import Say
from checkweigh.records.decision import Decision
from checkweigh.sources.pin import Resolved

ATTESTATION = "attestation.json"


def signing_key(where: str | None) -> PrivateKey | None:
    """The key of ``--attest``, read before anything is measured; None where nothing is to be signed."""
    return None if where is None else private_key(where)


def sign(decision: Decision, candidate: Resolved, out: Path, key: PrivateKey | None, say: Say) -> bool:
    """Attest a decision if there is a key. False when a signature was asked for and failed; ``say`` gets why."""
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
    """Sign a finished gate into ``out``; returns the lines that say so. On SigningError nothing signed is left there.

    1. The weights, where they are a directory of the user's own and the key can make a model signature.
    2. The verdict, with the digest of that signature.
    """
    target = out / ATTESTATION
    signature, message = _sign_weights(candidate, out, key)
    try:
        digest = None if signature is None else canonical.digest_bytes(signature.read_bytes())
        write_atomic(target, seal(decision_statement(decision, candidate.pins, digest), key))
    except BaseException as error:
        for path in (target, out / weights.SIGNATURE):
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SigningError(f"{out}: the signature cannot be written ({error.strerror})") from None
        raise
    return (f"attestation: {target}, key {key.keyid[:12]}", message)


def _sign_weights(candidate: Resolved, out: Path, key: PrivateKey) -> tuple[Path | None, str]:
    if candidate.manifest.model.derive is not None:
        return None, "weights: derived, so the verdict names their tensors; no file of them is signed"
    if not candidate.model_dir.is_dir():
        return None, "weights: no directory; the verdict names their digests"
    if not key.elliptic:
        return None, "weights: the verdict names their digests; a model signature needs an ECDSA key"
    target = out / weights.SIGNATURE
    weights.sign_weights(candidate.model_dir, target, key)
    return target, f"weights: {target}, an OpenSSF model signature of {candidate.model_dir}"
