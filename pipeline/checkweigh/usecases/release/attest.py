"""After a gate: its verdict, and the candidate's weights where that can be done, signed beside decision.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from checkweigh import canonical
from checkweigh.attest import weights
from checkweigh.attest.envelope import seal
from checkweigh.attest.keys import PrivateKey, private_key
from checkweigh.attest.statement import decision_statement
from checkweigh.errors import BadInput, Broken, ExitCode, PinMismatch, Problem, SigningError
from checkweigh.files import write_atomic
from checkweigh.progress import Progress, Say, no_progress
from checkweigh.records.decision import Decision
from checkweigh.sources.pin import Resolved, lock_path, verify_files

ATTESTATION = "attestation.json"


def signing_key(where: str | None) -> PrivateKey | None:
    """The key of ``--attest``, read before anything is measured; None where nothing is to be signed."""
    return None if where is None else private_key(where)


def sign(
    decision: Decision,
    arms: Sequence[Resolved],
    out: Path,
    key: PrivateKey | None,
    say: Say,
    progress: Progress,
) -> ExitCode:
    """Attest a decision if there is a key. ``arms``: the candidate, then what it was compared with.

    Not PASS when a signature was asked for and there is none: BAD_INPUT when a file is no longer what is pinned, else
    BROKEN; ``say`` gets why.
    """
    if key is None:
        return ExitCode.PASS
    try:
        for line in attest(decision, arms, out, key, progress):
            say(line)
    except (BadInput, Broken) as error:
        say(f"attestation: NOT SIGNED: {error}")
        return error.exit_code
    return ExitCode.PASS


def attest(
    decision: Decision, arms: Sequence[Resolved], out: Path, key: PrivateKey, progress: Progress = no_progress
) -> tuple[str, ...]:
    """Sign a finished gate into ``out``; returns the lines that say so. When it raises, nothing signed is left there.

    1. Every file of every arm is read once more; PinMismatch for one that is not what is pinned.
    2. The candidate's weights are signed, where they are a directory of the user's own and the key can make a model
       signature.
    3. The verdict is signed, with the digest of that signature.
    """
    candidate, *_ = arms
    for arm in arms:
        if verify_files(arm.path, progress).pins != arm.pins:
            raise PinMismatch([_pinned_again(arm)])
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


def _pinned_again(arm: Resolved) -> Problem:
    return Problem(
        file=str(lock_path(arm.path)), line=None, path="pins", expected="the pins that were gated",
        found="others: it was pinned again meanwhile",
    )  # fmt: skip


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
