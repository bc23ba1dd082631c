"""MLflow's model registry: promotion behind a pass, rollback, and champions as baselines.

Everything that talks to a server happens in ``sinks.registry``, in a process with a limit. A server that is down, slow
or wrong is RegistryError, exit 4, and the alias is where it was, unless the text says that a write was under way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkweigh import canonical
from checkweigh.attest.bindings import content_refusals
from checkweigh.attest.envelope import MAX_ENVELOPE_BYTES, unseal
from checkweigh.attest.keys import public_key
from checkweigh.attest.rules import signed_pass_refusals
from checkweigh.attest.statement import attested_part
from checkweigh.errors import BadDocument, BadInput, CheckweighError, ExitCode, RegistryError
from checkweigh.files import write_atomic
from checkweigh.progress import Say
from checkweigh.records.attestation import Waiver
from checkweigh.records.decision import Decision, Verdict
from checkweigh.records.manifest import Lock, Manifest
from checkweigh.records.yaml.document import load_json, parse, parse_json
from checkweigh.report.safe import one_line
from checkweigh.sinks.mlflow_target import INSTALL, Target, installed
from checkweigh.sinks.sender_process import SenderResult, mlflow_limit_s, run_sender
from checkweigh.sources.cache import cache_root
from checkweigh.sources.pin import read_pinned
from checkweigh.usecases.read_decision import decision_folder, read_decision
from checkweigh.usecases.release.attest import ATTESTATION
from checkweigh.usecases.release.policy_content import read_policy_content

MODULE = "checkweigh.sinks.registry"
_ALIAS = "look where the alias is before you try again: the same command goes on, or says why not"
_AGAIN = {
    "promote": _ALIAS,
    "rollback": _ALIAS,
    "resolve": "the baseline is not known, so nothing was measured",
    "waived": "the waiver is written and signed, and is not to be seen in MLflow: do the same again",
}
NAME = r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}"
ALIAS = r"(?!v\d+$|latest$|previous$)[a-z][a-z0-9_-]{0,60}"
MODELS = re.compile(rf"models:/+({NAME})(?:@({ALIAS})|/([1-9][0-9]{{0,8}}))")


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """The result of a promotion or a rollback: the alias's version, or every reason why it did not move."""

    refusals: tuple[str, ...] = ()
    version: str = ""
    text: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """0 the alias is there, 1 refused."""
        return ExitCode.BLOCK if self.refusals else ExitCode.PASS

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"refusals": list(self.refusals), "version": self.version or None, "text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryTarget:
    """A registered model in a registry, and the alias that is moved."""

    target: Target
    model: str
    alias: str


def registry_target(target: Target | None, model: str, alias: str) -> RegistryTarget:
    """The model and alias to move. Raises BadInput for names that a registry refuses, or without a registry."""
    if target is None:
        raise BadInput("--mlflow: expected the address of a model registry, found none")
    if not installed("sqlalchemy"):
        raise BadInput(f"the model registry needs MLflow, which is not installed here; {INSTALL}")
    if not re.fullmatch(NAME, model):
        raise BadInput(f"--model: expected letters, digits, '.', '_', '-' and blanks, found {model[:100]!r}")
    if not re.fullmatch(ALIAS, alias):
        wanted = "a lower-case word other than previous, latest and v1, v2, ..."
        raise BadInput(f"--alias: expected {wanted}, found {alias[:100]!r}")
    return RegistryTarget(target=target, model=model, alias=alias)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRequest:
    """What ``checkweigh promote`` was asked. ``run``: a gate's directory. ``first``: there is no champion yet.

    ``key``: a public key, by which the decision must be signed. ``evalsets``: digests of sets that are not beside the
    policy.
    """

    run: Path
    policy: Path
    where: RegistryTarget
    first: bool = False
    key: Path | None = None
    evalsets: Mapping[str, str] = field(default_factory=dict)
    accept_unverified: bool = False


