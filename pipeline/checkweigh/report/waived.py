"""A waiver in reports that are already written: one banner, in the place of an earlier one."""

from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree as ET

from checkweigh.errors import BadInput
from checkweigh.files import write_atomic
from checkweigh.report.junit import document
from checkweigh.report.markdown import plain
from checkweigh.report.safe import one_line

_LONGEST = 2500
_HTML_END = "</div></header>"  # of the verdict's banner; replies are escaped and cannot hold it
_OPEN, _CLOSE = "<!-- waiver -->", "<!-- /waiver -->"


def write_waived(out: Path, sentence: str) -> None:
    """Put the sentence into report.html, summary.md and junit.xml. BadInput when one of them is not a report."""
    texts = {}
    for name, change in (("report.html", page), ("summary.md", comment), ("junit.xml", suite)):
        path = out / name
        try:
            texts[path] = change(path.read_text(encoding="utf-8"), sentence)
        except (OSError, ValueError, ET.ParseError) as error:
            why = getattr(error, "strerror", None) or error
            raise BadInput(
                f"{path}: expected the report of a finished gate, which must show it ({why})"
            ) from None
    for path, text in texts.items():
        write_atomic(path, text.encode())


def page(text: str, sentence: str) -> str:
    """The HTML page with the waiver in its banner."""
    head, end, rest = text.partition(_HTML_END)
    if not end:
        raise ValueError("it has no banner")
    shown = html.escape(one_line(sentence, _LONGEST))
    note = f'{_OPEN}<p class="note" id="waiver"><b><bdi>{shown}</bdi></b></p>{_CLOSE}'
    return _without(head) + note + end + rest


def comment(text: str, sentence: str) -> str:
    """The comment with the waiver right below its heading."""
    head, line, rest = _split(text)
    note = f"{_OPEN}\n> **{plain(sentence, _LONGEST)}**\n{_CLOSE}\n"
    if rest.lstrip("\n").startswith(_OPEN):
        rest = _without(rest)
    return f"{head}{line}\n\n{note}\n{rest.lstrip()}"


def suite(text: str, sentence: str) -> str:
    """The JUnit file with the waiver as a property, and beside every case that it lets ship; none of them passes."""
    root = ET.fromstring(text)
    test_suite = root.find("testsuite")
    if test_suite is None:
        raise ValueError("it has no test suite")
    shown = one_line(sentence, _LONGEST)
    for old in test_suite.findall("properties"):
        test_suite.remove(old)
    properties = ET.Element("properties")
    ET.SubElement(properties, "property", name="waived", value=shown)
    test_suite.insert(0, properties)
    for case in test_suite.findall("testcase"):
        if case.find("failure") is None and case.find("error") is None:
            continue
        for old in case.findall("system-out"):
            case.remove(old)
        ET.SubElement(case, "system-out").text = shown
    return document(root)


def _split(text: str) -> tuple[str, str, str]:
    heading = re.search(r"^## .*$", text, re.MULTILINE)
    if heading is None:
        raise ValueError("it has no heading")
    return text[: heading.start()], heading[0], text[heading.end() :]


def _without(text: str) -> str:
    """Without the first waiver, which is ours: everything that could be hostile comes later."""
    return re.sub(rf"{_OPEN}.*?{_CLOSE}", "", text, count=1, flags=re.DOTALL)
