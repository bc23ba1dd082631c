"""Two measurement sets -> paired samples, with every way in which they fail to pair. Pure.

Nothing is dropped in silence: an item that one arm lacks counts as that arm's failure; doubled or foreign
ids, misnamed scores and values off the metric's scale make the sample unusable, with the reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementSet, Observation, Scored
from checkweigh.records.metrics import METRICS
from checkweigh.stats.arrays import Bools, Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedSample:
    """One metric of both arms on the same n items; values of failed items are NaN.

    ``baseline``, ``candidate``: (n,) values in the metric's own unit (nats summed over a document for
    ``log_perplexity``, log tokens for ``log_length``). ``size``: (n,) tokens or bytes of a document, else 1.
    ``weights``: (n,) weight of an item in a pooled mean. ``problems``: why the sample must not be used.
    """

    metric: str
    baseline: Floats
    candidate: Floats
    size: Floats
    weights: Floats
    clusters: tuple[str, ...]
    identical: bool
    problems: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Bools, Bools]:
        """Which items failed in the baseline and in the candidate: two (n,) masks."""
        return np.isnan(self.baseline), np.isnan(self.candidate)


@dataclass(frozen=True, slots=True)
class _SetSample:
    """One set's contribution, before pooling."""

    baseline: Floats
    candidate: Floats
    size: Floats
    weights: Floats
    clusters: tuple[str, ...]
    identical: bool
    problems: tuple[str, ...]


