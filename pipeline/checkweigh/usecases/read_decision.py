"""A stored decision, read back, and the measurements that it was made from."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from checkweigh.decision.slices import merge_measurements
from checkweigh.errors import BadInput
from checkweigh.records.decision import Decision
from checkweigh.records.measurement import MeasurementSet
from checkweigh.records.yaml.document import parse_json
from checkweigh.store import UNVERIFIED_WORDS, Store


def read_decision(run: Path) -> Decision:
    """The decision in a gate's directory, or in the file ``run``. Raises BadInput when it is absent or damaged."""
    path = run / "decision.json" if run.is_dir() else run
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: expected the decision of a finished gate, found none ({error.strerror})"
        ) from None
    return parse_json(Decision, data, str(path))


def decision_folder(run: Path) -> Path:
    """The directory of a gate that is named by itself or by its ``decision.json``."""
    return run if run.is_dir() else run.parent


def read_measurements(
    store: Store, decision: Decision
) -> tuple[dict[str, dict[str, MeasurementSet]], tuple[str, ...]]:
    """Role -> set -> the measurements that a decision names; and a name for each that is lost or no evidence.

    Raises StoreError for a damaged measurement.
    """
    arms = {"baseline": decision.baseline, "candidate": decision.candidate, "anchor": decision.anchor}
    by_role: dict[str, dict[str, MeasurementSet]] = {}
    lost = []
    for role, arm in arms.items():
        parts: dict[str, list[MeasurementSet]] = defaultdict(list)
        for place, digest in arm.measurements.items() if arm else ():
            if store.exists_digest(digest):
                parts[place.partition("@")[0]].append(store.read_digest(digest))
            else:
                why = f" ({UNVERIFIED_WORDS})" if store.is_unverified_digest(digest) else ""
                lost.append(f"{place} on the {role}{why}")
        by_role[role] = {name: merge_measurements(records) for name, records in parts.items()}
    return by_role, tuple(lost)
