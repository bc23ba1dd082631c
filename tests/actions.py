"""Runs the steps of a GitHub workflow and of composite actions here: shell steps for real, expressions as GitHub does.

Actions of others (checkout, cache, ...) are not run; what they are given is kept in ``Runner.used``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tests.github_server import FakeGithub
from tests.scratch import Repo

_TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|(\|\||&&|==|!=|!|\(|\)|,)|([A-Za-z_][\w.-]*))")
Context = Mapping[str, Any]


class _Parser:
    """A GitHub expression: literals, contexts, ``format``, ``cancelled`` and the logical operators."""

    def __init__(self, text: str, context: Context) -> None:
        self.tokens = [m.group(m.lastindex or 0) for m in _TOKEN.finditer(text)]
        assert "".join(self.tokens) == re.sub(r"\s", "", text) or "'" in text, f"cannot be read: {text}"
        self.context = context

    def take(self, *wanted: str) -> str | None:
        return self.tokens.pop(0) if self.tokens and self.tokens[0] in wanted else None

    def either(self) -> Any:
        value = self.both()
        while self.take("||"):
            other = self.both()
            value = value or other
        return value

    def both(self) -> Any:
        value = self.equal()
        while self.take("&&"):
            other = self.equal()
            value = value and other
        return value

    def equal(self) -> Any:
        value = self.one()
        while (sign := self.take("==", "!=")) is not None:
            other = self.one()
            value = (value == other) is (sign == "==")
        return value

    def one(self) -> Any:
        if self.take("!"):
            return not self.one()
        if self.take("("):
            value = self.either()
            assert self.take(")")
            return value
        token = self.tokens.pop(0)
        if token.startswith("'"):
            return token[1:-1].replace("''", "'")
        if self.take("("):
            return self.call(token)
        value: Any = self.context
        for part in token.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return "" if value is None else value

    def call(self, name: str) -> Any:
        arguments = []
        while not self.take(")"):
            arguments.append(self.either())
            self.take(",")
        if name == "format":
            return re.sub(r"\{(\d+)\}", lambda m: str(arguments[1 + int(m[1])]), arguments[0])
        return {"cancelled": False, "always": True, "success": not self.context["failed"]}[name]


def evaluate(text: object, context: Context) -> Any:
    """A value of a workflow file with its ``${{ }}`` replaced; of one that is all expression the value itself."""
    if not isinstance(text, str):
        return text
    whole = re.fullmatch(r"\$\{\{((?:(?!\}\}).)*)\}\}", text.strip())
    if whole:
        return _Parser(whole[1], context).either()

    def shown(match: re.Match[str]) -> str:
        return str(_Parser(match[1], context).either())

    return re.sub(r"\$\{\{(.*?)\}\}", shown, text)


@dataclass
class Runner:
    """A job's machine: a checkout, a directory for temporary files, the event's contexts, and what happened."""

    workspace: Path
    temporary: Path
    github: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)
    used: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    log: str = ""
    path: str = str(Path(sys.executable).parent)

    @property
    def summary(self) -> str:
        """The job's summary."""
        path = self.temporary / "summary.md"
        return path.read_text() if path.exists() else ""

    def job(self, workflow: Path, name: str, inputs: Mapping[str, Any] | None = None) -> int:
        """Run a job; 0, or the exit code of the step that failed it."""
        document = yaml.safe_load(workflow.read_text())
        context = {"github": self.github, "inputs": dict(inputs or {}), "runner": {"os": "Linux"}}
        code, _ = self.steps(document["jobs"][name]["steps"], context)
        return code

    def steps(self, steps: list[dict[str, Any]], context: Context) -> tuple[int, dict[str, Any]]:
        """Run steps in order; the exit code that failed them, and their outputs."""
        code, outputs = 0, {}
        for step in steps:
            now = {**context, "steps": outputs, "failed": code != 0}
            condition = str(step.get("if", "success()"))
            if not re.search(r"(cancelled|always|success)\(", condition) and code:
                continue
            condition = condition.strip().removeprefix("${{").removesuffix("}}")
            if not evaluate("${{" + condition + "}}", now):
                continue
            status, found = self.step(step, now)
            if "id" in step:
                outputs[step["id"]] = {"outputs": found}
            if status and not step.get("continue-on-error"):
                code = code or status
        return code, outputs

    def step(self, step: dict[str, Any], context: Context) -> tuple[int, dict[str, str]]:
        """One step; its exit code and outputs."""
        if "run" in step:
            return self.shell(step, context)
        given = {name: evaluate(value, context) for name, value in step.get("with", {}).items()}
        self.used.append((step["uses"], given))
        if not step["uses"].startswith("./"):
            return 0, {}
        action = yaml.safe_load((self.workspace / step["uses"] / "action.yml").read_text())
        inputs = {
            name: given.get(name, evaluate(spec.get("default", ""), context))
            for name, spec in action["inputs"].items()
        }
        missing = [
            name for name, spec in action["inputs"].items() if spec.get("required") and not inputs[name]
        ]
        assert not missing, missing
        code, outputs = self.steps(action["runs"]["steps"], {**context, "inputs": inputs})
        inner = {**context, "steps": outputs}
        return code, {name: evaluate(out["value"], inner) for name, out in action["outputs"].items()}

    def shell(self, step: dict[str, Any], context: Context) -> tuple[int, dict[str, str]]:
        """A ``run`` step, as ``shell: bash`` runs it."""
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "an expression in a script is an injection"
        self.commands.append(step["run"])
        out = self.temporary / "output.txt"
        out.write_text("")
        script = self.temporary / "step.sh"
        script.write_text(step["run"])
        own = {name: str(evaluate(value, context)) for name, value in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.workspace, capture_output=True, text=True, timeout=580, check=False,
            env={
                **os.environ, **self.env, **own, "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(out),
                "GITHUB_STEP_SUMMARY": str(self.temporary / "summary.md"), "RUNNER_TEMP": str(self.temporary),
                "PATH": f"{self.path}:{os.environ['PATH']}",
            },
        )  # fmt: skip
        self.log += f"--- {step['name']}: {done.returncode}\n{done.stdout}{done.stderr}"
        lines = [line.partition("=") for line in out.read_text().splitlines()]
        return done.returncode, {name: value for name, _, value in lines}


