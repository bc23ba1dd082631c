"""Everything that a pull request requires, done in order, with one comment, one JUnit file and one exit code.

1. Remove the results of an earlier run: what is there at the end is this run's.
2. Read the policy; find what changed. Bad input is an outcome too, reported where the others are.
3. Policies: what got looser. Sets: ``evalset check``. Manifests: ``verify``, or a gate in a process of its own.
4. A gate's exit code counts only beside the ``decision.json`` of this very run, for these very pins.
5. Write ci.json, junit.xml and comment.md; the exit code is the worst of all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import checkweigh
from checkweigh import report
from checkweigh.errors import BadInput, CheckweighError, ExitCode, StoreError
from checkweigh.files import write_atomic
from checkweigh.progress import Progress, Say
from checkweigh.report.pull_request import ChangeOutcome, CiRun, comment, junit
from checkweigh.report.view import first_lines
from checkweigh.sources.documents import read_policy
from checkweigh.sources.pin import lock_path, pin, verify
from checkweigh.sources.repository.git import repository
from checkweigh.usecases.ci.changes import ChangedDocument, PullRequestChanges, changes_since
from checkweigh.usecases.evalset_check import check_evalset
from checkweigh.usecases.policy_change import compare_policies
from checkweigh.usecases.read_decision import read_decision

GATES = "gates"
RESULTS, COMMENT, JUNIT = "ci.json", "comment.md", "junit.xml"
TAIL = 60  # last lines of a gate that are kept for the comment
DECIDED = (ExitCode.PASS, ExitCode.BLOCK, ExitCode.INCONCLUSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CiRequest:
    """What ``ci gate`` was asked. ``options`` are passed to every gate."""

    base: str
    policy: Path
    out: Path
    baseline: str | None = None
    key: str = "checkweigh"
    options: tuple[str, ...] = ()


def run_ci(request: CiRequest, say: Say, progress: Progress) -> CiRun:
    """Do everything that the change requires and write the results below ``request.out``.

    Raises BadInput and Broken only where nothing can be written there; every other failure is an outcome.
    """
    _clear(request.out)
    merge_base, outcomes = None, []
    try:
        read_policy(request.policy)
        with changes_since(request.base, request.baseline, Path.cwd()) as changes:
            merge_base = changes.merge_base
            say(changes.text())
            for outcome in _outcomes(request, changes, say, progress):
                say(f"{outcome.path}: {outcome.need}: {outcome.text}")
                outcomes.append(outcome)
    except CheckweighError as error:
        text = "could not determine what changed, or one of the changed files is invalid (details below)"
        outcomes.append(
            ChangeOutcome(
                path="this change", status="", need="to be read", because="", baseline=None,
                exit_code=error.exit_code, text=text, detail=str(error),
            )
        )  # fmt: skip
        say(f"checkweigh: {error}")
    run = CiRun(
        key=request.key, base=request.base, merge_base=merge_base, head=_head(), policy=str(request.policy),
        outcomes=tuple(outcomes), link=run_url(),
    )  # fmt: skip
    write_results(run, request.out)
    return run


def check_policies(base: str, say: Say) -> ExitCode:
    """Compare every policy that differs from ``base``; BLOCK when something got looser without a new reason."""
    with changes_since(base, None, Path.cwd(), manifests=False) as changes:
        outcomes = [_policy(changes, change) for change in changes.policies]
    for outcome in outcomes:
        say(f"{outcome.path}: {outcome.text}")
        say(outcome.detail)
    return ExitCode.worst(*(outcome.exit_code for outcome in outcomes))


def pin_all(manifests: Sequence[Path], say: Say, progress: Progress) -> ExitCode:
    """Pin each manifest; BLOCK when a lock is new or has changed. Raises BadInput when one cannot be pinned."""
    code = ExitCode.PASS
    for path in manifests:
        file = lock_path(path)
        before = file.read_bytes() if file.is_file() else None
        pin(path, progress)
        if file.read_bytes() != before:
            say(f"{file}: written anew; add it to the commit")
            code = ExitCode.BLOCK
    return code


def show_waived(reports: Path, sentence: str) -> None:
    """Show a waiver in the results of the CI run that a gate's directory belongs to. BadInput when it cannot be."""
    out = reports.resolve().parent.parent
    name = f"{reports.resolve().parent.name}/{reports.resolve().name}"
    try:
        value = json.loads((out / RESULTS).read_bytes())
        known = [outcome["reports"] for outcome in value["outcomes"]]
        if name not in known:
            return
        outcomes = [ChangeOutcome(**o | {"exit_code": ExitCode(o["exit_code"])}) for o in value["outcomes"]]
        kept = {key: value[key] for key in ("key", "base", "merge_base", "head", "policy", "link")}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{out / RESULTS}: expected the results of `ci gate`, which must show it ({error})"
        ) from None
    waived = tuple(replace(o, waived=sentence) if o.reports == name else o for o in outcomes)
    write_results(CiRun(**kept, outcomes=waived), out)


