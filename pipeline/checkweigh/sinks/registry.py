"""Moves aliases of MLflow's model registry: ``python -m checkweigh.sinks.registry``, a process of its own.

``sender_main`` has the request, the reply and the exit codes; the request names an ``act`` of ``ACTS`` and holds what
it needs. A refusal is a reply too, ``{"refused": why}``.

MLflow has no compare-and-set of an alias. What it does have is version numbers that its database hands out one by
one. So a promotion first creates its version, tagged with a claim on the champion that it was gated against, and only
then looks at the others: of several with the same claim, everybody but the lowest number sees the lowest, and yields.
The winner reads the alias again, moves it, and reads it back. What this cannot see is a hand that moves the alias
between that last reading and the move (two requests), without a claim: somebody in the UI, or a rollback. A claim
ends with its outcome, or after ten minutes when its process died; the processes that make one live a minute.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from checkweigh.sinks.mlflow import IncompleteUpload
from checkweigh.sinks.mlflow_content import COMPLETE, DECISION, PREFIX, ROLE
from checkweigh.sinks.sender_main import Unreachable, serve

PREVIOUS = "previous"
CLAIM, STATE, PINS = PREFIX + "claim", PREFIX + "state", PREFIX + "pins"
CLAIMED, YIELDED, MOVED = "claimed", "yielded", "moved"
STALE_MS = 600_000
ARM = "arms/candidate"
FILES = ("manifest.yaml", "manifest.lock.json")
Request = dict[str, Any]
Reply = dict[str, Any]


class RegistryRefusal(Exception):
    """The registry stays as it is, for a reason that is nobody's fault."""


def promote(client: Any, request: Request) -> Reply:
    """Register the candidate and move the alias to it, if the champion is what it was gated against.

    1. Find the gate's run; compare the champion's pins with those of the gate's baseline.
    2. Create the version with its claim; yield to a lower one with the same claim.
    3. Read the champion again; move ``previous``, then the alias; read both back.
    """
    name, alias = request["model"], request["alias"]
    run = _gate_run(client, request["decision"])
    if run is None:
        raise RegistryRefusal(
            "this MLflow has no complete run of that gate: send it first (gate --mlflow, mlflow sync)"
        )
    _ensure_model(client, name)
    champion = _version_at(client, name, alias)
    if champion is not None and champion.tags.get(DECISION) == request["decision"]:
        return {
            "version": champion.version,
            "text": f"models:/{name}@{alias} is version {champion.version} already",
        }
    _check_champion(champion, request)
    claimed = _create_claim(client, request, run, champion)
    try:
        _yield_to_earlier_claim(client, name, claimed)
        now = _version_at(client, name, alias)
        if _version_number(now) != _version_number(champion):
            versions = f"from version {_version_number(champion)} to {_version_number(now)}"
            raise RegistryRefusal(f"{alias} moved meanwhile, {versions}: gate against it")
        if champion is not None:
            client.set_registered_model_alias(name, PREVIOUS, champion.version)
        client.set_registered_model_alias(name, alias, claimed.version)
    except BaseException:
        client.set_model_version_tag(name, claimed.version, STATE, YIELDED)
        raise
    _verify_aliases(
        client, name, {alias: claimed.version} | ({} if champion is None else {PREVIOUS: champion.version})
    )
    client.set_model_version_tag(name, claimed.version, STATE, MOVED)
    before = "there was none" if champion is None else f"version {champion.version} is @{PREVIOUS}"
    return {
        "version": claimed.version,
        "text": f"models:/{name}@{alias} is version {claimed.version}; {before}",
    }


def rollback(client: Any, request: Request) -> Reply:
    """Move the alias back to ``previous``, which is then gone: nothing is rolled forward without a gate."""
    name, alias = request["model"], request["alias"]
    champion, previous = _version_at(client, name, alias), _version_at(client, name, PREVIOUS)
    if champion is None:
        raise RegistryRefusal(f"there is no models:/{name}@{alias}")
    if previous is None or previous.version == champion.version:
        raise RegistryRefusal(
            f"there is no version to go back to: models:/{name}@{PREVIOUS} names no other one"
        )
    client.set_registered_model_alias(name, alias, previous.version)
    client.set_model_version_tag(name, champion.version, f"{PREFIX}rolled_back", request["reason"] or "true")
    client.delete_registered_model_alias(name, PREVIOUS)
    _verify_aliases(client, name, {alias: previous.version, PREVIOUS: None})
    text = f"models:/{name}@{alias} is version {previous.version} again; {champion.version} was rolled back"
    return {"version": previous.version, "text": text}


def resolve_version(client: Any, request: Request) -> Reply:
    """The version that a name stands for now, and its manifest and lock."""
    name = request["model"]
    if request.get("alias"):
        version = _version_at(client, name, request["alias"])
    else:
        version = _read_or_none(client.get_model_version, name, request["version"])
    if version is None:
        raise RegistryRefusal(f"the registry has no {request['shown']}")
    if PINS not in version.tags or not version.run_id:
        raise RegistryRefusal(
            f"{request['shown']} is version {version.version}, which checkweigh promote did not register"
        )
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in FILES:
            files[file] = Path(client.download_artifacts(version.run_id, f"{ARM}/{file}", folder)).read_text()
    return {"version": version.version, "pins": version.tags[PINS], "files": files}


