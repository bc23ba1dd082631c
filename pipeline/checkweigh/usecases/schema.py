"""JSON Schemas of the documents that people write and programs read, for editors and validators."""

from __future__ import annotations

from typing import Any

from checkweigh.errors import BadInput
from checkweigh.guard.guard_policy import GuardPolicy
from checkweigh.records.base import Record
from checkweigh.records.decision import Decision
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


def json_schema(kind: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of one kind of document. Raises BadInput for a kind that is not in ``DOCUMENTS``."""
    if kind not in DOCUMENTS:
        raise BadInput(f"schema: expected one of {', '.join(DOCUMENTS)}, found '{kind}'")
    return DOCUMENTS[kind].model_json_schema(by_alias=True)
