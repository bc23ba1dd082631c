"""Everything that a pull request requires, done in order, with one comment, one JUnit file and one exit code.

1. Remove the results of an earlier run: what is there at the end is this run's.
2. Read the policy; find what changed. Bad input is an outcome too, and is told where the others are.
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
from checkweigh.report.pull_request import Outcome, Run, comment, junit
from checkweigh.sources.documents import read_policy
from checkweigh.sources.pin import lock_path, pin, verify
from checkweigh.sources.repository.git import repository
from checkweigh.usecases.ci.changes import Change, Changed, changed
from checkweigh.usecases.evalset_check import check_evalset
from checkweigh.usecases.policy_change import compare_policies
from checkweigh.usecases.read_decision import read_decision

GATES = "gates"
RESULTS, COMMENT, JUNIT = "ci.json", "comment.md", "junit.xml"
TAIL = 60  # last lines of a gate that are kept for the comment
DECIDED = (ExitCode.PASS, ExitCode.BLOCK, ExitCode.INCONCLUSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What ``ci gate`` is asked: ``options`` are passed to every gate."""

    base: str
    policy: Path
    out: Path
    baseline: str | None = None
    key: str = "checkweigh"
    options: tuple[str, ...] = ()


def run(asked: Asked, say: Say, progress: Progress) -> Run:
    """Do all of it; writes below ``asked.out``. BadInput and Broken only where nothing can be written there."""
    _clear(asked.out)
    merge_base, outcomes = None, []
    try:
        read_policy(asked.policy)
        with changed(asked.base, asked.baseline, Path.cwd()) as found:
            merge_base = found.merge_base
            say(found.text())
            for outcome in _outcomes(asked, found, say, progress):
                say(f"{outcome.path}: {outcome.need}: {outcome.text}")
                outcomes.append(outcome)
    except CheckweighError as error:
        text = "what changed could not be told, or a document of it is wrong"
        outcomes.append(
            Outcome(
                path="this change", status="", need="to be read", because="", baseline=None,
                exit_code=error.exit_code, text=text, detail=str(error),
            )
        )  # fmt: skip
        say(f"checkweigh: {error}")
    done = Run(
        key=asked.key, base=asked.base, merge_base=merge_base, head=_head(), policy=str(asked.policy),
        outcomes=tuple(outcomes), link=link(),
    )  # fmt: skip
    _write(done, asked.out)
    return done


def policies(base: str, say: Say) -> ExitCode:
    """``policy diff`` of every policy that differs from ``base``; a block when something got looser unexplained."""
    with changed(base, None, Path.cwd(), manifests=False) as found:
        outcomes = [_policy(found, change) for change in found.policies]
    for outcome in outcomes:
        say(f"{outcome.path}: {outcome.text}")
        say(outcome.detail)
    return Run(key="", base=base, merge_base=None, head=None, policy="", outcomes=tuple(outcomes)).exit_code


def pin_all(manifests: Sequence[Path], say: Say, progress: Progress) -> ExitCode:
    """Pin each; a block when a lock is new or another than it was. BadInput when one cannot be pinned."""
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
    """Say a waiver in the results of the run of CI that a gate's directory belongs to. BadInput if it cannot."""
    out = reports.resolve().parent.parent
    name = f"{reports.resolve().parent.name}/{reports.resolve().name}"
    try:
        value = json.loads((out / RESULTS).read_bytes())
        known = [outcome["reports"] for outcome in value["outcomes"]]
        if name not in known:
            return
        outcomes = [Outcome(**o | {"exit_code": ExitCode(o["exit_code"])}) for o in value["outcomes"]]
        kept = {key: value[key] for key in ("key", "base", "merge_base", "head", "policy", "link")}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{out / RESULTS}: expected the results of `ci gate`, which must show it ({error})"
        ) from None
    told = tuple(replace(o, waived=sentence) if o.reports == name else o for o in outcomes)
    _write(Run(**kept, outcomes=told), out)


def link() -> str | None:
    """The page of this run of CI, where its environment tells."""
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


