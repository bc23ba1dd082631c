"""What MLflow is told: names it takes, numbers that are there, texts that are harmless."""

from __future__ import annotations

import json
import re

import pytest
from tests.builders import evalset, measured
from tests.conftest import WriteManifest
from tests.unit.report import sample

from checkweigh.records.decision import Verdict
from checkweigh.sinks.items_table import COLUMNS, items_table
from checkweigh.sinks.mlflow_content import (
    ArmEvidence,
    FinishedGate,
    build_bundle,
    flatten,
    mlflow_name,
)
from checkweigh.sinks.mlflow_target import Target
from checkweigh.sinks.outbox import Bundle
from checkweigh.sources.pin import verify

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.fixture
def bundle(write_manifest: WriteManifest) -> Bundle:
    prose, answers = evalset("text", 4, name="prose"), evalset("generation", 4, name="answers")
    arms = {}
    for role in ("baseline", "candidate"):
        resolved = verify(write_manifest(role, prompts={"system": "Be\u200e brief.\nNow."}))
        records = {
            "prose": measured(prose, [2.0, 3.0, float("nan"), 1.0], arm=role),
            "answers": measured(answers, [1.0, 0.0, 1.0, 1.0], arm=role, tokens=[2, 4, 6, 100]),
        }
        arms[role] = ArmEvidence(manifest=resolved.manifest, pins=resolved.pins, records=records)
    decision = sample.decision(hostile=True)
    finished = FinishedGate(decision=decision, arms=arms, evalsets=(prose, answers), pairs=sample.pairs())
    return build_bundle(finished, Target("http://me:hunter2@host:5000"), "checkweigh", ["decision.json"])


def test_every_name_and_text_is_one_that_mlflow_takes(bundle: Bundle) -> None:
    for run in bundle.runs:
        for name in (*run.params, *run.tags, *run.metrics):
            assert re.fullmatch(r"[A-Za-z0-9_\-./: ]{1,250}", name), name
        for name, value in (*run.params.items(), *run.tags.items()):
            assert not CONTROL.search(value), name
            assert len(value) <= 7500
    assert "hunter2" not in bundle.model_dump_json()
    assert (bundle.destination, bundle.secret) == ("http://host:5000", True)
    assert bundle.ended - bundle.started == 702_000
    assert all(len(dataset.digest) == 36 for dataset in bundle.datasets)


def test_the_description_shows_no_backslash_that_is_not_in_the_text(bundle: Bundle) -> None:
    note = bundle.runs[0].tags["mlflow.note.content"]
    assert "perplexity&#58; " in note
    known_to_showdown = r"\\[\\`*_{}\[\]()>#+.!~=|-]"
    assert "\\" not in re.sub(known_to_showdown, "", note)


def test_what_nobody_verified_and_what_had_no_effect_are_tags(bundle: Bundle) -> None:
    gate, baseline, candidate = bundle.runs
    assert gate.tags["checkweigh.unverified.candidate"] == "weights, configuration, dtype"
    assert candidate.tags["checkweigh.unverified"] == "weights, configuration, dtype"
    assert "checkweigh.unverified.baseline" not in gate.tags
    assert "checkweigh.unverified" not in baseline.tags
    assert gate.tags["checkweigh.no_effect"].startswith("NO EFFECT of ")
    assert gate.params["loaded.quantization"].startswith("none -> ")
    note = gate.tags["mlflow.note.content"]
    assert "though what changed altered no output" in note.splitlines()[0]
    assert "unverified&#58; weights, configuration, dtype of the candidate" in note


def test_what_could_not_be_estimated_is_absent_not_zero(bundle: Bundle) -> None:
    metrics = bundle.runs[0].metrics
    decision = sample.decision()
    against = f"compare/{decision.baseline.pins.removeprefix('sha256:')[:8]}"
    estimated = {name.split("/")[2] for name in metrics if name.endswith("/diff")}
    kinds = {r.check.id: r.comparison.kind for r in decision.checks}
    assert {"estimate", "identical", "inestimable"} == set(kinds.values())
    assert estimated == {name for name, kind in kinds.items() if kind == "estimate"}
    for result in decision.checks:
        assert metrics[f"{against}/{result.check.id}/passed"] == (result.outcome in ("passed", "warning"))