def pair(
    metric: str,
    sets: Sequence[EvalSet],
    baseline: Mapping[str, MeasurementSet],
    candidate: Mapping[str, MeasurementSet],
    *,
    where: Mapping[str, str] | None = None,
) -> PairedSample:
    """The paired sample of one metric over one or more pooled sets (each stratum of each set weighs the same)."""
    parts: list[_SetSample] = []
    problems: list[str] = []
    for evalset in sets:
        name = evalset.card.name
        if name not in baseline or name not in candidate:
            missing = " and ".join(
                a for a, m in (("baseline", baseline), ("candidate", candidate)) if name not in m
            )
            problems.append(f"set {name} was not measured on the {missing}")
            continue
        parts.append(_set_sample(metric, evalset, baseline[name], candidate[name], where or {}))
    if not parts or not any(len(part.clusters) for part in parts):
        empty = np.zeros(0)
        return PairedSample(
            metric=metric, baseline=empty, candidate=empty, size=empty, weights=empty, clusters=(),
            identical=False, problems=(*problems, "no items"),
        )  # fmt: skip
    return PairedSample(
        metric=metric,
        baseline=np.concatenate([part.baseline for part in parts]),
        candidate=np.concatenate([part.candidate for part in parts]),
        size=np.concatenate([part.size for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        clusters=tuple(label for part in parts for label in part.clusters),
        identical=all(part.identical for part in parts),
        problems=(*problems, *(problem for part in parts for problem in part.problems)),
    )


def _set_sample(
    metric: str,
    evalset: EvalSet,
    baseline: MeasurementSet,
    candidate: MeasurementSet,
    where: Mapping[str, str],
) -> _SetSample:
    name = evalset.card.name
    items = [item for item in evalset.items if item.stratum == where.get("stratum", item.stratum)]
    problems = _unpaired(evalset, baseline, candidate)
    by_arm = [{o.item: o for o in arm.observations} for arm in (baseline, candidate)]
    rows = [tuple(arm.get(item.id) for arm in by_arm) for item in items]
    values = np.array([[_value(metric, o) for o in row] for row in rows], dtype=np.float64).reshape(-1, 2)
    sizes = np.array([[_size(metric, o) for o in row] for row in rows], dtype=np.float64).reshape(-1, 2)
    problems += _implausible(metric, rows, values, sizes, name)
    strata = Counter(item.stratum for item in items)
    return _SetSample(
        baseline=values[:, 0],
        candidate=values[:, 1],
        size=np.where(np.isnan(sizes[:, 0]), sizes[:, 1], sizes[:, 0]),
        weights=np.array([1.0 / strata[item.stratum] for item in items]),
        clusters=tuple(f"{name}/{item.id if metric == 'failed' else item.cluster}" for item in items),
        identical=all(
            b is not None and c is not None and b.raw is not None and b.raw == c.raw for b, c in rows
        ),
        problems=tuple(problems),
    )


def _unpaired(evalset: EvalSet, baseline: MeasurementSet, candidate: MeasurementSet) -> list[str]:
    """Ways in which two records cannot be about the same items."""
    name, known = evalset.card.name, {item.id for item in evalset.items}
    problems = []
    if baseline.key == candidate.key:
        problems.append(f"set {name}: a record would be compared with itself")
    for arm, record in (("baseline", baseline), ("candidate", candidate)):
        if record.key.evalset != evalset.card.digest:
            problems.append(f"set {name}: the {arm} was measured on another version of the set")
        counts = Counter(o.item for o in record.observations)
        doubled = [item for item, count in counts.items() if count > 1]
        foreign = [item for item in counts if item not in known]
        if doubled:
            problems.append(f"set {name}: the {arm} has {len(doubled)} items twice, such as {doubled[0]}")
        if foreign:
            problems.append(f"set {name}: the {arm} has {len(foreign)} unknown items, such as {foreign[0]}")
    if baseline.key.scorer != candidate.key.scorer or baseline.key.protocol != candidate.key.protocol:
        problems.append(f"set {name}: the arms were scored by different scorers or protocols")
    return problems


def _value(metric: str, observation: Observation | None) -> float:
    """The metric's value; NaN for a failed or missing item, infinity for a score that is not there."""
    failed = observation is None or not isinstance(observation.outcome, Scored)
    if metric == "failed":
        return float(failed)
    if failed:
        return np.nan
    assert observation is not None
    assert isinstance(observation.outcome, Scored)
    values = observation.outcome.values
    match metric:
        case "log_perplexity":
            return values.get("nll", math.inf)
        case "bits_per_byte":
            return values.get("nll", math.inf) / math.log(2)
        case "log_length":
            tokens = observation.output_tokens
            return math.inf if tokens is None else math.log(max(tokens, 1))
        case "accuracy":
            return values.get("correct", math.inf)
        case "bad_ending":
            return max(values.get(name, math.inf) for name in ("truncated", "empty", "looping"))
    return values.get(metric, math.inf)


def _size(metric: str, observation: Observation | None) -> float:
    key = {"log_perplexity": "tokens", "bits_per_byte": "bytes"}.get(metric)
    if key is None:
        return 1.0
    if observation is None or not isinstance(observation.outcome, Scored):
        return np.nan
    return observation.outcome.weights.get(key, math.inf)


def _implausible(
    metric: str, rows: Sequence[tuple[Observation | None, ...]], values: Floats, sizes: Floats, name: str
) -> list[str]:
    """Scores that are absent or off the scale, and documents whose size differs between the arms."""
    problems = []
    if np.isinf(values).any() or np.isinf(sizes).any():
        arm = "baseline" if np.isinf(values[:, 0]).any() or np.isinf(sizes[:, 0]).any() else "candidate"
        problems.append(f"set {name}: the {arm} has no '{metric}' for some items")
    estimator = METRICS[metric].estimator
    finite = values[np.isfinite(values)]
    if estimator == "graded" and finite.size and (finite.min() < 0 or finite.max() > 1):
        problems.append(f"set {name}: scores outside [0, 1] ({finite.min():g} to {finite.max():g}); percent?")
    if estimator == "binary" and not np.isin(finite, (0.0, 1.0)).all():
        problems.append(f"set {name}: '{metric}' has values other than 0 and 1")
    both = ~np.isnan(sizes).any(axis=1)
    if metric == "log_perplexity" and (sizes[both, 0] != sizes[both, 1]).any():
        problems.append(f"set {name}: the arms count tokens differently; use bits_per_byte")
    if metric == "bits_per_byte" and (sizes[both, 0] != sizes[both, 1]).any():
        problems.append(f"set {name}: the arms scored different texts")
    if estimator == "ratio" and (sizes[both] <= 0).any():
        problems.append(f"set {name}: documents without tokens")
    return problems
