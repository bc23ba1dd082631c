"""The main job on the real model with small slices of the shipped sets: what ``make demo`` shows, in minutes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from tests.actions import machine
from tests.github_server import running
from tests.scratch import Repo

from checkweigh import canonical
from checkweigh.cli import main
from checkweigh.records.decision import Decision
from checkweigh.sources.cache import cache_root
from checkweigh.sources.pin import Resolved, verify

ROOT = Path(__file__).resolve().parents[2]
SLICES = {"prose": 64, "choices": 144, "answers": 96}
POLICY = """
schema: checkweigh/policy@1
name: slices
failure_margin: 0.02
timing: {pairs: 8, requests: 1, output_tokens: 4, max_seconds: 60}
checks:
  - {id: perplexity, metric: log_perplexity, evalset: [prose], direction: lower, scale: log, margin: 0.05,
     because: a slice of the default policy, tier: critical, min_items: 60, min_clusters: 60}
  - {id: score, metric: score, evalset: [choices, answers], direction: higher, margin: 0.2,
     because: a slice of the default policy, tier: supporting, min_items: 100}
  - {id: tpot, metric: tpot, statistic: p50, direction: lower, scale: relative, margin: 0.5,
     because: shows that both arms were timed, tier: advisory, min_items: 8, min_clusters: 8}
  - {id: kl, metric: kl, evalset: [prose], direction: lower, margin: 0.05,
     because: shows the divergence, tier: advisory}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, resolved: Resolved) -> Path:
    """Manifests, a policy and slices of the sets, one document a work, in a directory of their own."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(ROOT / "manifests", folder / "manifests")
    (folder / "policy.yaml").write_text(POLICY)
    for name, wanted in SLICES.items():
        _slice(ROOT / "evalsets" / name, folder / "evalsets" / name, wanted)
    return folder


def _slice(source: Path, target: Path, wanted: int) -> None:
    """The first ``wanted`` items of different clusters, with a card that says so."""
    target.mkdir(parents=True)
    rows = [json.loads(line) for line in (source / "items.jsonl").read_text().splitlines()]
    firsts = list({row["cluster"]: row for row in reversed(rows)}.values())[::-1]
    picked = firsts[:: max(1, len(firsts) // wanted)][:wanted]
    data = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in picked).encode()
    (target / "items.jsonl").write_bytes(data)
    card = yaml.safe_load((source / "card.yaml").read_text())
    strata = sorted(row["stratum"] for row in picked)
    card |= {"digest": canonical.digest_bytes(data), "items": len(picked), "clusters": len(picked)}
    card["strata"] = {stratum: strata.count(stratum) for stratum in strata}
    (target / "card.yaml").write_text(yaml.safe_dump(card))


def gate(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, candidate: str, more: Sequence[str] = ()
) -> tuple[int, Decision]:
    """Gate the baseline against a shipped candidate, in a store of the module's own."""
    home, real = workplace / "home", cache_root()
    home.mkdir(exist_ok=True)
    for cached in ("packages", "derived"):
        if not (home / cached).exists():
            (home / cached).symlink_to(real / cached)
    monkeypatch.setenv("CHECKWEIGH_HOME", str(home))
    monkeypatch.chdir(workplace)
    out = workplace / "runs" / candidate
    arguments = [
        "gate",
        "manifests/smollm2-135m.yaml",
        f"manifests/{candidate}.yaml",
        "--policy",
        "policy.yaml",
    ]
    code = main([*arguments, "--out", str(out), *more])
    return code, Decision.model_validate_json((out / "decision.json").read_bytes())


