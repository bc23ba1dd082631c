"""Everything that a pull request required, as one comment and as JUnit. Every name and text in it may be hostile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree as ET

from checkweigh.errors import ExitCode
from checkweigh.report.junit import document
from checkweigh.report.markdown import fenced, plain, titled
from checkweigh.report.safe import one_line, visible

MOST = 60_000  # characters; GitHub takes 65,536
_DETAIL = 3000
_ROWS = 20
_WORD = {
    ExitCode.PASS: ("✅", "pass"),
    ExitCode.BLOCK: ("⛔", "block"),
    ExitCode.BAD_INPUT: ("🚫", "bad input"),
    ExitCode.INCONCLUSIVE: ("⚠️", "held"),
    ExitCode.BROKEN: ("💥", "broken"),
}
_HEAD = {
    ExitCode.PASS: "nothing here keeps this change from shipping",
    ExitCode.BLOCK: "this change must not ship",
    ExitCode.BAD_INPUT: "this change cannot be gated as it is",
    ExitCode.INCONCLUSIVE: "this change is not shown to be good enough",
    ExitCode.BROKEN: "the gate broke, which says nothing about this change",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOutcome:
    """What came of one changed document, or of the question what changed.

    ``reports`` is a gate's directory; ``waived`` what a waiver of its verdict says.
    """

    path: str
    status: str
    need: str
    because: str
    baseline: str | None
    exit_code: ExitCode
    text: str
    detail: str = ""
    reports: str | None = None
    waived: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CiRun:
    """One run of CI: where it stood, and all outcomes. ``key`` tells its comment from those of other jobs."""

    key: str
    base: str
    merge_base: str | None
    head: str | None
    policy: str
    outcomes: tuple[ChangeOutcome, ...]
    link: str | None = None

    @property
    def exit_code(self) -> ExitCode:
        """The worst of all; a pass where nothing was required."""
        return ExitCode.worst(*(outcome.exit_code for outcome in self.outcomes))

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"schema": "checkweigh/ci@1", **asdict(self), "exit_code": int(self.exit_code)}


def marker(key: str) -> str:
    """The HTML comment that a comment of ours starts with."""
    return f"<!-- checkweigh-ci:{re.sub(r'-{2,}', '-', re.sub(r'[^A-Za-z0-9._-]', '-', key)[:100])} -->"


def comment(run: CiRun, summaries: dict[str, str]) -> str:
    """The comment, at most ``MOST`` characters; ``summaries``: directory of reports -> its summary.md."""
    head = "\n".join(_head(run))
    kept, left, room = [head], 0, MOST - len(head)
    for part in _parts(run, summaries):
        if len(part) + 2 <= room:
            kept.append(part)
            room -= len(part) + 2
        else:
            left += 1
    if left:
        kept.append(f"_{left} parts did not fit into a comment; the job's artifact has them._")
    return "\n\n".join(kept) + "\n"


def unfinished(key: str, link: str | None) -> str:
    """The comment of a run that left no results."""
    where = f" [Its log]({link}) may say more." if link else ""
    heading = f"## {_WORD[ExitCode.BROKEN][0]} checkweigh: {_HEAD[ExitCode.BROKEN]}"
    return f"{marker(key)}\n{heading}\n\nThe run ended without results, which is no pass.{where}\n"


def _head(run: CiRun) -> Iterator[str]:
    sign, word = _WORD[run.exit_code]
    yield marker(run.key)
    if not run.outcomes:
        yield f"## {sign} checkweigh: no manifest, policy or evaluation set differs"
    else:
        yield f"## {sign} checkweigh: {word}: {_HEAD[run.exit_code]}"
    yield ""
    at = f" at `{run.merge_base[:12]}`" if run.merge_base else ""
    stands = f"`{run.head[:12]}` against " if run.head else "Against "
    line = (
        f"{stands}{plain(run.base, 100)}{at}, policy {plain(run.policy, 100)}, exit code {int(run.exit_code)}"
    )
    yield line + (f" ([log]({run.link}))" if run.link else "")


def _parts(run: CiRun, summaries: dict[str, str]) -> Iterator[str]:
    rows = [_row(outcome) for outcome in run.outcomes]
    for start in range(0, len(rows), _ROWS):  # what is too long for one comment loses its last rows first
        head = ["| changed | | needs | result |", "|---|---|---|---|"]
        yield "\n".join([*head, *rows[start : start + _ROWS]])
    for outcome in sorted(run.outcomes, key=lambda o: -o.exit_code.severity):
        body = []
        if outcome.detail:
            body.append(fenced(outcome.detail, _DETAIL))
        if outcome.reports in summaries:
            body.append(_without_marker(summaries[outcome.reports]))
        if body:
            sign, word = _WORD[outcome.exit_code]
            title = f"{sign} {titled(outcome.path, 120)}: {titled(outcome.need)}: {word}"
            opened = " open" if outcome.exit_code is not ExitCode.PASS else ""
            yield f"<details{opened}><summary>{title}</summary>\n\n" + "\n\n".join(body) + "\n\n</details>"


def _row(outcome: ChangeOutcome) -> str:
    sign, word = _WORD[outcome.exit_code]
    need = outcome.need if outcome.baseline is None else f"{outcome.need} against {outcome.baseline}"
    cells = [plain(outcome.path, 100), plain(outcome.status), plain(need, 150)]
    waived = f" **{plain(outcome.waived, 300)}**" if outcome.waived else ""
    return f"| {' | '.join(cells)} | {sign} {word}: {plain(outcome.text, 400)}{waived} |"


def _without_marker(summary: str) -> str:
    first, _, rest = summary.partition("\n")
    return rest.strip() if first.startswith("<!-- checkweigh:") else summary.strip()


def junit(run: CiRun) -> str:
    """One test case an outcome. Nothing but a pass looks passed."""
    suite = ET.Element("testsuite", name=one_line(f"checkweigh ci {run.policy}", 200))
    for outcome in run.outcomes:
        name = one_line(f"{outcome.path}: {outcome.need}", 200)
        case = ET.SubElement(suite, "testcase", classname="checkweigh.ci", name=name, time="0")
        body = visible("\n".join(filter(None, (outcome.because, outcome.text, outcome.detail))))
        word = _WORD[outcome.exit_code][1]
        if outcome.exit_code is ExitCode.PASS:
            ET.SubElement(case, "system-out").text = body
        else:
            tag = "failure" if outcome.exit_code is ExitCode.BLOCK else "error"
            ET.SubElement(case, tag, type=word, message=one_line(outcome.text)).text = body
            if outcome.waived:
                ET.SubElement(case, "system-out").text = one_line(outcome.waived, 2500)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    root = ET.Element("testsuites")
    root.append(suite)
    return document(root)
