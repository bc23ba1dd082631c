"""A calibration for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from checkweigh.decision.compare import margin_of
from checkweigh.decision.formatting import duration
from checkweigh.decision.verdict import all_checks
from checkweigh.records.calibration import Calibration, Floor
from checkweigh.records.policy import Check, Policy
from checkweigh.report.safe import one_line


def table(calibration: Calibration, policy: Policy) -> RenderableType:
    """What the manifest differs from itself by, and whether the policy's margins stand clear of it."""
    rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="underline")
    for head in ("check", "floor", "honest margin", "policy's margin", ""):
        rows.add_column(head, justify="left" if head in ("check", "") else "right")
    for check in all_checks(policy):
        floor = _floor(check, calibration)
        name = one_line(check.id, 60)
        if floor is None:
            rows.add_row(
                name, "-", "-", "-", one_line(calibration.unmeasured.get(check.id, "not measured"), 100)
            )
            continue
        margin = margin_of(check)
        word = "" if margin >= floor.honest else "TOO SMALL"
        rows.add_row(
            name, f"{floor.floor:.4g}", f"{floor.honest:.4g}", f"{margin:.4g}", Text(word, "bold red")
        )
    spent = duration(sum(e.seconds for e in calibration.executions))
    kinds = ", ".join(f"plan {e.batches} on {e.threads}" for e in calibration.executions)
    head = f"{one_line(calibration.name, 60)} against itself: {len(calibration.executions)} executions in {spent}"
    return Group(Text(f"{head} (batch {kinds} threads)"), rows)


def _floor(check: Check, calibration: Calibration) -> Floor | None:
    wanted = (check.metric, check.statistic, check.where, set(check.evalset))
    return next(
        (f for f in calibration.floors if (f.metric, f.statistic, f.where, set(f.evalsets)) == wanted), None
    )