def _write(done: Run, out: Path) -> None:
    """ci.json last: its presence means that the others are there."""
    summaries = {}
    for outcome in done.outcomes:
        file = out / (outcome.reports or GATES) / "summary.md"
        if outcome.reports and file.is_file():
            summaries[outcome.reports] = file.read_text("utf-8")
    write_atomic(out / COMMENT, comment(done, summaries).encode("utf-8", "replace"))
    write_atomic(out / JUNIT, junit(done).encode("utf-8", "replace"))
    write_atomic(out / RESULTS, json.dumps(done.as_json(), indent=1).encode())


def _outcomes(asked: Asked, found: Changed, say: Say, progress: Progress) -> Iterator[Outcome]:
    """One for each changed document: what is quick to refuse first."""
    yield from (_policy(found, change) for change in found.policies)
    yield from (_evalset(found, change, progress) for change in found.evalsets)
    for number, change in enumerate(found.manifests):
        if change.need == "gate":
            yield _gate(asked, found, change, number, say)
        elif change.need == "verify":
            yield _verified(found, change, progress)
        else:
            yield _outcome(change, ExitCode.PASS, change.because)


def _outcome(
    change: Change, code: ExitCode, text: str, detail: str = "", reports: str | None = None
) -> Outcome:
    return Outcome(
        path=change.path, status=change.status, need=change.need, because=change.because, baseline=change.baseline,
        exit_code=code, text=text, detail=detail, reports=reports,
    )  # fmt: skip


def _policy(found: Changed, change: Change) -> Outcome:
    if change.need == "nothing":
        return _outcome(change, ExitCode.PASS, change.because)
    assert change.baseline is not None
    try:
        new = read_policy(found.trees.now / change.path)
    except BadInput as error:
        return _outcome(change, ExitCode.BAD_INPUT, "it cannot be read", str(error))
    try:
        old = read_policy(found.trees.before / change.baseline)
    except BadInput as error:  # of another version of the tool, perhaps: what got looser is for people to see
        return _outcome(
            change, ExitCode.INCONCLUSIVE, "as it was it cannot be read", found.trees.told(str(error))
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


def _evalset(found: Changed, change: Change, progress: Progress) -> Outcome:
    if change.need == "nothing":
        return _outcome(change, ExitCode.PASS, change.because)
    try:
        checked = check_evalset((found.trees.now / change.path).parent, None, progress)
    except CheckweighError as error:
        return _outcome(change, error.exit_code, "it cannot be read", str(error))
    text = "it has errors" if checked.exit_code else change.because
    return _outcome(change, checked.exit_code, text, checked.text())


def _verified(found: Changed, change: Change, progress: Progress) -> Outcome:
    try:
        verify(found.trees.now / change.path, progress)
    except CheckweighError as error:
        return _outcome(change, error.exit_code, "what is there is not what is pinned", str(error))
    return _outcome(change, ExitCode.PASS, f"{change.because}; everything is what the lock says")


def _gate(asked: Asked, found: Changed, change: Change, number: int, say: Say) -> Outcome:
    """Steps: 1. run it, as anyone would; 2. hold its exit code against what it wrote."""
    assert change.baseline is not None
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", change.path)[-80:].strip("-.") or "manifest"
    reports = f"{GATES}/{number:02}-{slug}"
    say(f"{change.path}: gate against {change.baseline} at {found.merge_base[:12]}")
    arms = [str(found.trees.before / change.baseline), str(found.trees.now / change.path)]
    options = ["--policy", str(asked.policy), "--out", str(asked.out / reports), *asked.options]
    status, said = _spawn(["gate", *options, "--", *arms], say)
    code, text = judge(status, asked.out / reports, change)
    return _outcome(change, code, text, "" if code in DECIDED else found.trees.told(said), reports)


def judge(status: int, reports: Path, change: Change) -> tuple[ExitCode, str]:
    """What a gate's exit status means beside what it wrote: without this run's decision it is no verdict."""
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
    return ExitCode(status), decision.reasons[0]


def _spawn(arguments: Sequence[str], say: Say) -> tuple[int, str]:
    """Run checkweigh in a process of its own; exit status and the last lines it said, which are passed on."""
    own = {"PYTHONPATH": str(Path(checkweigh.__file__).resolve().parents[1])}
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "checkweigh", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **own},
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
