"""A finished gate as MLflow runs: the gate, and below it one run an arm. Pure.

Params are what was pinned, tags the verdict and every digest, metrics the numbers. Differences stand in the
metric's own direction (candidate minus baseline), as in the reports; what could not be estimated is absent. They are
named as MLflow names its own comparisons, ``compare/<8 digits of the baseline>/<check>/<statistic>``; the digits are of
the baseline's pins, not of a run, so that all gates against one baseline have the same columns.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath

from checkweigh import canonical
from checkweigh.decision import formatting
from checkweigh.records.comparison import Estimate, Inestimable
from checkweigh.records.decision import ArmRecord, CheckResult, Decision
from checkweigh.records.evalset import EvalSet
from checkweigh.records.manifest import Manifest, Pins
from checkweigh.records.measurement import MeasurementSet, Scored
from checkweigh.report.markdown import summary
from checkweigh.report.safe import clip, one_line, visible
from checkweigh.report.worst_items import ItemPair, worst_pairs
from checkweigh.sinks.items_table import TABLE
from checkweigh.sinks.mlflow_target import Target
from checkweigh.sinks.outbox import Bundle, DatasetInput, MlflowRun, MlflowTrace

EXPERIMENT = "checkweigh"  # and the model's name
TRACES = 10  # of the items that got worst; two for every item would bury a tracking server
PREFIX = "checkweigh."
DECISION, ROLE, COMPLETE = PREFIX + "decision", PREFIX + "role", PREFIX + "complete"
_NAME = 250  # MLflow's limits, with room: characters of a name, of a param or tag, of a run's description
_VALUE = 2000
_NOTE = 7000
_DIGEST = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEvidence:
    """One arm: what was pinned and what was measured, by set."""

    manifest: Manifest
    pins: Pins
    records: Mapping[str, MeasurementSet]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedGate:
    """A gate that has decided, with what its decision rests on. ``arms`` by role."""

    decision: Decision
    arms: Mapping[str, ArmEvidence]
    evalsets: tuple[EvalSet, ...]
    pairs: Sequence[ItemPair]


def build_bundle(finished: FinishedGate, target: Target, experiment: str, files: Sequence[str]) -> Bundle:
    """Everything MLflow is to hold of a finished gate."""
    decision = finished.decision
    roles = (("baseline", decision.baseline), ("candidate", decision.candidate))
    return Bundle(
        decision=decision.record_digest(), verdict=decision.verdict, experiment=experiment,
        destination=target.shown, secret=target.secret,
        started=_ms(decision.provenance.started), ended=_ms(decision.provenance.ended),
        runs=(_gate_run(decision), *(_arm_run(role, arm, finished) for role, arm in roles)),
        datasets=tuple(_dataset_input(evalset) for evalset in finished.evalsets), files=tuple(files),
        traces=worst_traces(decision, finished.pairs),
    )  # fmt: skip


def experiment_name(manifest: Manifest) -> str:
    """An experiment a model: of its source, so that versions, prompts and quantizations of one model share it."""
    source = manifest.model.source
    kind, _, rest = source.partition(":")
    if kind == "hf":
        model = rest.partition("@")[0]
    elif kind == "path":
        model = PurePath(rest).name or rest
    else:
        model = PurePath(rest.partition("/")[2]).stem or rest
    return mlflow_name(f"{EXPERIMENT}/{model}")


def worst_traces(decision: Decision, pairs: Sequence[ItemPair]) -> tuple[MlflowTrace, ...]:
    """The items that got worst, each as a trace; none of an error."""
    return tuple(_trace(decision, pair) for pair in worst_pairs(pairs, TRACES)) if decision.checks else ()


def _trace(decision: Decision, pair: ItemPair) -> MlflowTrace:
    facts = {
        "set": pair.set_name, "item": pair.id, "stratum": pair.stratum, "cluster": pair.cluster,
        "metric": pair.metric, "baseline": str(pair.baseline), "candidate": str(pair.candidate), "note": pair.note,
    }  # fmt: skip
    shown = {name: one_line(value) for name, value in facts.items() if value}
    return MlflowTrace(
        key=canonical.digest([decision.record_digest(), pair.set_name, pair.id]),
        name=one_line(f"worse: {pair.set_name} / {pair.id}", 200),
        prompt=visible(clip(pair.prompt, _VALUE)), facts=shown,
        baseline=_reply_or_value(pair, pair.baseline_text, pair.baseline),
        candidate=_reply_or_value(pair, pair.candidate_text, pair.candidate),
    )  # fmt: skip


def _reply_or_value(pair: ItemPair, text: str | None, value: float | None) -> str:
    """What an arm made of the item: its reply; where there is none (a text, a choice), what was measured."""
    if text is not None:
        return visible(clip(text, _VALUE))
    return one_line(pair.note or "failed") if value is None else f"{pair.metric} {value:.4g}"


def mlflow_name(name: str) -> str:
    """A name that MLflow takes for params, tags and metrics: ASCII letters, digits and ``_ - . / :`` or blanks."""
    return re.sub(r"[^A-Za-z0-9_\-./: ]", "_", name)[:_NAME]


def flatten(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every leaf of a JSON-like value; empty ones left out."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flatten(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, str):
        yield path, value
    elif value not in (None, [], ()):
        yield path, json.dumps(value, ensure_ascii=False)


def _texts(pairs: Mapping[str, str]) -> dict[str, str]:
    return {mlflow_name(name): one_line(value, _VALUE) for name, value in pairs.items()}


def _ms(iso: str) -> int:
    return round(datetime.fromisoformat(iso).timestamp() * 1000)


def _gate_run(decision: Decision) -> MlflowRun:
    arms = {"baseline": decision.baseline, "candidate": decision.candidate}
    params = {"policy": decision.policy_name} | {role: arm.name for role, arm in arms.items()}
    params |= {f"change.{c.path}": f"{c.baseline} -> {c.candidate}" for c in decision.changes}
    params |= {f"loaded.{d.field}": f"{d.baseline} -> {d.candidate}" for d in decision.effective_differences}
    tags = _common_tags(decision, "gate") | {
        f"{PREFIX}policy": decision.policy,
        f"{PREFIX}policy_name": decision.policy_name,
        f"{PREFIX}exit_code": str(int(decision.exit_code)),
        f"{PREFIX}hardware": decision.provenance.hardware,
        **{PREFIX + role: arm.name for role, arm in arms.items()},
        **({f"{PREFIX}no_effect": decision.no_effect} if decision.no_effect else {}),
        **{
            f"{PREFIX}unverified.{role}": ", ".join(arm.unverified)
            for role, arm in arms.items()
            if arm.unverified
        },
        **_attempt_tags(decision),
        **{f"{PREFIX}evalset.{name}": digest for name, digest in decision.evalsets.items()},
        **{PREFIX + f"{role}.{n}": d for role, arm in arms.items() for n, d in _digest_tags(arm).items()},
    }
    return MlflowRun(
        role="gate", name=one_line(f"{decision.verdict.upper()} {decision.candidate.name}"),
        params=_texts(params), tags=_texts(tags) | _display_tags(decision), metrics=_check_metrics(decision),
    )  # fmt: skip


def _attempt_tags(decision: Decision) -> dict[str, str]:
    """Which try it is, and how far it looked."""
    tags = {}
    if decision.attempt is not None:
        tags[f"{PREFIX}attempt"] = f"{decision.attempt.number} of {decision.attempt.of}"
    if decision.looks is not None:
        tags[f"{PREFIX}plan"] = decision.looks.plan
        tags[f"{PREFIX}looks"] = f"{len(decision.looks.made)} of {len(decision.looks.shares)}"
    return tags


def _display_tags(decision: Decision) -> dict[str, str]:
    """The run's description, and which artifact is a table."""
    parts = [_as_entities(p) for p in summary(decision, ()).split("\n\n") if not p.startswith("<details")]
    parts[0] = (
        parts[0].removeprefix(parts[0].partition("\n")[0]).lstrip()
        if parts[0].startswith("<!--")
        else parts[0]
    )
    note, room = [], _NOTE
    for part in parts:
        if len(part) > room:
            break
        note.append(part)
        room -= len(part) + 2
    tables = json.dumps([{"path": TABLE, "type": "table"}])
    return {"mlflow.note.content": "\n\n".join(note), "mlflow.loggedArtifacts": tables}


