"""A plan for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from checkweigh.decision.formatting import count, duration
from checkweigh.records.sample_plan import Plan, PlannedCheck
from checkweigh.report.safe import one_line


def table(plan: Plan) -> RenderableType:
    """Every gating check with the items it has and needs, then all of them together."""
    rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="underline")
    for head in ("check", "tier", "items", "for 80%", "for 90%", "margin", "smallest", "equal passes"):
        rows.add_column(head, justify="left" if head in ("check", "tier") else "right")
    for row in plan.checks:
        rows.add_row(*_cells(row))
    notes = [f"{row.check}: {row.note}" for row in plan.checks if row.note]
    sources = {row.source: [r.check for r in plan.checks if r.source == row.source] for row in plan.checks}
    notes += [f"noise of {', '.join(checks)}: {source}" for source, checks in sources.items()]
    lines = [Text(one_line(line, 300)) for line in (*_together(plan), *notes)]
    troubles = [Text(one_line(f"cannot settle: {line}", 300), "bold red") for line in plan.problems]
    return Group(rows, *lines, *troubles)


def _cells(row: PlannedCheck) -> tuple[str, ...]:
    def items(value: int | None) -> str:
        return "-" if value is None else count(value)

    chance = "-" if row.passes is None else f"{row.passes:.1%}"
    smallest = "-" if row.detectable is None else f"{row.detectable:.3g}"
    return (
        one_line(row.check, 60), row.tier, count(row.items), items(row.needed_80), items(row.needed_90),
        f"{row.margin:.3g}", smallest, "nothing can pass" if row.impossible else chance,
    )  # fmt: skip


def _together(plan: Plan) -> list[str]:
    lines = []
    if plan.joint is not None:
        lines.append(f"an equal candidate passes all critical checks with a chance of {plan.joint:.1%}")
    for expected in plan.expected:
        time = "" if expected.minutes is None else f", about {duration(60 * expected.minutes)}"
        lines.append(
            f"expected of a candidate that is {expected.candidate}: {expected.items:,.0f} of "
            f"{count(plan.items)} items{time}"
        )
    whole = "unknown" if plan.minutes is None else f"at most about {duration(60 * plan.minutes)}"
    lines.append(f"time: {whole} ({plan.cost})")
    return lines
