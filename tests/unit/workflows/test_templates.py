"""The other templates: each parses, cannot pass by accident, and each command it names runs in a scratch repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.scratch import Scratch
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "workflows").rglob("*.y*ml"))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "workflows" / name).read_text()))


@pytest.fixture
def scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_manifest: Any, capfd: pytest.CaptureFixture[str]
) -> Scratch:
    bench = GateBench(tmp_path, monkeypatch, write_manifest, capfd)
    bench.policy(PERPLEXITY)
    (tmp_path / "gates/test.yaml").rename(tmp_path / "gates/default.yaml")
    return Scratch(bench)


def shell(scratch: Scratch, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as the template's machine would, with our checkweigh on PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script, "-", *arguments],
        cwd=scratch.root, env=os.environ | {"PATH": path} | env,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_all_templates_are_known_here() -> None:
    names = {path.relative_to(ROOT / "workflows").as_posix() for path in FILES}
    assert names == {
        "argo-rollouts/analysis-template.yaml", "flagger/canary.yaml", "github/action.yml", "github/gate.yml",
        "gitlab/checkweigh.gitlab-ci.yml", "kubernetes/admission.yaml", "kubernetes/envoy.yaml",
        "kubernetes/gateway.yaml", "kubernetes/serving.yaml",
        "pre-commit/hooks.yaml",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (["vendor.github-workflows"], "github/gate.yml"),
        (["vendor.github-actions"], "github/action.yml"),
        (["vendor.gitlab-ci", "--data-transform", "gitlab-ci"], "gitlab/checkweigh.gitlab-ci.yml"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_it_is_what_its_schema_says(schema: list[str], name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *schema]
    done = subprocess.run(
        [*command, str(ROOT / "workflows" / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_expression_stands_in_a_script_and_tokens_go_to_one_step() -> None:
    (action,) = documents("github/action.yml")
    steps = action["runs"]["steps"]
    assert all("${{" not in step.get("run", "") for step in steps)
    assert [step["name"] for step in steps if "token" in str(step.get("env"))] == [
        "Comment on the pull request"
    ]
    (workflow,) = documents("github/gate.yml")
    assert "pull_request_target" not in workflow[True], "code of a fork beside a token that may write"
    assert workflow["permissions"] == {"contents": "read"}
    job = workflow["jobs"]["gate"]
    assert job["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert {"continue-on-error", "if"}.isdisjoint(job), "a job that is skipped or forgiven gates nothing"


def test_gitlab(scratch: Scratch) -> None:
    (document,) = documents("gitlab/checkweigh.gitlab-ci.yml")
    job = document["checkweigh"]
    assert job["allow_failure"] is False
    assert job["retry"] == {"max": 1, "exit_codes": [4]}
    assert (job["variables"]["GIT_DEPTH"], job["artifacts"]["when"]) == ("0", "always")
    env = {name: value for name, value in job["variables"].items() if "$" not in value}
    base = scratch.git("rev-parse", "main")
    lines = "\n".join(job["before_script"] + job["script"])
    scratch.manifest("served", {"bias_nats": 0.2, "noise_seed": 2})
    scratch.commit("worse")
    done = shell(scratch, lines, **env, CI_MERGE_REQUEST_DIFF_BASE_SHA=base)
    assert done.returncode == 1, done.stderr
    assert sorted(path.name for path in (scratch.root / "runs/ci").rglob("junit.xml")) == ["junit.xml"] * 2
    assert shell(scratch, lines, **env, CI_MERGE_REQUEST_DIFF_BASE_SHA="").returncode == 2


def test_pre_commit(scratch: Scratch) -> None:
    (document,) = documents("pre-commit/hooks.yaml")
    pin, policies = document["repos"][0]["hooks"]
    assert re.search(pin["files"], "manifests/served.yaml")
    assert not re.search(pin["files"], "manifests/served.lock.json")
    scratch.edit("manifests/served.yaml", sampling={"max_tokens": 8})
    names = ["manifests/served.yaml"]
    assert shell(scratch, f'{pin["entry"]} "$@"', *names).returncode == 1
    assert shell(scratch, f'{pin["entry"]} "$@"', *names).returncode == 0
    assert re.search(policies["files"], "gates/default.yaml")
    assert shell(scratch, policies["entry"]).returncode == 0
    text = (scratch.root / "gates/default.yaml").read_text()
    assert "margin: 0.05" in text
    (scratch.root / "gates/default.yaml").write_text(text.replace("margin: 0.05", "margin: 0.06"))
    done = shell(scratch, policies["entry"])
    assert (done.returncode, "WITHOUT a new reason" in done.stderr) == (1, True)


def test_argo_tolerates_no_failure_and_its_job_passes_only_a_pass(scratch: Scratch) -> None:
    (template,) = documents("argo-rollouts/analysis-template.yaml")
    (metric,) = template["spec"]["metrics"]
    assert metric["count"] == 1
    # With failureLimit 1 a failed Job counts as a success (argo-rollouts #4393).
    assert [metric[f"{n}Limit"] for n in ("failure", "inconclusive", "consecutiveError")] == [0, 0, 0]
    assert {"successCondition", "failureCondition"}.isdisjoint(metric), "the Job's own end is the condition"
    job = metric["provider"]["job"]["spec"]
    assert (job["backoffLimit"], job["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert job["activeDeadlineSeconds"] > 0
    (container,) = job["template"]["spec"]["containers"]
    arguments = {arg["name"]: arg.get("value") for arg in template["spec"]["args"]}
    scratch.manifest("equal", {"noise_seed": 2})
    scratch.manifest("worse", {"bias_nats": 0.2, "noise_seed": 2})
    scratch.manifest("broken", {"kill_at": 1, "noise_seed": 2})
    for candidate, code in (("equal", 0), ("worse", 1), ("broken", 1), ("missing", 2)):
        given = arguments | {"baseline": "manifests/served.yaml", "candidate": f"manifests/{candidate}.yaml"}
        command = list(container["command"])
        for name, value in given.items():
            command = [word.replace(f"{{{{args.{name}}}}}", str(value)) for word in command]
        assert not any("{{" in word for word in command)
        command = [str(scratch.root / "out") if word == "/tmp/gate" else word for word in command]
        done = shell(scratch, '"$@"', *command)
        assert done.returncode == code, done.stderr


def test_flagger_waits_for_the_pass_of_this_very_candidate(scratch: Scratch) -> None:
    job, canary = documents("flagger/canary.yaml")
    spec = job["spec"]["template"]["spec"]
    assert (job["spec"]["backoffLimit"], spec["restartPolicy"]) == (0, "Never")
    (container,) = spec["containers"]
    (hook,) = canary["spec"]["analysis"]["webhooks"]
    assert hook["type"] == "confirm-rollout", "which waits; a gate outlasts any webhook"
    assert hook["metadata"]["type"] == "bash", (
        "the load tester's own default runs in the background and answers 2xx"
    )
    gates = str(scratch.root / "out")
    script, ask = (
        text.replace("/gates/", f"{gates}/") for text in (container["args"][0], hook["metadata"]["cmd"])
    )
    script, ask = (text.replace(f" {gates}/default", " gates/default") for text in (script, ask))
    assert container["command"] == ["bash", "-euo", "pipefail", "-c"]
    scratch.manifest("champion", {})
    scratch.manifest("candidate", {"noise_seed": 2})
    assert shell(scratch, ask).returncode == 2, "no Job has ended"
    assert shell(scratch, script).returncode == 0
    assert shell(scratch, ask).returncode == 0
    scratch.manifest("candidate", {"bias_nats": 0.2, "noise_seed": 2})
    assert shell(scratch, ask).returncode == 2, "the pass was another candidate's"
    assert shell(scratch, script).returncode == 1
    assert shell(scratch, ask).returncode == 1