def promote(request: PromotionRequest) -> AliasMove:
    """Register a run's candidate and move the alias, only on a pass of that policy against the champion.

    1. Here: the verdict, what it was measured on, and with a key the signature of just this decision. All refusals at
       once.
    2. In the registry: that the champion is the gate's baseline, one promotion at a time (sinks.registry).
    """
    decision, key, where = read_decision(request.run), request.key, request.where
    content = read_policy_content(request.policy, request.evalsets)
    if decision.outdated:
        return AliasMove(refusals=(f"outdated: {decision.outdated}",))
    refusals = (
        *_verdict_refusals(decision),
        *map(str, content_refusals(decision, content, accept_unverified=request.accept_unverified)),
        *(_signature_refusals(request.run, decision, key) if key else ()),
    )
    if refusals:
        return AliasMove(refusals=refusals)
    candidate = decision.candidate
    tags = {
        "pins": candidate.pins, "manifest": candidate.manifest, "name": candidate.name,
        "baseline": decision.baseline.pins, "policy": decision.policy, "verdict": decision.verdict.value,
        "signed": "yes" if key else "no",
    }  # fmt: skip
    text = f"{candidate.name}: {decision.verdict.value} against {decision.baseline.name} by {decision.policy_name}"
    return _alias_move(
        _ask(where.target, "promote", model=where.model, alias=where.alias, first=request.first, tags=tags,
             decision=decision.reached, baseline=decision.baseline.pins, description=one_line(text))
    )  # fmt: skip


def rollback(where: RegistryTarget, reason: str) -> AliasMove:
    """Move the alias back to the version that was there before."""
    kept = one_line(reason, 1000)
    return _alias_move(_ask(where.target, "rollback", model=where.model, alias=where.alias, reason=kept))


def is_registered(source: Path) -> bool:
    """Whether a baseline is named by the registry."""
    return str(source).startswith("models:/")


def registered_baseline(source: Path, target: Target | None) -> tuple[Path, str]:
    """The manifest of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` as of now, and a note that names its version.

    It is put below CHECKWEIGH_HOME with its lock; ``verify`` then holds both against the files. A manifest in
    ``manifests/`` with the very same pins is used in its place: its relative paths lead somewhere.
    """
    found = registered_manifest(source, target)
    pins = canonical.short(found.lock.pins.record_digest())
    note = f"baseline {found.shown} was version {found.version}, {found.manifest.name}, pins {pins}"
    return _manifest_path(found), note


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredManifest:
    """What a registry holds of a version: ``files`` are the texts of manifest and lock. ``shown``: as it was named."""

    shown: str
    version: str
    manifest: Manifest
    lock: Lock
    files: dict[str, str]


