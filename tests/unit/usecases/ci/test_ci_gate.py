"""``ci gate``: every exit code only beside this run's evidence, and one comment that tells all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.scratch import Scratch
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

from checkweigh.errors import ExitCode
from checkweigh.usecases.ci.changes import ChangedDocument
from checkweigh.usecases.ci.run import check_gate_result

SERVED = "manifests/served.yaml"


@pytest.fixture
def scratch(bench: GateBench) -> Scratch:
    bench.policy(PERPLEXITY)
    return Scratch(bench)


def ci(scratch: Scratch, *more: str, base: str = "main") -> int:
    """Run it with the scratch repository's policy."""
    return scratch.bench.run(
        "ci", "gate", "--base", base, "--policy", "gates/test.yaml", "--out", "out", *more
    )


def results(scratch: Scratch) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((scratch.root / "out/ci.json").read_text())
    return value


def comment(scratch: Scratch) -> str:
    return (scratch.root / "out/comment.md").read_text()


def test_a_worse_model_is_blocked_and_a_rename_beside_it_is_not(scratch: Scratch) -> None:
    scratch.git("checkout", "-q", "main")
    scratch.manifest("other", {"bias_nats": 0.01})
    scratch.commit("a second")
    scratch.git("checkout", "-q", "-B", "change", "main")
    for suffix in (".yaml", ".lock.json"):
        scratch.git("mv", f"manifests/other{suffix}", f"manifests/renamed{suffix}")
    scratch.manifest("served", {"bias_nats": 0.2, "noise_seed": 2})
    scratch.commit("worse")
    assert ci(scratch) == 1, scratch.bench.stderr
    outcomes = {one["path"]: one for one in results(scratch)["outcomes"]}
    assert (outcomes[SERVED]["exit_code"], outcomes["manifests/renamed.yaml"]["exit_code"]) == (1, 0)
    text = comment(scratch)
    assert text.startswith(
        "<!-- checkweigh-ci:checkweigh -->\n## ⛔ checkweigh: block: this change must not ship"
    )
    assert "⛔ block: perplexity" in text
    assert "✅ pass: renamed from manifests/other" in text.replace("\\", "")
    assert text.count("<!--") == 1, "the gate's own marker is gone"
    reports = scratch.root / "out" / outcomes[SERVED]["reports"]
    assert {"decision.json", "report.html", "junit.xml"} <= {path.name for path in reports.iterdir()}
    assert '<failure type="block"' in (scratch.root / "out/junit.xml").read_text()


def test_an_equal_model_passes(scratch: Scratch) -> None:
    scratch.manifest("served", {"noise_seed": 2})
    scratch.commit("equal")
    assert ci(scratch, "--", "--mlflow", "none") == 0, scratch.bench.stderr
    assert "✅ checkweigh: pass" in comment(scratch)


def test_nothing_to_do_is_a_pass_that_says_so(scratch: Scratch) -> None:
    assert ci(scratch) == 0
    assert "no manifest, policy or evaluation set differs" in comment(scratch)
    assert results(scratch)["outcomes"] == []


def test_bad_input_is_told_in_the_comment(scratch: Scratch) -> None:
    (scratch.root / SERVED).write_text("name: <img src=x> @octocat\n")
    assert ci(scratch) == 2
    assert "🚫 checkweigh: bad input: this change cannot be gated as it is" in comment(scratch)
    assert "manifests/served.yaml:1: schema: expected this key" in comment(scratch)
    assert ci(scratch, base="no-such-branch") == 2
    assert "expected a commit, branch or tag" in comment(scratch)
    (scratch.root / "gates/test.yaml").unlink()
    assert ci(scratch) == 2
    assert "no such file" in comment(scratch)


def test_a_pin_that_does_not_hold_is_bad_input_with_the_gates_own_words(scratch: Scratch) -> None:
    lock = scratch.root / "manifests/served.lock.json"
    value = json.loads(lock.read_text())
    value["pins"]["weights"] = dict.fromkeys(value["pins"]["weights"], "sha256:" + "0" * 64)
    lock.write_text(json.dumps(value))
    assert ci(scratch) == 2
    assert "the gate refused its input" in comment(scratch)
    assert "pins.weights.model.safetensors: expected sha256:000" in comment(scratch)


def test_a_gate_that_breaks_is_infrastructure(scratch: Scratch) -> None:
    scratch.git("checkout", "-q", "main")
    scratch.manifest("served", {"kill_at": 1})
    scratch.commit("a baseline that dies")
    scratch.git("checkout", "-q", "-B", "change", "main")
    scratch.manifest("served", {"noise_seed": 2})
    assert ci(scratch) == 4
    assert "💥 checkweigh: broken" in comment(scratch)