def _as_entities(markdown: str) -> str:
    """For MLflow's Markdown (showdown), which shows the backslash before these: as entities they are text anywhere."""
    return re.sub(r"\\(.)", lambda m: f"&#{ord(m[1])};" if m[1] in ":$^" else m[0], markdown)


def _common_tags(decision: Decision, role: str) -> dict[str, str]:
    provenance = decision.provenance
    tags = {
        DECISION: decision.record_digest(),
        ROLE: role,
        f"{PREFIX}verdict": decision.verdict.value,
        f"{PREFIX}tool": provenance.tool,
        "mlflow.source.name": "checkweigh gate",
        "mlflow.source.type": "LOCAL",
    }
    if provenance.commit is not None:
        tags |= {f"{PREFIX}git_commit": provenance.commit, "mlflow.source.git.commit": provenance.commit}
        tags |= {f"{PREFIX}git_dirty": json.dumps(provenance.dirty)}
        tags |= {f"{PREFIX}git_repository": provenance.repository} if provenance.repository else {}
    return tags


def _digest_tags(arm: ArmRecord) -> dict[str, str]:
    digests = {"manifest": arm.manifest, "pins": arm.pins}
    if arm.identity is not None:
        digests["identity"] = arm.identity
    return digests | {f"measurement.{name}": digest for name, digest in arm.measurements.items()}