def registered_manifest(source: Path, target: Target | None) -> RegisteredManifest:
    """The version that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` stands for now.

    Raises BadInput for a name that is none and for a version that an older Checkweigh registered, RegistryError where
    the registry does not answer or holds no manifest with its lock.
    """
    shown = str(source)
    named = MODELS.fullmatch(shown)
    if named is None:
        raise BadInput(f"{shown[:200]}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    registry_target(target, named[1], named[2] or "champion")
    assert target is not None
    answer = _ask(target, "resolve", model=named[1], alias=named[2], version=named[3], shown=shown)
    if "refused" in answer:
        raise BadInput(f"{shown}: {one_line(answer['refused'], 500)}")
    try:
        version, pins, files = str(answer["version"]), str(answer["pins"]), answer["files"]
        _refuse_old_lock(shown, version, files["manifest.lock.json"])
        lock = parse_json(Lock, files["manifest.lock.json"].encode(), f"{shown} (lock)")
        manifest = parse(Manifest, files["manifest.yaml"].encode(), f"{shown} (manifest)")
    except (KeyError, TypeError, AttributeError, BadDocument) as error:
        raise RegistryError(
            f"{shown}: what the registry holds is no manifest with its lock ({error})"
        ) from None
    if lock.pins.record_digest() != pins or canonical.digest(manifest.settings()) != lock.pins.manifest:
        raise RegistryError(
            f"{shown}: version {version} says pins {canonical.short(pins)}, its lock says others"
        )
    return RegisteredManifest(shown=shown, version=version, manifest=manifest, lock=lock, files=dict(files))


def _refuse_old_lock(shown: str, version: str, lock: str) -> None:
    """BadInput for the lock of an older Checkweigh: its pins cannot be compared with those of today."""
    if load_json(lock.encode(), shown).get("schema") == "checkweigh/lock@1":
        raise BadInput(
            f"{shown}: version {version} was registered by an older Checkweigh, whose pins are not those of today: pin "
            "its manifest again, gate it, remove the alias and promote it with --first (docs/upgrading.md)"
        )


def _manifest_path(found: RegisteredManifest) -> Path:
    """Our own manifest of that name where it has the same pins, else the registry's, written below CHECKWEIGH_HOME."""
    manifest, lock, files, shown = found.manifest, found.lock, found.files, found.shown
    local = Path("manifests") / f"{manifest.name}.yaml"
    try:
        if read_pinned(local)[1].pins.record_digest() == lock.pins.record_digest():
            return local
    except CheckweighError:
        pass  # none of that name, or another one: the registry's it is
    relative = sorted(set(_relative_sources(manifest.model_dump(mode="json"))))
    if relative:
        raise BadInput(
            f"{shown}: its manifest names {', '.join(relative)}, relative to where it was; "
            f"expected {local} with its pins"
        )
    folder = cache_root() / "registry" / lock.pins.record_digest().removeprefix("sha256:")[:32]
    path = folder / f"{manifest.name}.yaml"
    write_atomic(path, files["manifest.yaml"].encode())
    write_atomic(path.with_suffix(".lock.json"), files["manifest.lock.json"].encode())
    return path


def _relative_sources(value: Any) -> Iterator[str]:
    """``path:`` sources anywhere in a manifest that are not absolute."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _relative_sources(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _relative_sources(inner)
    elif isinstance(value, str) and value.startswith("path:") and not value.startswith(("path:/", "path:~")):
        yield value


def show_waiver(waiver: Waiver, target: Target, say: Say) -> None:
    """Put a waiver on the gate's run in MLflow. Raises RegistryError when that cannot be done."""
    from checkweigh.report.markdown import plain

    values = {"owner": waiver.owner, "reason": waiver.reason, "expires": waiver.expires}
    tags = {name: one_line(value, 1000) for name, value in values.items()}
    sentence = plain(waiver.sentence(), 1500)  # a run's description is rendered as Markdown
    answer = _ask(target, "waived", decision=waiver.decision, tags=tags, sentence=sentence)
    where = target.shown
    say(
        f"mlflow: {'the waiver is on the run' if answer.get('run') else 'it has no run of that gate'} ({where})"
    )


def _verdict_refusals(decision: Decision) -> Iterator[str]:
    if decision.verdict is not Verdict.PASS:
        yield f"verdict: {decision.verdict.value}, not a pass (a waiver admits, it does not promote)"


def _signature_refusals(run: Path, decision: Decision, key: Path) -> Iterator[str]:
    path = decision_folder(run) / ATTESTATION
    public = public_key(key)
    try:
        with path.open("rb") as file:
            envelope = unseal(file.read(MAX_ENVELOPE_BYTES + 1), public)
    except OSError as error:
        yield f"attestation: {path} cannot be read ({error.strerror}); a signed pass is required"
        return
    yield from map(str, signed_pass_refusals(envelope, attested_part(decision, None)))


def _ask(target: Target, act: str, **request: Any) -> dict[str, Any]:
    """The registry's reply. RegistryError for anything that is none."""
    result = run_sender(MODULE, target, {"act": act, **request}, mlflow_limit_s())
    if result.code == 0:
        try:
            reply = json.loads(result.out)
            if isinstance(reply, dict):
                return reply
        except ValueError:
            pass
        result = SenderResult(code=1, why="its answer is no answer")
    how = "failed" if result.reachable else "does not answer"
    raise RegistryError(f"{target.shown}: {how} ({result.why}); {_AGAIN[act]}")


def _alias_move(answer: dict[str, Any]) -> AliasMove:
    if "refused" in answer:
        return AliasMove(refusals=(one_line(str(answer["refused"]), 1000),))
    try:
        return AliasMove(version=str(answer["version"]), text=one_line(str(answer["text"]), 1000))
    except KeyError:
        raise RegistryError("the registry's answer says neither that the alias moved nor why not") from None
