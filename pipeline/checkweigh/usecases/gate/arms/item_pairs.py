"""Items of both arms side by side, for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from checkweigh.records.evalset import EvalSet, Item, Text
from checkweigh.records.measurement import Failed, MeasurementSet, Observation
from checkweigh.report.worst_items import ItemPair


def item_pairs(
    sets: Sequence[EvalSet], baseline: Mapping[str, MeasurementSet], candidate: Mapping[str, MeasurementSet]
) -> list[ItemPair]:
    """One pair for each item that both arms measured; losses in nats a token, or in points of score."""
    pairs = []
    for evalset in sets:
        name = evalset.card.name
        if name not in baseline or name not in candidate:
            continue
        arms = [{o.item: o for o in records[name].observations} for records in (baseline, candidate)]
        pairs += [_pair(name, item, *(arm.get(item.id) for arm in arms)) for item in evalset.items]
    return pairs


def _pair(name: str, item: Item, baseline: Observation | None, candidate: Observation | None) -> ItemPair:
    text = isinstance(item, Text)
    values = [_value(observation, text) for observation in (baseline, candidate)]
    loss = None
    if values[0] is not None and values[1] is not None:
        loss = values[1] - values[0] if text else values[0] - values[1]
    return ItemPair(
        set_name=name, id=item.id, cluster=item.cluster, stratum=item.stratum,
        metric="nats/token" if text else "score", prompt=_prompt(item), baseline=values[0], candidate=values[1],
        loss=loss, baseline_text=baseline.text if baseline else None,
        candidate_text=candidate.text if candidate else None,
        baseline_tokens=baseline.output_tokens if baseline else None,
        candidate_tokens=candidate.output_tokens if candidate else None,
        note=_note(text, baseline, candidate),
        unscored=any(_unscored(observation, text) for observation in (baseline, candidate)),
    )  # fmt: skip


def _value(observation: Observation | None, text: bool) -> float | None:
    if observation is None or isinstance(observation.outcome, Failed):
        return None
    outcome = observation.outcome
    if not text:
        return outcome.values.get("score")
    nll, tokens = outcome.values.get("nll"), outcome.weights.get("tokens")
    return nll / tokens if nll is not None and tokens else None


def _unscored(observation: Observation | None, text: bool) -> bool:
    """Whether it was measured, and the measurement does not hold what items are ranked by."""
    measured = observation is not None and not isinstance(observation.outcome, Failed)
    return measured and _value(observation, text) is None


def _prompt(item: Item) -> str:
    if isinstance(item, Text):
        return item.text
    return "\n".join(f"{message.role}: {message.content}" for message in item.messages)


def _note(text: bool, *observations: Observation | None) -> str:
    notes = []
    for role, observation in zip(("baseline", "candidate"), observations, strict=True):
        if observation is None:
            notes.append(f"{role}: missing")
        elif isinstance(observation.outcome, Failed):
            notes.append(f"{role}: failed ({observation.outcome.reason}: {observation.outcome.detail})")
        elif _unscored(observation, text):
            notes.append(f"{role}: measured without a score")
    return "; ".join(notes)