def run_url() -> str | None:
    """The page of this CI run, where the environment variables of GitHub Actions name it."""
    server, name, number = (os.environ.get(f"GITHUB_{n}") for n in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
    address = f"{server}/{name}/actions/runs/{number}"
    return address if re.fullmatch(r"https?://[\w.:-]+/[\w./-]+", address) and server and number else None


def _head() -> str | None:
    try:
        return repository(Path.cwd()).commit("HEAD")
    except BadInput:
        return None


def _clear(out: Path) -> None:
    """BadInput where it would remove what is not a run's: ``--out .`` must not cost anyone their policies."""
    gates = out / GATES
    try:
        out.mkdir(parents=True, exist_ok=True)
        strange = (
            [path for path in gates.iterdir() if not re.match(r"\d\d-", path.name)] if gates.exists() else []
        )
        if strange:
            raise BadInput(f"--out {out}: expected a directory for results alone, found {strange[0]}")
        for name in (RESULTS, COMMENT, JUNIT):
            (out / name).unlink(missing_ok=True)
        if gates.exists():
            shutil.rmtree(gates)
    except OSError as error:
        raise BadInput(f"--out {out}: expected a directory that can be written ({error.strerror})") from error


def write_results(run: CiRun, out: Path) -> None:
    """Write comment.md, junit.xml and, last, ci.json: its presence means that the others are there."""
    summaries = {}
    for outcome in run.outcomes:
        file = out / (outcome.reports or GATES) / "summary.md"
        if outcome.reports and file.is_file():
            summaries[outcome.reports] = file.read_text("utf-8")
    write_atomic(out / COMMENT, comment(run, summaries).encode("utf-8", "replace"))
    write_atomic(out / JUNIT, junit(run).encode("utf-8", "replace"))
    write_atomic(out / RESULTS, json.dumps(run.as_json(), indent=1).encode())


def _outcomes(
    request: CiRequest, changes: PullRequestChanges, say: Say, progress: Progress
) -> Iterator[ChangeOutcome]:
    """One for each changed document: what is quick to refuse first."""
    yield from (_policy(changes, change) for change in changes.policies)
    yield from (_evalset(changes, change, progress) for change in changes.evalsets)
    for number, change in enumerate(changes.manifests):
        if change.need == "gate":
            yield _run_gate(request, changes, change, number, say)
        elif change.need == "verify":
            yield _verify(changes, change, progress)
        else:
            yield _outcome(change, ExitCode.PASS, change.because)


def _outcome(
    change: ChangedDocument, code: ExitCode, text: str, detail: str = "", reports: str | None = None
) -> ChangeOutcome:
    return ChangeOutcome(
        path=change.path, status=change.status, need=change.need, because=change.because, baseline=change.baseline,
        exit_code=code, text=text, detail=detail, reports=reports,
    )  # fmt: skip


def _policy(changes: PullRequestChanges, change: ChangedDocument) -> ChangeOutcome:
    if change.need == "nothing":
        return _outcome(change, ExitCode.PASS, change.because)
    assert change.baseline is not None
    try:
        new = read_policy(changes.trees.now / change.path)
    except BadInput as error:
        return _outcome(change, ExitCode.BAD_INPUT, "it cannot be read", str(error))
    try:
        old = read_policy(changes.trees.before / change.baseline)
    except BadInput as error:  # of another version of the tool, perhaps: what got looser is for people to see
        return _outcome(
            change,
            ExitCode.INCONCLUSIVE,
            "as it was it cannot be read",
            changes.trees.with_repo_paths(str(error)),
        )
    looser = compare_policies(old, new)
    if not looser.loosenings:
        return _outcome(change, ExitCode.PASS, "nothing got looser")
    listed = "\n".join(looser.lines())
    if looser.unexplained:
        text = f"looser in {looser.unexplained} places without a new reason"
        return _outcome(change, ExitCode.BLOCK, text, listed)
    text = f"looser in {len(looser.loosenings)} places, each with a new reason"
    return _outcome(change, ExitCode.PASS, text, listed)


def _evalset(changes: PullRequestChanges, change: ChangedDocument, progress: Progress) -> ChangeOutcome:
    if change.need == "nothing":
        return _outcome(change, ExitCode.PASS, change.because)
    try:
        checked = check_evalset((changes.trees.now / change.path).parent, None, progress)
    except CheckweighError as error:
        return _outcome(change, error.exit_code, "it cannot be read", str(error))
    text = "it has errors" if checked.exit_code else change.because
    return _outcome(change, checked.exit_code, text, checked.text())


def _verify(changes: PullRequestChanges, change: ChangedDocument, progress: Progress) -> ChangeOutcome:
    try:
        verify(changes.trees.now / change.path, progress)
    except CheckweighError as error:
        return _outcome(change, error.exit_code, "what is there is not what is pinned", str(error))
    return _outcome(change, ExitCode.PASS, f"{change.because}; everything is what the lock says")


def _run_gate(
    request: CiRequest, changes: PullRequestChanges, change: ChangedDocument, number: int, say: Say
) -> ChangeOutcome:
    """Run one gate in a process of its own and compare its exit code with the decision that it wrote."""
    assert change.baseline is not None
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", change.path)[-80:].strip("-.") or "manifest"
    reports = f"{GATES}/{number:02}-{slug}"
    say(f"{change.path}: gate against {change.baseline} at {changes.merge_base[:12]}")
    arms = [str(changes.trees.before / change.baseline), str(changes.trees.now / change.path)]
    options = ["--policy", str(request.policy), "--out", str(request.out / reports), *request.options]
    status, last_lines = _run_checkweigh(["gate", *options, "--", *arms], say)
    code, text = check_gate_result(status, request.out / reports, change)
    return _outcome(
        change, code, text, "" if code in DECIDED else changes.trees.with_repo_paths(last_lines), reports
    )


def check_gate_result(status: int, reports: Path, change: ChangedDocument) -> tuple[ExitCode, str]:
    """Exit code and reason of a gate. Its exit status counts only beside this run's decision, about these pins."""
    if status == ExitCode.BAD_INPUT:
        return ExitCode.BAD_INPUT, "the gate refused its input"
    if status not in DECIDED:
        how = f"ended by signal {-status}" if status < 0 else f"exit code {status}"
        return ExitCode.BROKEN, f"the gate broke ({how})"
    try:
        decision = read_decision(reports)
    except BadInput:
        return ExitCode.BROKEN, f"exit code {status} without a {report.DECISION} that can be read: no verdict"
    if decision.exit_code != status:
        return (
            ExitCode.BROKEN,
            f"exit code {status}, but the decision's is {int(decision.exit_code)}: no verdict",
        )
    if (decision.baseline.pins, decision.candidate.pins) != (change.baseline_pins, change.candidate_pins):
        return ExitCode.BROKEN, "the decision is about other pins: no verdict"
    return ExitCode(status), "; ".join((*first_lines(decision), decision.reasons[0]))


def _run_checkweigh(arguments: Sequence[str], say: Say) -> tuple[int, str]:
    """Run checkweigh in a process of its own: its exit status and last lines of output. ``say`` gets every line."""
    environment = {**os.environ, "PYTHONPATH": str(Path(checkweigh.__file__).resolve().parents[1])}
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "checkweigh", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
    except OSError as error:
        raise StoreError(f"a gate could not be started ({error})") from error
    last: deque[str] = deque(maxlen=TAIL)
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last.append(line.decode("utf-8", "replace").rstrip())
                say(last[-1])
        except BaseException:
            process.terminate()
            raise
    return process.returncode, "\n".join(last).strip()
