"""What is read back: decisions of earlier gates, and the schemas of all documents."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from checkweigh.decision.looks import merged
from checkweigh.errors import BadInput
from checkweigh.guard.guard_policy import GuardPolicy
from checkweigh.records.base import Record
from checkweigh.records.decision import Decision
from checkweigh.records.evalset import Card
from checkweigh.records.manifest import Lock, Manifest
from checkweigh.records.measurement import MeasurementSet
from checkweigh.records.policy import Policy
from checkweigh.records.yaml.document import parse_json
from checkweigh.store import Store

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


def measured(
    store: Store, decision: Decision
) -> tuple[dict[str, dict[str, MeasurementSet]], tuple[str, ...]]:
    """Role -> set -> the measurements that a decision names, and those that are gone. StoreError for a damaged one."""
    arms = {"baseline": decision.baseline, "candidate": decision.candidate, "anchor": decision.anchor}
    found: dict[str, dict[str, MeasurementSet]] = {}
    lost = []
    for role, arm in arms.items():
        parts: dict[str, list[MeasurementSet]] = defaultdict(list)
        for place, digest in arm.measurements.items() if arm else ():
            if store.holds(digest):
                parts[place.partition("@")[0]].append(store.read_digest(digest))
            else:
                lost.append(f"{place} on the {role}")
        found[role] = {name: merged(records) for name, records in parts.items()}
    return found, tuple(lost)


def json_schema(kind: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of one kind of document."""
    if kind not in DOCUMENTS:
        raise BadInput(f"schema: expected one of {', '.join(DOCUMENTS)}, found '{kind}'")
    return DOCUMENTS[kind].model_json_schema(by_alias=True)
