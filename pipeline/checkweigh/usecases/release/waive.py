"""Waivers of verdicts that were no pass: signed, shown wherever the verdict is shown, and read back with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from checkweigh import canonical
from checkweigh.attest.envelope import read_unverified, seal
from checkweigh.attest.keys import PrivateKey, private_key
from checkweigh.attest.statement import waiver_statement
from checkweigh.errors import BadInput
from checkweigh.files import write_atomic
from checkweigh.progress import Say
from checkweigh.records.attestation import Statement, Waiver
from checkweigh.records.decision import Decision, Verdict
from checkweigh.records.yaml.document import parse_json
from checkweigh.report.waived import write_waived
from checkweigh.sinks.mlflow_target import resolve_target
from checkweigh.sinks.webhook_payload import WaiverNotice, webhook_target
from checkweigh.sources.pin import read_pinned
from checkweigh.usecases.ci.run import show_waived
from checkweigh.usecases.deliver.webhook import announce
from checkweigh.usecases.read_decision import decision_folder, read_decision
from checkweigh.usecases.release.registry import show_waiver

WAIVER = "waiver.json"
MAX_LIFETIME = timedelta(days=90)  # an emergency that lasts longer is a policy


@dataclass(frozen=True, slots=True, kw_only=True)
class WaiverRequest:
    """What ``checkweigh waive`` was asked. ``run`` is a gate's directory or its decision.json; ``lifetime`` starts now.

    ``key`` is a PEM file or ``env:NAME``; ``notify`` and ``mlflow`` are the options of these names.
    """

    run: Path
    manifest: Path
    reason: str
    owner: str
    lifetime: timedelta
    key: str
    notify: str | None = None
    mlflow: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVerdict:
    """A decision on disk. ``waiver`` is a sentence about the waiver beside it, None where there is none."""

    decision: Decision
    folder: Path
    waiver: str | None


def waive(request: WaiverRequest, say: Say, show: Callable[[Waiver], None]) -> Waiver:
    """Sign a waiver and make it visible everywhere.

    1. Read the webhook, the MLflow address and the key, which must not turn out wrong at the end.
    2. Sign and write the waiver (``sign_waiver``); ``show`` is called with it before anything is sent.
    3. Announce it to the webhook and put it on the gate's run in MLflow, where these are configured.

    Raises BadInput as ``sign_waiver`` does, RegistryError when MLflow cannot be told.
    """
    receiver, target = webhook_target(request.notify), resolve_target(request.mlflow)
    key = private_key(request.key)
    waiver = sign_waiver(request.run, request.manifest, request.reason, request.owner, request.lifetime, key)
    show(waiver)
    say(f"{waiver.sentence()}: {decision_folder(request.run) / WAIVER}")
    if receiver is not None:
        notice = WaiverNotice(owner=waiver.owner, reason=waiver.reason, expires=waiver.expires)
        announce(read_decision(request.run), receiver, say, notice)
    if target is not None:
        show_waiver(waiver, target, say)
    return waiver


def sign_waiver(
    run: Path, manifest: Path, reason: str, owner: str, lifetime: timedelta, key: PrivateKey
) -> Waiver:
    """Write a signed waiver of a run's verdict beside it, and into its reports.

    Raises BadInput for a pass, which needs none; for a gate that broke, which decided nothing; for a manifest that is
    not the gated candidate; and for a lifetime outside of (0, ``MAX_LIFETIME``].
    """
    decision = read_decision(run)
    out = decision_folder(run)
    _, lock = read_pinned(manifest)
    if decision.outdated:
        raise BadInput(f"{out}: {decision.outdated}")
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
    if not timedelta(0) < lifetime <= MAX_LIFETIME:
        raise BadInput(f"--expires: expected more than nothing and at most {MAX_LIFETIME.days}d")
    now = datetime.now(UTC).replace(microsecond=0)
    waiver = _validated(
        candidate=decision.candidate.pins, candidate_name=decision.candidate.name, policy=decision.policy,
        decision=decision.record_digest(), verdict=decision.verdict, reason=reason, owner=owner,
        issued=now.isoformat(), expires=(now + lifetime).isoformat(),
    )  # fmt: skip
    sealed = seal(waiver_statement(waiver, lock.pins), key)
    write_waived(out, waiver.sentence())
    show_waived(out, waiver.sentence())
    write_atomic(out / WAIVER, sealed)
    return waiver


def _validated(**fields: object) -> Waiver:
    """The record. BadInput that names the option of every field that is not valid."""
    from pydantic import ValidationError

    try:
        return Waiver.model_validate(fields)
    except ValidationError as error:
        wrong = {str(e["loc"][0]) for e in error.errors() if e["loc"]}
        expected = {"reason": "--reason: expected one line of 10 to 1000 characters",
                    "owner": "--owner: expected one line, a name or an address"}  # fmt: skip
        raise BadInput("; ".join(expected.get(name, name) for name in sorted(wrong))) from None


def read_stored_verdict(run: Path) -> StoredVerdict:
    """The decision of a gate's directory and the waiver beside it. Raises BadInput as ``read_decision`` does."""
    decision, folder = read_decision(run), decision_folder(run)
    return StoredVerdict(decision=decision, folder=folder, waiver=_describe_waiver(folder, decision))


def _describe_waiver(folder: Path, decision: Decision) -> str | None:
    """What a report says of the waiver beside a decision; None where there is none. No signature is verified here."""
    path = folder / WAIVER
    try:
        statement = parse_json(Statement, read_unverified(path.read_bytes()), str(path))
        waiver = parse_json(Waiver, canonical.dumps(statement.predicate).encode(), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, BadInput) as error:
        return f"a waiver that cannot be read ({path}: {type(error).__name__}); checkweigh admit refuses it"
    if waiver.decision != decision.record_digest():
        return f"a waiver of another decision ({path}); checkweigh admit refuses it"
    return f"{waiver.sentence()}; its signature is checkweigh admit's to verify"