def test_nf4_is_blocked_on_perplexity(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, decision = gate(workplace, monkeypatch, "smollm2-135m-nf4")
    assert code == 1
    assert decision.verdict == "block"
    assert "perplexity" in decision.reasons[0]
    assert {change.path for change in decision.changes} == {
        "quantization.bits",
        "quantization.method",
        "quantization.type",
    }
    assert decision.timing is None, "what quality blocks is not timed"
    (divergence,) = decision.divergence
    assert divergence.documents == SLICES["prose"]
    assert 0.15 < divergence.typical < 0.5, "nats a token; .28 on the whole set"
    assert 0.6 < divergence.agreement < 0.8
    assert divergence.worst[0].token.before
    for name in ("report.html", "junit.xml", "summary.md"):
        assert "perplexity" in (workplace / "runs" / "smollm2-135m-nf4" / name).read_text()


def test_the_baseline_passes_against_itself_from_two_executions(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, decision = gate(workplace, monkeypatch, "smollm2-135m")
    assert code == 0, decision.reasons
    stages = {(stage.arm, stage.name): stage.stored for stage in decision.stages}
    assert all(stages["baseline", name] for name in SLICES), "the baseline was stored by the gate before"
    assert not any(stages["candidate", name] for name in SLICES)
    assert decision.candidate.replicate == 1
    assert decision.timing is not None
    assert len(decision.timing.blocks) == 8
    assert all(memory > 2**28 for memory in decision.timing.peak_memory.values())
    assert decision.divergence[0].largest == 0, "the same batches give the same distributions, to the bit"
    assert not set(decision.baseline.measurements.values()) & set(decision.candidate.measurements.values())


@pytest.mark.parametrize("name", ["int8", "fp4", "terse", "prompt-lookup"])
def test_every_shipped_candidate_is_what_its_lock_says(name: str, resolved: Resolved) -> None:
    found = verify(ROOT / "manifests" / f"smollm2-135m-{name}.yaml")
    assert found.pins.weights == resolved.pins.weights
    assert found.pins.manifest != resolved.pins.manifest


def test_in_ci_a_pull_request_that_switches_to_nf4_is_blocked_and_a_rename_passes(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GitHub workflow's own steps on the real model, with what was measured above."""
    earlier = workplace / "runs/smollm2-135m-nf4/decision.json"
    if not earlier.exists():  # run alone
        gate(workplace, monkeypatch, "smollm2-135m-nf4")
    measured = Decision.model_validate_json(earlier.read_bytes())
    repo = Repo(tmp_path / "origin")
    repo.root.mkdir()
    for name in ("manifests", "evalsets"):
        shutil.copytree(workplace / name, repo.root / name)
    shutil.copy(workplace / "policy.yaml", repo.root / "policy.yaml")
    repo.git("init", "-q", "-b", "main")
    repo.with_workflow()
    repo.commit("what is served")
    served, nf4 = (repo.root / "manifests" / f"smollm2-135m{suffix}.yaml" for suffix in ("", "-nf4"))
    with running("token") as github:

        def job() -> tuple[int, str]:
            runner = machine(repo, github, tmp_path / "machine", workplace / "home", "token")
            workflow = runner.workspace / ".github/workflows/checkweigh.yml"
            code = runner.job(workflow, "gate", {"policy": "policy.yaml"})
            return code, runner.log

        repo.git("checkout", "-q", "-b", "change")
        served.write_text(nf4.read_text().replace("name: smollm2-135m-nf4", "name: smollm2-135m"))
        shutil.copy(nf4.with_suffix(".lock.json"), served.with_suffix(".lock.json"))
        repo.commit("switch to nf4")
        code, log = job()
        assert code == 1, log
        (decided,) = (tmp_path / "machine/work/runs/ci/gates").glob("*/decision.json")
        decision = Decision.model_validate_json(decided.read_bytes())
        assert decision.candidate.pins == measured.candidate.pins
        assert all(stage.stored for stage in decision.stages), "nothing is measured twice"
        assert "⛔ block: perplexity" in github.comments[7][0]["body"]

        repo.git("checkout", "-q", "-B", "change", "main")
        for suffix in (".yaml", ".lock.json"):
            repo.git("mv", f"manifests/smollm2-135m{suffix}", f"manifests/served{suffix}")
        repo.edit("manifests/served.yaml", name="served")
        repo.commit("rename")
        code, log = job()
        assert code == 0, log
        assert "✅ checkweigh: pass" in github.comments[7][0]["body"]
