"""JUnit XML for CI systems. Nothing but a pass looks passed.

========================================  =====================================================
check                                     testcase
========================================  =====================================================
passed, passed with a warning             passes; the sentence is in system-out
blocked, gating                           ``<failure type="blocked">``
inconclusive, critical                    ``<error type="inconclusive">``
implausible gain, gating                  ``<error type="anomalous">``
inconclusive, supporting, prevents a pass ``<error type="inconclusive">``: no evidence on which it could have passed
inconclusive, supporting, otherwise       ``<skipped>``: such a check can block but is not needed for a pass
advisory or declared, whatever it says    passes, and system-out says that it gates nothing
the testcase ``verdict``                  passes for PASS only; failure for BLOCK, else error
waived later (``waived.suite``)           stays what it is; a property of the suite, and system-out
========================================  =====================================================
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from checkweigh.records.decision import Decision, Verdict
from checkweigh.report import view
from checkweigh.report.safe import one_line, visible


def junit(decision: Decision) -> str:
    """One test suite of one test case a check, and one named ``verdict``."""
    name = one_line(f"checkweigh {decision.baseline.name} -> {decision.candidate.name}", 200)
    suite = ET.Element("testsuite", name=name, timestamp=one_line(decision.provenance.ended, 40))
    suite.append(_verdict(decision))
    suite.extend(_case(row, decision) for row in view.check_rows(decision))
    counts = {
        "tests": len(suite),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
        "skipped": len(suite.findall("testcase/skipped")),
    }
    for key, value in counts.items():
        suite.set(key, str(value))
    root = ET.Element("testsuites", {key: str(value) for key, value in counts.items()})
    root.append(suite)
    return document(root)


def document(root: ET.Element) -> str:
    """The file of a tree."""
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _verdict(decision: Decision) -> ET.Element:
    case = ET.Element("testcase", classname=_class(decision), name="verdict", time="0")
    first = (view.headline(decision), *(one_line(line, 600) for line in view.first_lines(decision)))
    loaded = (one_line(view.effective_line(difference), 600) for difference in decision.effective_differences)
    body = visible("\n".join((*first, *decision.reasons, *loaded, *view.notes(decision))))
    if decision.verdict is Verdict.PASS:
        ET.SubElement(case, "system-out").text = body
    else:
        kind = "failure" if decision.verdict is Verdict.BLOCK else "error"
        _problem(case, kind, decision.verdict.value, decision.reasons[0], body)
    return case


def _case(row: view.CheckRow, decision: Decision) -> ET.Element:
    case = ET.Element("testcase", classname=f"{_class(decision)}.{row.tier}", name=one_line(row.id), time="0")
    body = visible(
        f"{row.word}: {row.sentence}\neffect {row.effect}; bounds {row.bounds}; "
        f"limit {row.limit}; {row.sure}\n{row.evidence}"
    )
    if not row.gating or row.outcome in ("passed", "warning"):
        gates = "" if row.gating else f"{row.tier}: this check gates nothing\n"
        ET.SubElement(case, "system-out").text = gates + body
    elif row.outcome == "blocked":
        _problem(case, "failure", "blocked", row.sentence, body)
    elif row.result.prevents_pass:
        _problem(case, "error", row.outcome, row.sentence, body)
    else:
        ET.SubElement(case, "skipped", message=one_line(f"{row.word}: {row.sentence}"))
        ET.SubElement(case, "system-out").text = body
    return case


def _problem(case: ET.Element, tag: str, kind: str, message: str, body: str) -> None:
    ET.SubElement(case, tag, type=kind, message=one_line(message)).text = body


def _class(decision: Decision) -> str:
    return one_line(f"checkweigh.{decision.policy_name}", 120)