def _check_metrics(decision: Decision) -> dict[str, float]:
    against = f"compare/{decision.baseline.pins.removeprefix('sha256:')[:8]}"
    metrics: dict[str, float] = {}
    for result in decision.checks:
        named = (
            (mlflow_name(f"{against}/{result.check.id}/{name}"), value)
            for name, value in _metrics_of_check(result).items()
        )
        metrics |= {name: value for name, value in named if value is not None}
    if decision.looks is not None and decision.looks.made:
        metrics |= {"looks": float(len(decision.looks.made)), "items": float(decision.looks.items)}
        metrics |= {"items_planned": float(decision.looks.planned)}
        if decision.looks.saved_seconds is not None:
            metrics["saved_seconds"] = decision.looks.saved_seconds
    return metrics | {"exit_code": float(decision.exit_code)}


def _metrics_of_check(result: CheckResult) -> dict[str, float | None]:
    """Numbers of one check; None is left out. ``ci_low`` and ``ci_high`` are one-sided bounds, as in the reports."""
    check, comparison = result.check, result.comparison
    metrics: dict[str, float | None] = {
        "passed": float(result.outcome in ("passed", "warning")),
        "margin": result.margin,
        "baseline_mean": comparison.baseline,
        "candidate_mean": comparison.candidate,
        "p_worse_adjusted": result.p_adjusted,
        "information": result.information,
        "pass_level": result.level,
    }
    if isinstance(comparison, Inestimable):
        return metrics
    metrics |= {"n_paired": float(comparison.pairs), "n_clusters": float(comparison.clusters)}
    if isinstance(comparison, Estimate):
        ends = [
            None if v is None else formatting.natural(check, v) for v in (comparison.low, comparison.high)
        ]
        low, high = ends if check.direction == "higher" else reversed(ends)
        metrics |= {"diff": formatting.natural(check, comparison.effect), "ci_low": low, "ci_high": high}
        metrics |= {"p_pass": comparison.p_pass, "p_worse": comparison.p_worse, "se": comparison.se}
    return metrics


