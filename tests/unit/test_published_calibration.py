"""The page of what calibration found says what its results say, and its results cover the tests that are there."""

from __future__ import annotations

import ast
import json

from tests.calibration.publish import HERE, PAGE, RESULTS, page

CLAIMS = {"at_most", "at_least", "close_to", "fails"}


def test_the_page_is_what_the_script_makes_of_the_results() -> None:
    assert PAGE.read_text() == page(json.loads(RESULTS.read_text())), "run tests/calibration/publish.py"


def test_every_claim_has_been_put_to_2000_runs() -> None:
    rows = json.loads(RESULTS.read_text())
    claiming = {
        f"{path.name}::{node.name}"
        for path in sorted(HERE.glob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and CLAIMS & {argument.arg for argument in node.args.args}
    }
    assert claiming == {row["test"] for row in rows if row["kind"] != "table"}, "run the long tier again"
    assert min(row["of"] for row in rows if "of" in row) >= 2000
    assert {row["kind"] for row in rows} == {"at most", "at least", "close to", "known failure", "table"}


def test_no_claim_lies_outside_its_band() -> None:
    for row in json.loads(RESULTS.read_text()):
        if row["kind"] in ("table", "known failure"):
            continue
        band = 3 * (row["claim"] * (1 - row["claim"]) / row["of"]) ** 0.5
        assert row["kind"] == "at least" or row["rate"] <= row["claim"] + band, row
        assert row["kind"] == "at most" or row["rate"] >= row["claim"] - band, row
