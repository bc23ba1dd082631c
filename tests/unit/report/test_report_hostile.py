"""Hostile texts in every place where they are shown: CI logs, comments, summaries, JUnit, HTML and MLflow."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from tests.unit.report import sample
from tests.unit.report.sample import HOSTILE

from checkweigh.cli.common import harmless_output, say
from checkweigh.errors import ExitCode
from checkweigh.records.decision import Verdict
from checkweigh.report.markdown import summary, titled
from checkweigh.report.pull_request import MOST, ChangeOutcome, CiRun, comment, junit, marker
from checkweigh.report.safe import inert
from checkweigh.report.terminal import print_decision
from checkweigh.sinks.items_table import items_table

ANY_TEXT = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(HOSTILE)
# What the runners of GitHub and Azure obey in a log: at the start of a line, after blanks; or anywhere in it.
LOGGED = next(text for text in HOSTILE if "::set-output" in text)
COMMAND = re.compile(r"(?m)^\s*::|##\[|##vso\[")
UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff]")


class Shown(HTMLParser):
    """Tags of a page, and its text outside of code, where GitHub looks for mentions and links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.code = self.comments = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.code += tag == "code"

    def handle_endtag(self, tag: str) -> None:
        self.code -= tag == "code"

    def handle_comment(self, data: str) -> None:
        self.comments += 1

    def handle_data(self, data: str) -> None:
        if not self.code:
            self.words.append(data)


def rendered(text: str) -> Shown:
    """As GitHub would: HTML allowed, tables on."""
    return Shown(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def outcome(text: str, code: ExitCode = ExitCode.BLOCK, **changes: Any) -> ChangeOutcome:
    values = {
        "path": text, "status": "modified", "need": "gate", "because": text, "baseline": text, "exit_code": code,
        "text": text, "detail": text, "reports": "gates/00",
    } | changes  # fmt: skip
    return ChangeOutcome(**values)


def run(*outcomes: ChangeOutcome, text: str = "main") -> CiRun:
    return CiRun(key=text, base=text, merge_base="a" * 40, head="b" * 40, policy=text, outcomes=outcomes)


@given(ANY_TEXT)
def test_a_comment_says_hostile_names_and_obeys_none(text: str) -> None:
    body = comment(
        run(outcome(text), outcome(text, ExitCode.PASS), text=text),
        {"gates/00": "<!-- checkweigh:x -->\nsum"},
    )
    assert body.startswith(f"{marker(text)}\n## ⛔ checkweigh: block")
    assert len(body) <= MOST
    assert not UNSHOWN.search(body)
    shown = rendered(body)
    allowed = {"h2", "p", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre", "code"}
    assert shown.tags <= allowed
    assert shown.comments == 1, "the marker"
    words = " ".join(shown.words)
    assert not re.search(r"@\w|(?<!&)#\d|://|www\.|\bGH-\d", words)
    assert not re.search(r"(?m)^/(approve|merge)", words)


@given(ANY_TEXT)
def test_a_title_is_text_inside_html(text: str) -> None:
    shown = Shown(f"<summary>{titled(text)}</summary>")
    assert shown.tags == {"summary"}
    assert not re.search(r"@\w|#\d|://|www\.|:\w+:", "".join(shown.words))


def test_a_comment_of_giants_fits_and_says_what_it_leaves_out() -> None:
    body = comment(run(*(outcome("@#|`" * 20_000) for _ in range(300))), {"gates/00": "x" * 59_000})
    assert len(body) <= MOST
    assert "parts did not fit" in body
    assert body.count("⛔ block:") >= 20


@given(ANY_TEXT)
def test_junit_of_a_pull_request_is_legal_and_nothing_but_a_pass_passes(text: str) -> None:
    codes = list(ExitCode)
    root = ET.fromstring(junit(run(*(outcome(text, code) for code in codes), text=text)).encode())
    cases = root.findall("testsuite/testcase")
    passed = [case.find("failure") is None and case.find("error") is None for case in cases]
    assert passed == [code is ExitCode.PASS for code in codes]


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_summary_mentions_nobody(verdict: Verdict) -> None:
    words = " ".join(rendered(summary(sample.decision(verdict, True), sample.pairs(True))).words)
    assert not re.search(r"@\w|(?<!&)#\d|://|www\.|\bGH-\d", words)


def test_the_table_for_mlflow_is_json_of_visible_text() -> None:
    value = json.loads(items_table(sample.pairs(hostile=True)))
    texts = [cell for row in value["data"] for cell in row if isinstance(cell, str)]
    assert any("set-output" in text for text in texts)
    assert not any(UNSHOWN.search(text) for text in texts)
    assert max(map(len, texts)) < 2200


@given(ANY_TEXT)
def test_inert_text_commands_no_runner(text: str) -> None:
    assert not COMMAND.search(inert(text))
    assert inert(inert(text)) == inert(text)
    assert inert(text).replace("\u200b", "") == text.replace("\u200b", "")


@pytest.mark.parametrize("width", [40, 100])
def test_a_log_of_ci_holds_no_command_of_a_model_s(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    decision = sample.decision(Verdict.BLOCK, True)
    commands = "\n".join(HOSTILE[:-1]).encode("utf-8", "replace").decode()
    decision = decision.model_copy(update={"reasons": tuple(LOGGED.splitlines()), "policy_name": LOGGED})
    with harmless_output():
        print_decision(decision, Console(stderr=True, width=width))
        say(f"checkweigh: {commands}")
        print(json.dumps({"reasons": commands}, indent=2, ensure_ascii=False))
    out, err = capsys.readouterr()
    assert "set-output" in err
    assert not COMMAND.search(err)
    assert not COMMAND.search(out)
    assert json.loads(out) == {"reasons": commands}, "the same value"
    assert not UNSHOWN.search(err)


def test_outside_of_ci_output_is_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("TF_BUILD", raising=False)
    before = sys.stderr
    with harmless_output():
        assert sys.stderr is before
        say("std::vector \x1b[2J \u202e")
    assert capsys.readouterr().err == "std::vector ⟨ESC⟩[2J ⟨U+202E⟩\n"


def test_the_streams_are_given_back_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_BUILD", "True")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)

    @harmless_output()
    def crash() -> None:
        print("##vso[task.complete]", file=sys.stderr)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    assert sys.stderr is stream
    assert stream.getvalue() == "#\u200b#vso[task.complete]\n"
