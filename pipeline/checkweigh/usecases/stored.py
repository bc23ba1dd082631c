"""What is read back: decisions of earlier gates, and the schemas of all documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkweigh.errors import BadInput
from checkweigh.guard.policy import GuardPolicy
from checkweigh.records.base import Record
from checkweigh.records.decision import Decision
from checkweigh.records.document import parse_json
from checkweigh.records.evalset import Card
from checkweigh.records.manifest import Lock, Manifest
from checkweigh.records.policy import Policy

DOCUMENTS: dict[str, type[Record]] = {
    "manifest": Manifest,
    "policy": Policy,
    "evalset": Card,
    "lock": Lock,
    "decision": Decision,
    "guard": GuardPolicy,
}


def read_decision(run: Path) -> Decision:
    """The decision of a gate's directory. BadInput when there is none, or it is damaged."""
    path = run / "decision.json" if run.is_dir() else run
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: expected the decision of a finished gate, found none ({error.strerror})"
        ) from None
    return parse_json(Decision, data, str(path))


def json_schema(kind: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of one kind of document."""
    if kind not in DOCUMENTS:
        raise BadInput(f"schema: expected one of {', '.join(DOCUMENTS)}, found '{kind}'")
    return DOCUMENTS[kind].model_json_schema(by_alias=True)