def test_an_arms_levels_are_means_over_what_was_scored(bundle: Bundle) -> None:
    metrics = bundle.runs[2].metrics
    assert bundle.runs[2].role == "candidate"
    assert metrics["prose/log_perplexity"] == pytest.approx(2.0), "(200 + 300 + 100) nats / 300 tokens"
    assert (metrics["prose/failed"], metrics["prose/items"]) == (0.25, 4)
    assert metrics["answers/score"] == 0.75
    assert (metrics["answers/reply_tokens_mean"], metrics["answers/reply_tokens_p50"]) == (28, 5)
    assert metrics["memory/peak_bytes"] == 238_000_000
    baseline = bundle.runs[1].metrics
    ratio = metrics["timing/ttft.p50"] / baseline["timing/ttft.p50"]
    assert 1.1 < ratio < 1.35, "the sample's candidate is a fifth slower"


def test_an_arm_shows_what_was_pinned(bundle: Bundle) -> None:
    params = bundle.runs[1].params
    assert params["prompts.system"] == "Be⟨U+200E⟩ brief. ↵ Now."
    assert params["sampling.max_tokens"] == "24"
    assert params["quantization.method"] == "none"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", params["pins.weights"])
    assert bundle.runs[1].tags["checkweigh.pins"] == sample.decision().baseline.pins
    assert bundle.runs[2].tags["checkweigh.unsafe"] == "unsafe_pickle"


def test_a_trace_shows_a_reply_or_else_what_was_measured(bundle: Bundle) -> None:
    pairs = {(p.set_name, p.id): p for p in sample.pairs()}
    shown = [(pairs[t.facts["set"], t.facts["item"]], t) for t in bundle.traces]
    assert {p.baseline_text is None for p, _ in shown} == {True, False}
    for pair, trace in shown:
        for text, value, shown_reply in (
            (pair.baseline_text, pair.baseline, trace.baseline),
            (pair.candidate_text, pair.candidate, trace.candidate),
        ):
            measured_value = "failed" if value is None else f"{pair.metric} {value:.4g}"
            assert shown_reply == text or (text is None and shown_reply in (measured_value, pair.note))


def test_an_error_has_no_numbers_and_is_told_all_the_same(write_manifest: WriteManifest) -> None:
    resolved = verify(write_manifest("one"))
    arm = ArmEvidence(manifest=resolved.manifest, pins=resolved.pins, records={})
    decision = sample.decision(Verdict.ERROR)
    finished = FinishedGate(
        decision=decision, arms={"baseline": arm, "candidate": arm}, evalsets=(), pairs=[]
    )
    bundle = build_bundle(finished, Target("http://host"), "checkweigh", [])
    assert bundle.runs[0].metrics == {"exit_code": 4.0}
    assert bundle.runs[0].tags["checkweigh.verdict"] == "error"


def test_leaves_have_paths_and_empty_ones_are_left_out() -> None:
    value = {"a": {"b": 1, "c": None, "d": []}, "e": "x", "f": True, "g": {}}
    assert dict(flatten(value)) == {"a.b": "1", "e": "x", "f": "true"}
    assert mlflow_name("p99 \u00e9/{x}") == "p99 _/_x_"


def test_the_table_holds_every_item_worst_first_as_harmless_text() -> None:
    pairs = sample.pairs(hostile=True)
    data = json.loads(items_table(pairs))
    assert tuple(data["columns"]) == COLUMNS
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in data["data"]]
    assert len(rows) == len(pairs)
    chat = [row for row in rows if row["set"] == "chat"]
    assert chat[0]["item"] == "q-999", "what broke comes first"
    losses = [row["worse_by"] for row in chat[1:]]
    assert losses == sorted(losses, reverse=True)
    texts = [str(cell) for row in rows for cell in row.values()]
    assert not [text for text in texts if CONTROL.search(text)]
    assert max(map(len, texts)) < 2100
    assert sample.HOSTILE[0] in texts