def test_a_looser_policy_is_refused_without_a_reason(scratch: Scratch) -> None:
    policy = scratch.root / "gates/test.yaml"
    rules = yaml.safe_load(policy.read_text())
    rules["checks"][0]["margin"] = 0.2
    policy.write_text(yaml.safe_dump(rules))
    assert ci(scratch) == 1
    assert "checks.perplexity.margin: 0.05 -> 0.2, WITHOUT a new reason" in comment(scratch)
    assert scratch.bench.run("ci", "policies", "--base", "HEAD") == 1
    rules["checks"][0]["because"] = "a new study"
    policy.write_text(yaml.safe_dump(rules))
    assert ci(scratch) == 0
    assert scratch.bench.run("ci", "policies", "--base", "HEAD") == 0
    assert "with a new reason" in scratch.bench.stderr
    policy.write_text("schema: checkweigh/policy@1\n")
    assert scratch.bench.run("ci", "policies", "--base", "HEAD") == 2


def test_a_policy_that_could_not_be_read_before_holds(scratch: Scratch) -> None:
    scratch.git("checkout", "-q", "main")
    sound = (scratch.root / "gates/test.yaml").read_text()
    (scratch.root / "gates/test.yaml").write_text("schema: checkweigh/policy@0\n")
    scratch.commit("of another version")
    scratch.git("checkout", "-q", "-B", "change", "main")
    (scratch.root / "gates/test.yaml").write_text(sound)
    assert ci(scratch) == 3
    assert "as it was it cannot be read" in comment(scratch)


def test_a_set_whose_card_is_not_about_its_items_is_bad_input(scratch: Scratch) -> None:
    items = scratch.root / "evalsets/prose/items.jsonl"
    items.write_text(items.read_text().replace("document", "Document", 1))
    assert ci(scratch) == 2
    assert "digest" in comment(scratch)


def test_results_of_an_earlier_run_are_gone(scratch: Scratch) -> None:
    scratch.manifest("served", {"noise_seed": 2})
    assert ci(scratch) == 0
    (reports,) = (scratch.root / "out/gates").iterdir()
    scratch.git("checkout", "-q", ".")
    assert ci(scratch) == 0
    assert not reports.exists()


def test_an_out_that_holds_something_else_is_refused(scratch: Scratch) -> None:
    arguments = ["ci", "gate", "--base", "main", "--policy", "gates/test.yaml", "--out"]
    assert scratch.bench.run(*arguments, ".") == 2
    assert "expected a directory for results alone, found gates/test.yaml" in scratch.bench.stderr
    assert (scratch.root / "gates/test.yaml").is_file()
    assert scratch.bench.run(*arguments, "gates/test.yaml") == 2


CHANGE = ChangedDocument(
    path=SERVED, status="modified", need="gate", because="", baseline=SERVED,
    baseline_pins="sha256:" + "1" * 64, candidate_pins="sha256:" + "2" * 64,
)  # fmt: skip


@pytest.mark.parametrize("status", [0, 1, 3])
def test_no_exit_code_is_a_verdict_without_a_decision(status: int, tmp_path: Path) -> None:
    code, text = check_gate_result(status, tmp_path, CHANGE)
    assert (code, "no verdict" in text) == (ExitCode.BROKEN, True)
    (tmp_path / "decision.json").write_text("{")
    assert check_gate_result(status, tmp_path, CHANGE)[0] is ExitCode.BROKEN


@pytest.mark.parametrize("status", [-9, 4, 5, 120, 130])
def test_any_other_end_is_broken(status: int, tmp_path: Path) -> None:
    assert check_gate_result(status, tmp_path, CHANGE)[0] is ExitCode.BROKEN


def test_a_decision_counts_for_its_own_exit_code_and_pins(scratch: Scratch) -> None:
    scratch.manifest("served", {"noise_seed": 2})
    assert ci(scratch) == 0
    (reports,) = (scratch.root / "out/gates").iterdir()
    assert check_gate_result(1, reports, CHANGE) == (
        ExitCode.BROKEN,
        "exit code 1, but the decision's is 0: no verdict",
    )
    assert check_gate_result(0, reports, CHANGE) == (
        ExitCode.BROKEN,
        "the decision is about other pins: no verdict",
    )


def test_pin_hook_stops_a_commit_once(scratch: Scratch) -> None:
    scratch.edit(SERVED, sampling={"max_tokens": 8})
    assert scratch.bench.run("ci", "pin", SERVED) == 1
    assert "served.lock.json: written anew; add it to the commit" in scratch.bench.stderr
    assert scratch.bench.run("ci", "pin", SERVED) == 0
    assert scratch.bench.run("ci", "pin", SERVED, "none.yaml") == 2