def tag_waiver(client: Any, request: Request) -> Reply:
    """Put a waiver on the gate's run: tags, and the first line of its description."""
    run = _gate_run(client, request["decision"])
    if run is None:
        return {"run": None}
    run_id, sentence = run.info.run_id, request["sentence"]
    for name, value in request["tags"].items():
        client.set_tag(run_id, f"{PREFIX}waiver.{name}", value)
    first, _, rest = run.data.tags.get("mlflow.note.content", "").partition("\n\n")
    note = rest if first.startswith("**WAIVED") else f"{first}\n\n{rest}"
    client.set_tag(run_id, "mlflow.note.content", f"**{sentence}**\n\n{note}")
    missing = [
        n
        for n, v in request["tags"].items()
        if client.get_run(run_id).data.tags.get(f"{PREFIX}waiver.{n}") != v
    ]
    if missing:
        raise IncompleteUpload(f"MLflow's run {run_id} lacks the waiver's {', '.join(missing)}")
    return {"run": run_id}


ACTS = {"promote": promote, "rollback": rollback, "resolve": resolve_version, "waived": tag_waiver}


def _gate_run(client: Any, decision: str) -> Any:
    """The complete run of a gate, in any experiment."""
    experiments = [e.experiment_id for e in client.search_experiments(max_results=1000)]
    query = f"tags.`{DECISION}` = '{decision}' and tags.`{ROLE}` = 'gate' and tags.`{COMPLETE}` = 'true'"
    runs = client.search_runs(experiments, filter_string=query, order_by=["attributes.run_id ASC"])
    return runs[0] if runs else None


def _ensure_model(client: Any, name: str) -> None:
    """The registered model, made if it is not there; two that make it at once both have it."""
    from mlflow.exceptions import MlflowException

    if _read_or_none(client.get_registered_model, name) is None:
        try:
            client.create_registered_model(name, description="Aliases are moved by checkweigh promote.")
        except MlflowException:
            if _read_or_none(client.get_registered_model, name) is None:
                raise


def _version_at(client: Any, name: str, alias: str) -> Any:
    return _read_or_none(client.get_model_version_by_alias, name, alias)


def _read_or_none(read: Any, *arguments: str) -> Any:
    """What ``read`` gives; None when the registry says that there is no such thing. Any other answer is an error."""
    from mlflow.exceptions import MlflowException

    try:
        return read(*arguments)
    except MlflowException as error:
        gone = error.error_code == "RESOURCE_DOES_NOT_EXIST"
        if gone or (error.error_code == "INVALID_PARAMETER_VALUE" and "not found" in str(error)):
            return None
        raise


def _check_champion(champion: Any, request: Request) -> None:
    """Whether the gate compared with what is the champion now."""
    shown = f"models:/{request['model']}@{request['alias']}"
    if champion is None and not request["first"]:
        raise RegistryRefusal(f"{shown} does not exist: --first says that this is the first release")
    if champion is not None and request["first"]:
        raise RegistryRefusal(
            f"{shown} is version {champion.version} already: --first is for when there is none"
        )
    if champion is not None and champion.tags.get(PINS) != request["baseline"]:
        text = f"the gate's baseline is not the champion: {shown} is version {champion.version}"
        raise RegistryRefusal(f"{text} with other pins; gate against it (gate {shown} CANDIDATE)")


def _create_claim(client: Any, request: Request, run: Any, champion: Any) -> Any:
    """A new version of the candidate that claims the champion's place."""
    tags = {f"{PREFIX}{name}": value for name, value in request["tags"].items()}
    tags |= {
        DECISION: request["decision"],
        CLAIM: f"{request['alias']} after {_version_number(champion)}",
        STATE: CLAIMED,
    }
    return client.create_model_version(
        request["model"], source=f"runs:/{run.info.run_id}/{ARM}", run_id=run.info.run_id, tags=tags,
        description=request["description"], await_creation_for=0,
    )  # fmt: skip


def _yield_to_earlier_claim(client: Any, name: str, claimed: Any) -> None:
    """RegistryRefusal, if a lower version makes the same claim and still stands."""
    for other in client.search_model_versions(f"name = '{name}'", max_results=1000):
        if (
            int(other.version) < int(claimed.version)
            and other.tags.get(CLAIM) == claimed.tags[CLAIM]
            and other.tags.get(STATE) == CLAIMED
            and claimed.creation_timestamp - other.creation_timestamp < STALE_MS
        ):
            raise RegistryRefusal(
                f"another promotion came first: version {other.version} claims {claimed.tags[CLAIM]}"
            )


def _version_number(version: Any) -> str:
    return "none" if version is None else str(version.version)


def _verify_aliases(client: Any, name: str, expected: dict[str, Any]) -> None:
    """IncompleteUpload, when the registry does not say of its aliases what was just written."""
    for alias, version in expected.items():
        current = _version_at(client, name, alias)
        if _version_number(current) != ("none" if version is None else str(version)):
            raise IncompleteUpload(
                f"models:/{name}@{alias} is version {_version_number(current)}, although {version} was written"
            )


def _handle(request: Request) -> Reply:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=request["uri"], registry_uri=request["uri"])
    try:
        experiments = client.search_experiments(max_results=1)
    except MlflowException as error:
        raise Unreachable(str(error)) from error
    if not experiments:  # an empty answer reads as "nothing there", which would be believed of an alias too
        raise IncompleteUpload("it names no experiment at all, which MLflow would")
    try:
        return ACTS[request["act"]](client, request)
    except RegistryRefusal as error:
        return {"refused": str(error)}


if __name__ == "__main__":
    sys.exit(serve(_handle))
