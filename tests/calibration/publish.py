"""Writes docs/calibration.md from results/long.json: what calibration found, its failures included.

CHECKWEIGH_CALIBRATION_JSON=tests/calibration/results/long.json python -m pytest tests/calibration -m long
python tests/calibration/publish.py
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "long.json"
PAGE = HERE.parents[1] / "docs" / "calibration.md"
SUBJECTS = {
    "means": "Means with clusters",
    "tango": "Paired 0/1 outcomes (Tango's score, clustered)",
    "ratios": "Log-perplexity and other ratios",
    "divergence": "Divergence",
    "blocks": "Latency in paired blocks",
    "rates": "Rates under a load",
    "limits": "Absolute limits, equivalence",
    "block_rule": "The block rule at a fixed number of items",
    "streams": "Always-valid bounds, rates of independent groups",
    "policies": "Whole policies at adaptive looks",
}
HEAD = """# What calibration found

Made by `tests/calibration/publish.py` from [its results](../tests/calibration/results/long.json); a test holds the two
against each other. {runs:,} simulations a cell, seeded, through the code that gates run; the normal test run repeats
all of it with 400. A claim holds when no rate lies further from it than three Monte-Carlo standard errors.

## Operating characteristics

K critical checks of equal sets, correlated by .3, looks at .125, .25, .5 and all; the margin is m/se standard errors of
the last look. Items are out of 4,000. Equal: ship / block / inconclusive. K = 30 at m/se = 3.5, too thin a
plan (an equal candidate stays open 40% of the time), is in the tests with 400 simulations only.

| K, m/se | equal | one check at -m ships | one at -1.5 m: blocked (mean items) | one at -3 m: by the first look |
|---|---|---|---|---|
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The whole page."""
    tables = [row["numbers"] for row in rows if row["kind"] == "table"]
    claims = [row for row in rows if row["kind"] not in ("table", "known failure")]
    text = HEAD.format(runs=int(tables[0]["runs"]))
    text += "".join(_characteristics(numbers) for numbers in tables)
    text += "\n## Failures that are known\n\nRecorded, not repaired: a test notices when one gets better or worse.\n\n"
    text += "| where | nominal | found | of |\n|---|---|---|---|\n"
    text += "".join(
        f"| {_words(row)}{_cell(row)} | {row['claim']:.1%} | {row['rate']:.1%} | {row['of']:,} |\n"
        for row in rows
        if row["kind"] == "known failure"
    )
    by_subject: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in claims:
        by_subject[row["test"].split("::")[0].removeprefix("test_calibrated_").removesuffix(".py")].append(
            row
        )
    for subject, title in SUBJECTS.items():
        text += f"\n## {title}\n\n| test | counted | claim | rates | cells |\n|---|---|---|---|---|\n"
        text += "".join(_claims(by_subject.get(subject, [])))
    return text


def _characteristics(n: dict[str, float]) -> str:
    return (
        f"| {n['checks']:.0f}, {n['ratio']:g} | {n['ship']:.1%} / {n['block']:.1%} / {n['inconclusive']:.1%} "
        f"| {n['at_margin_ship']:.1%} | {n['beyond_block']:.1%} ({n['beyond_items']:,.0f}) | {n['far_first']:.0%} |\n"
    )


def _claims(rows: list[dict[str, Any]]) -> Iterator[str]:
    groups: dict[tuple[str, str, str, float], list[float]] = defaultdict(list)
    for row in rows:
        groups[_words(row), row["what"], row["kind"], row["claim"]].append(row["rate"])
    for (words, what, kind, claim), rates in groups.items():
        low, high = min(rates), max(rates)
        span = f"{low:.1%}" if high - low < 5e-4 else f"{low:.1%} to {high:.1%}"
        counted = what.replace("|", "\\|")
        yield f"| {words} | `{counted}` | {kind} {claim:.1%} | {span} | {len(rates)} |\n"


def _words(row: dict[str, Any]) -> str:
    return str(row["test"].split("::test_")[1].removeprefix("known_failure_").replace("_", " "))


def _cell(row: dict[str, Any]) -> str:
    return f" ({row['cell']})" if row["cell"] else ""


def merged(files: list[str]) -> list[dict[str, Any]]:
    """The rows of all files; a test's cell in a later one replaces the same cell before."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        fresh: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in json.loads(Path(file).read_text()):
            numbers = row.get("numbers", {})
            fresh[
                json.dumps([row["test"], row.get("cell", ""), numbers.get("checks"), numbers.get("ratio")])
            ].append(row)
        rows |= fresh
    order = sorted(rows, key=lambda key: json.loads(key)[0].split("::")[0])
    return [row for key in order for row in rows[key]]


def main() -> None:
    """Take in new results, if there are any, and write the page."""
    if sys.argv[1:]:
        known = [str(RESULTS)] if RESULTS.exists() else []
        rows = merged([*known, *sys.argv[1:]])
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    PAGE.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
