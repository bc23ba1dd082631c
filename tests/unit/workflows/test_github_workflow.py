"""The GitHub workflow's own steps, run in a clone of a scratch repository for a pull request that edits manifests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.actions import Runner, machine
from tests.conftest import WriteManifest
from tests.github_server import FakeGithub, running
from tests.scratch import Scratch
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

TOKEN = "ghs_fakeTokenForTests0000"
INPUTS = {"policy": "gates/test.yaml"}


@pytest.fixture
def scratch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_manifest: WriteManifest,
    capfd: pytest.CaptureFixture[str],
) -> Scratch:
    """A repository as `checkweigh init` leaves it: the workflow and its action in their places."""
    bench = GateBench(tmp_path, monkeypatch, write_manifest, capfd)
    bench.policy(PERPLEXITY)
    repo = Scratch(bench)
    repo.git("checkout", "-q", "main")
    repo.with_workflow()
    repo.commit("as checkweigh init leaves it")
    repo.git("checkout", "-q", "-B", "change", "main")
    return repo


@pytest.fixture
def github() -> Iterator[FakeGithub]:
    with running(TOKEN) as fake:
        yield fake


def pull_request(scratch: Scratch, github: FakeGithub, where: Path, event: str = "pull_request") -> Runner:
    return machine(scratch, github, where, scratch.bench.home, TOKEN, event)


def run(runner: Runner) -> int:
    return runner.job(runner.workspace / ".github/workflows/checkweigh.yml", "gate", INPUTS)


def test_a_worse_model_is_blocked_a_rename_passes_and_one_comment_says_both(
    scratch: Scratch, github: FakeGithub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("runner")
    scratch.manifest("served", {"bias_nats": 0.2, "noise_seed": 2})
    scratch.commit("worse")
    runner = pull_request(scratch, github, where)
    assert run(runner) == 1, runner.log
    assert "::error title=Checkweigh: block::" in runner.log
    (comment,) = github.comments[7]
    assert "⛔ checkweigh: block" in comment["body"]
    assert "[log](https://github.example/o/r/actions/runs/11)" in comment["body"]
    assert runner.summary == comment["body"]
    reports = list((runner.workspace / "runs/ci").glob("gates/*/report.html"))
    assert len(reports) == 1
    used = dict(runner.used)
    assert used["actions/upload-artifact@v6"]["path"] == "runs/ci"
    assert used["actions/checkout@v6"]["fetch-depth"] == 0
    assert TOKEN not in runner.log

    scratch.git("reset", "-q", "--hard", "main")
    for suffix in (".yaml", ".lock.json"):
        scratch.git("mv", f"manifests/served{suffix}", f"manifests/renamed{suffix}")
    scratch.edit("manifests/renamed.yaml", name="renamed")
    scratch.commit("rename")
    renamed = pull_request(scratch, github, where)
    assert run(renamed) == 0, renamed.log
    (comment,) = github.comments[7]
    assert "✅ checkweigh: pass" in comment["body"]
    assert not list((renamed.workspace / "runs/ci").glob("gates/*"))


def test_the_cache_is_named_by_what_is_pinned(
    scratch: Scratch, github: FakeGithub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("runner")
    (scratch.root / "words.md").write_text("words")
    scratch.commit("words alone")
    same = pull_request(scratch, github, where)
    assert run(same) == 0
    assert github.comments == {}, "nothing to say"
    keys = dict(same.used)["actions/cache/restore@v5"]
    head, base, _ = (
        line.removeprefix("checkweigh-Linux-").strip("-") for line in keys["restore-keys"].split()
    )
    assert re.fullmatch(r"[0-9a-f]{16}", head)
    assert head == base
    assert keys["key"] == dict(same.used)["actions/cache/save@v5"]["key"] == f"checkweigh-Linux-{head}-11-1"
    scratch.edit("manifests/served.yaml", comment="words")
    scratch.manifest("served", {"noise_seed": 2})
    scratch.commit("other pins")
    other = pull_request(scratch, github, where)
    assert run(other) == 0
    keys = dict(other.used)["actions/cache/restore@v5"]["restore-keys"].split()
    assert keys[0] != f"checkweigh-Linux-{head}-"
    assert keys[1] == f"checkweigh-Linux-{head}-", "what main measured"


def test_bad_input_and_a_fork_that_may_not_comment(
    scratch: Scratch, github: FakeGithub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scratch.edit("manifests/served.yaml", sampling={"max_tokens": 8})
    scratch.commit("unpinned")
    runner = pull_request(scratch, github, tmp_path_factory.mktemp("runner"))
    github.answers = [403] * 20
    assert run(runner) == 2
    assert "::error title=Checkweigh: bad input::" in runner.log
    assert "served.lock.json" in runner.summary
    assert github.comments == {}


@pytest.mark.parametrize("event", ["push", "merge_group"])
def test_after_a_merge_and_in_a_queue_there_is_no_comment(
    event: str, scratch: Scratch, github: FakeGithub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scratch.manifest("served", {"noise_seed": 2})
    scratch.commit("equal")
    runner = pull_request(scratch, github, tmp_path_factory.mktemp("runner"), event=event)
    assert run(runner) == 0, runner.log
    assert "✅ checkweigh: pass" in runner.summary
    assert github.comments == {}


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 137])
def test_every_end_of_the_gate_has_its_exit_code(
    code: int, scratch: Scratch, github: FakeGithub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("runner")
    runner = pull_request(scratch, github, where)
    tool = where / "bin" / "checkweigh"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nexit {code}\n")
    tool.chmod(0o755)
    (where / "bin" / "python").symlink_to("/bin/true")
    runner.path = str(tool.parent)
    wanted = code if code in (0, 1, 2, 3) else 4
    assert run(runner) == wanted
    assert ("::error" in runner.log) is (code != 0)


def test_a_gate_that_never_ended_is_no_pass(
    scratch: Scratch, github: FakeGithub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("runner")
    runner = pull_request(scratch, github, where)
    tool = where / "bin" / "checkweigh"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\n[ "$2" = comment ] || kill -9 $PPID\n')  # the step's shell dies with it
    tool.chmod(0o755)
    (where / "bin" / "python").symlink_to("/bin/true")
    runner.path = str(tool.parent)
    assert run(runner) != 0
    assert "::error title=Checkweigh: infrastructure::" in runner.log


def test_names_of_branches_and_inputs_are_data(
    scratch: Scratch, github: FakeGithub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("runner")
    runner = pull_request(scratch, github, where)
    evil = f"main$(touch {where}/pwned);`touch {where}/pwned`"
    runner.github["base_ref"] = evil
    assert run(runner) == 2
    assert not (where / "pwned").exists()
    assert not os.path.exists(runner.workspace / "pwned")