def machine(
    repo: Repo, github: FakeGithub, where: Path, home: Path, token: str, event: str = "pull_request"
) -> Runner:
    """The machine of a pull request's job: a clone with the merge of ``change`` into ``main`` checked out.

    With event ``push`` it is what runs after that merge, with ``merge_group`` what runs in a queue before it.
    """
    shutil.rmtree(where, ignore_errors=True)
    work = where / "work"
    repo.git("clone", "-q", str(repo.root), str(work))
    repo.git("checkout", "-q", "--detach", "origin/main", cwd=work)
    before = repo.git("rev-parse", "HEAD", cwd=work)
    repo.git("merge", "-q", "--no-ff", "-m", "merge", "origin/change", cwd=work)
    (where / "temp").mkdir()
    queued = {"base_sha": before} if event == "merge_group" else None
    number = {"number": 7} if event == "pull_request" else None
    contexts = {
        "event_name": event, "event": {"pull_request": number, "before": before, "merge_group": queued},
        "base_ref": "main" if number else "",
        "token": token, "run_id": "11", "run_attempt": "1", "job": "gate", "workflow": "w", "ref": "r",
    }  # fmt: skip
    env = {
        "GITHUB_API_URL": github.url,
        "GITHUB_REPOSITORY": "o/r",
        "GITHUB_SERVER_URL": "https://github.example",
    }
    env |= {"GITHUB_RUN_ID": "11", "CHECKWEIGH_HOME": str(home)}
    return Runner(work, where / "temp", contexts, env)