def _arm_run(role: str, arm: ArmRecord, finished: FinishedGate) -> MlflowRun:
    decision, evidence = finished.decision, finished.arms[role]
    pins = evidence.pins
    params = dict(flatten(evidence.manifest.declared())) | {
        "pins.weights": canonical.digest(pins.weights),
        "pins.tokenizer": canonical.digest(pins.tokenizer),
        **{f"pins.{n}": getattr(pins, n) for n in _PINNED},
    }
    for record in list(evidence.records.values())[:1]:
        params |= {
            f"reported.{path}": text for path, text in flatten(record.identity.model_dump(mode="json"))
        }
    tags = _common_tags(decision, role) | {f"{PREFIX}{n}": d for n, d in _digest_tags(arm).items()}
    if arm.unsafe:
        tags[f"{PREFIX}unsafe"] = ", ".join(arm.unsafe)
    if arm.unverified:
        tags[f"{PREFIX}unverified"] = ", ".join(arm.unverified)
    return MlflowRun(
        role=role, name=one_line(f"{role}: {arm.name}"), params=_texts(params), tags=_texts(tags),  # type: ignore[arg-type]
        metrics={mlflow_name(n): v for n, v in _arm_metrics(role, evidence, decision).items() if math.isfinite(v)}
        | (_check_metrics(decision) if role == "candidate" else {}),
    )  # fmt: skip


_PINNED = ("manifest", "source", "chat_template", "prompts", "vocabulary", "quantization", "sampling")


def _arm_metrics(role: str, evidence: ArmEvidence, decision: Decision) -> dict[str, float]:
    """An arm's values: means over its scored items by set, medians over its timing blocks, what it cost."""
    metrics: dict[str, float] = {}
    for name, record in evidence.records.items():
        metrics |= {f"{name}/{what}": value for what, value in _set_metrics(record).items()}
    if decision.timing is not None:
        values: dict[str, list[float]] = defaultdict(list)
        for block in decision.timing.blocks:
            for name, value in getattr(block, role).items():
                values[name].append(value)
        metrics |= {f"timing/{name}": statistics.median(seen) for name, seen in values.items()}
        if role in decision.timing.peak_memory:
            metrics["memory/peak_bytes"] = float(decision.timing.peak_memory[role])
    return metrics


def _set_metrics(record: MeasurementSet) -> dict[str, float]:
    scored = [(o, o.outcome) for o in record.observations if isinstance(o.outcome, Scored)]
    metrics = {
        "items": float(len(record.observations)),
        "failed": 1 - len(scored) / record.planned,
        "seconds": record.stage.seconds,
        "tokens": float(record.stage.tokens),
    }
    totals: dict[str, float] = defaultdict(float)
    for _, outcome in scored:
        for name, value in (*outcome.values.items(), *outcome.weights.items()):
            totals[name] += value
    if "nll" in totals:
        metrics["log_perplexity"] = totals["nll"] / totals["tokens"]
        metrics["bits_per_byte"] = totals["nll"] / totals["bytes"] / math.log(2)
        return metrics
    names = sorted({name for _, outcome in scored for name in outcome.values})
    metrics |= {name: totals[name] / len(scored) for name in names}
    lengths = [o.output_tokens for o, _ in scored if o.output_tokens is not None]
    if lengths:
        metrics |= {
            "reply_tokens_mean": statistics.fmean(lengths),
            "reply_tokens_p50": statistics.median(lengths),
        }
    return metrics


def _dataset_input(evalset: EvalSet) -> DatasetInput:
    """A set under the digest by which decisions and attestations know it."""
    card, digest = evalset.card, evalset.content_digest()
    fields = {
        "text": ("text",),
        "choice": ("messages", "choices", "answer"),
        "generation": ("messages", "check"),
    }
    columns = ("id", "cluster", "stratum", *fields[card.kind])
    profile = {
        "sha256": digest, "version": card.version, "kind": card.kind, "licence": card.licence,
        "items": card.items, "clusters": card.clusters, "strata": card.strata,
    }  # fmt: skip
    return DatasetInput(
        name=card.name,
        digest=digest.removeprefix("sha256:")[:_DIGEST],
        source=json.dumps({"uri": f"evalsets/{card.name}/{card.source}"}),
        schema_text=json.dumps({"columns": columns}),
        profile=json.dumps(profile),
    )
