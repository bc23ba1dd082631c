"""Small records for tests: sets, measurements and policies made to order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from checkweigh import canonical
from checkweigh.decision.compare import compare
from checkweigh.decision.pairing import pair
from checkweigh.decision.verdict import Judgement, all_checks, decide
from checkweigh.progress import no_progress
from checkweigh.records.evalset import SCORER_OF, Card, Choice, EvalSet, Generation, Item, Scorer, Text
from checkweigh.records.measurement import (
    EngineIdentity,
    Failed,
    MeasurementKey,
    MeasurementSet,
    Observation,
    Provenance,
    Scored,
    Stage,
    Verification,
)
from checkweigh.records.policy import Policy
from checkweigh.records.yaml.document import parse
from checkweigh.sources.digests import fresh_digests

WHEN = "2026-01-01T00:00:00+00:00"
IDENTITY = EngineIdentity(
    kind="fake", version="1", dtype="float32", device="cpu", quantization="none", threads=1,
    max_sequence=512, vocabulary_size=300, eos=(1,), packages={},
)  # fmt: skip


def evalset(kind: str, n: int, *, name: str = "set", cluster_size: int = 1, strata: int = 4) -> EvalSet:
    """A set of n items in clusters of the given size."""
    items = tuple(_item(kind, i, f"c{i // cluster_size}", f"s{i % strata}") for i in range(n))
    card = Card.model_validate_json(
        canonical.dumps(
            {
                "schema": "checkweigh/evalset@1", "name": name, "version": "1.0.0", "kind": kind, "licence": "CC0-1.0",
                "description": "made for a test", "source": "items.jsonl", "digest": canonical.digest([kind, name, n]),
                "scorer": {"name": SCORER_OF[kind], "version": 1}, "items": n,
                "clusters": len({item.cluster for item in items}),
                "strata": {f"s{s}": sum(item.stratum == f"s{s}" for item in items) for s in range(min(n, strata))},
            }
        )
    )  # fmt: skip
    return EvalSet(card=card, items=items)


def _item(kind: str, i: int, cluster: str, stratum: str) -> Item:
    base: dict[str, Any] = {"id": f"i{i}", "cluster": cluster, "stratum": stratum}
    messages = [{"role": "user", "content": f"question {i}?"}]
    more: dict[str, dict[str, Any]] = {
        "text": {"text": f"document number {i} of many words", "origin": "test"},
        "choice": {"messages": messages, "choices": ["yes", "no"], "answer": i % 2},
        "generation": {"messages": messages, "check": {"kind": "phrase", "values": ["yes"], "pattern": ""}},
    }
    model = {"text": Text, "choice": Choice, "generation": Generation}[kind]
    return model.model_validate_json(canonical.dumps(base | more[kind]))


def scored(kind: str, value: float, *, length: int = 8) -> Scored:
    """An outcome with one value for the kind: nll a token, probability, or 0/1 score."""
    if kind == "text":
        return Scored(values={"nll": value * 100}, weights={"tokens": 100.0, "bytes": 420.0})
    if kind == "choice":
        return Scored(values={"score": value, "correct": float(value > 0.5)}, weights={"items": 1.0})
    return Scored(
        values={"score": value, "truncated": 0.0, "empty": 0.0, "looping": 0.0}, weights={"items": 1.0}
    )


def measured(
    source: EvalSet, values: Sequence[float], *, arm: str = "baseline", tokens: Sequence[int] | None = None
) -> MeasurementSet:
    """A record with one value for each item; NaN makes a failed item."""
    kind, card = source.card.kind, source.card
    observations = []
    for i, (item, value) in enumerate(zip(source.items, values, strict=True)):
        failed = not np.isfinite(value)
        outcome = Failed(reason="engine", detail="made to fail") if failed else scored(kind, float(value))
        length = None if kind != "generation" or failed else (8 if tokens is None else int(tokens[i]))
        raw = None if failed else canonical.digest([item.id, repr(float(value)), length])
        observations.append(
            Observation(
                item=item.id, replicate=0, batch=i // 16, outcome=outcome, raw=raw, output_tokens=length
            )
        )
    key = MeasurementKey(
        pins=canonical.digest(arm), identity=canonical.digest("identity"), evalset=card.digest,
        scorer=Scorer(name=card.scorer.name, version=1), hardware="test", replicate=0,
    )  # fmt: skip
    return MeasurementSet(
        key=key, set_name=card.name, planned=len(source.items), identity=IDENTITY,
        stage=Stage(name=card.name, arm=arm, items=len(source.items), tokens=1, seconds=1.0),
        provenance=Provenance(
            tool="test", commit=None, dirty=None, packages={}, hardware="test", started=WHEN, ended=WHEN
        ),
        verified=Verification(files=canonical.digest("files"), bytes=1, seconds=0.1),
        observations=tuple(observations),
    )  # fmt: skip


def age(folder: Path) -> None:
    """Make a stored record one of the version before, which says nothing of what was verified."""
    path = folder / "record.json"
    data = json.loads(path.read_bytes()) | {"schema": "checkweigh/measurement@1"}
    del data["digest"], data["verified"]
    path.write_text(canonical.dumps(data | {"digest": canonical.digest(data)}))


def tensor_digest(path: Path) -> str:
    """Digest of a safetensors file's tensors, as pins of a derived model hold it."""
    return fresh_digests({"weights": (path, "tensors")}, no_progress, "")["weights"]


def check(**changes: Any) -> dict[str, Any]:
    """A critical check on the mean score of the set named 'set'."""
    return {
        "id": "quality", "metric": "score", "evalset": ["set"], "direction": "higher", "margin": 0.05,
        "because": "made for a test", "tier": "critical", "min_items": 100, "min_clusters": 40,
    } | changes  # fmt: skip


def policy(*checks: Mapping[str, Any], **changes: Any) -> Policy:
    """A policy of the given checks, through the parser that users meet."""
    document = {
        "schema": "checkweigh/policy@1",
        "name": "test",
        "checks": list(checks or [check()]),
    } | changes
    return parse(Policy, canonical.dumps(document).encode(), "test.yaml")


def judge(
    rules: Policy,
    source: EvalSet,
    baseline: MeasurementSet | Sequence[float],
    candidate: MeasurementSet | Sequence[float],
    intends: Sequence[str] = (),
) -> Judgement:
    """Pair, compare and decide on one set."""
    arms = [
        arm if isinstance(arm, MeasurementSet) else measured(source, arm, arm=name)
        for name, arm in (("baseline", baseline), ("candidate", candidate))
    ]
    name = source.card.name
    comparisons = {
        c.id: compare(
            c, pair(c.metric, [source], {name: arms[0]}, {name: arms[1]}, where=c.where), alpha=0.05
        )
        for c in all_checks(rules)
    }
    return decide(rules, comparisons, intends)


def with_observations(
    record: MeasurementSet, change: Callable[[list[Observation]], list[Observation]]
) -> MeasurementSet:
    """The record with its observations changed, as a damaged or hostile file would have them."""
    return record.model_copy(update={"observations": tuple(change(list(record.observations)))})
