"""Gates on a user's own set whose replies a module of ``evaluate``, a standard scorer or a sandbox scores."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import check
from tests.conftest import missing
from tests.unit.usecases.gate_bench import GateBench

from checkweigh import canonical
from checkweigh.errors import ScorerError
from checkweigh.records.decision import Verdict
from checkweigh.scorers.sandbox import Sandbox, SandboxLimits

N = 320
SCORE = check(id="score", evalset=["mine"], margin=0.05)
MODULE = '''
import datasets
import evaluate


class Mine(evaluate.Metric):
    """The share of the reference's words that the reply has."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="made for a test", citation="", inputs_description="",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions, references):
        said = predictions[0].lower().split()
        return {"share": max(sum(w in said for w in r.split()) / len(r.split()) for r in references[0])}
'''
EVALUATE = {"name": "evaluate", "version": 1, "module": "./mine.py", "key": "share"}


def put(
    bench: GateBench, scorer: dict[str, Any], references: str = "{word}", module: str = MODULE, n: int = N
) -> None:
    """The set ``mine``: JSONL in a layout of the user's own, and its card. One reference in 16 is half missed."""
    folder = bench.folder / "evalsets" / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "q": f"Question {i} of a test: say {word}",
            "right": [references.format(word=word) + " so" * (i % 16 == 0)],
        }
        for i in range(n)
        for word in ("yes" if i % 2 == 0 else "no",)
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "mine.jsonl").write_bytes(data)
    (folder / "mine.py").write_text(module)
    if scorer["name"] == "evaluate":
        scorer = {"digest": canonical.digest_bytes(module.encode()), **scorer}
    card = {
        "schema": "checkweigh/evalset@1", "name": "mine", "version": "1.0.0", "kind": "generation", "licence": "ours",
        "description": "ours", "source": "mine.jsonl", "digest": canonical.digest_bytes(data), "scorer": scorer,
        "columns": {"prompt": "q", "references": "right"},
    }  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    bench.policy(SCORE)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks up a name or connects fails the gate."""

    def refuse(*args: object, **more: object) -> Any:
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_set_scored_by_a_module_of_ones_own_gates(bench: GateBench) -> None:
    pytest.importorskip("evaluate")
    put(bench, EVALUATE)
    assert bench.gate() == 0, bench.stderr
    assert bench.decision.verdict is Verdict.PASS
    first = bench.decision.baseline.measurements["mine"]
    key = json.loads((bench.home / "store").glob("*/record.json").__next__().read_text())["key"]["scorer"]
    assert key == EVALUATE | {
        "digest": canonical.digest_bytes(MODULE.encode()), "revision": None, "scale": None,
    }  # fmt: skip
    assert bench.gate({"wrong_share": 0.25}) == 1, bench.stderr
    assert bench.result("score").outcome == "blocked"
    assert bench.stages()[("baseline", "mine")]
    put(bench, EVALUATE, module=MODULE + "\n# another version\n")
    assert bench.gate() == 3, "the same candidate by another scorer is a later try, and none was declared"
    assert bench.gate({"noise_seed": 3}) == 0, bench.stderr
    assert not bench.stages()[("baseline", "mine")]
    assert bench.decision.baseline.measurements["mine"] != first


@pytest.mark.parametrize(
    "body", ['raise RuntimeError("no dictionary")', 'return {"share": float("nan")}', "exit(0)"]
)
def test_a_scorer_that_breaks_is_an_error_and_blames_neither_arm(bench: GateBench, body: str) -> None:
    pytest.importorskip("evaluate")
    broken = f'        if "yes" in predictions[0].lower():\n            {body}\n        said ='
    put(bench, EVALUATE, module=MODULE.replace("        said =", broken))
    assert bench.gate() == 4, bench.stderr
    assert bench.decision.verdict is Verdict.ERROR
    assert "set mine, item row-000" in bench.reasons
    assert bench.records() == []


def test_a_scorer_that_breaks_on_the_candidate_alone_is_an_error_too(bench: GateBench) -> None:
    pytest.importorskip("evaluate")
    module = MODULE.replace("        said =", "        1 / len(predictions[0])\n        said =")
    put(bench, EVALUATE, module=module)
    assert bench.gate({"empty_share": 0.1}) == 4, bench.stderr
    assert "ZeroDivisionError" in bench.reasons


def test_a_module_that_moved_is_bad_input_and_is_told_of_beforehand(bench: GateBench) -> None:
    pytest.importorskip("evaluate")
    put(bench, EVALUATE)
    (bench.folder / "evalsets" / "mine" / "mine.py").write_text("moved")
    assert bench.gate() == 2
    assert f"scorer.digest: expected {canonical.digest_bytes(MODULE.encode())}" in bench.stderr
    assert bench.run("evalset", "check", "evalsets/mine") == 2
    assert "scorer.digest: expected" in bench.stdout + bench.stderr


def test_references_and_a_standard_scorer(bench: GateBench) -> None:
    put(bench, {"name": "rouge_l", "version": 1})
    assert bench.gate() == 0, bench.stderr
    assert bench.gate({"wrong_share": 0.25}) == 1, bench.stderr
    put(bench, {"name": "rouge_l", "version": 2})
    assert bench.gate() == 2
    assert "scorer.version: expected 1 for rouge_l, found 2" in bench.stderr


def test_replies_that_are_no_code_are_scored_in_the_sandbox(bench: GateBench) -> None:
    try:
        Sandbox(SandboxLimits())
    except ScorerError as error:
        missing(f"a sandbox ({error})")
    put(bench, {"name": "code_execution", "version": 1}, references="# {word}", n=16)
    code = check(id="code", evalset=["mine"], margin=0.05, tier="advisory")
    bench.policy(SCORE | {"evalset": ["choices"]}, code)
    assert bench.gate() == 0, bench.stderr
    assert bench.result("code").comparison.baseline == 0.0  # no reply of the fake engine is Python


def test_without_a_sandbox_nothing_is_measured(
    bench: GateBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(bench, {"name": "code_execution", "version": 1}, references="# {word}")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert bench.gate() == 4
    assert "only run in a sandbox" in bench.stderr
    assert not (bench.out / "decision.json").exists()
