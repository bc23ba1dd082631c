"""Operating characteristics for the terminal, and as a page with a plot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from checkweigh.decision.formatting import count
from checkweigh.files import write_atomic
from checkweigh.records.operating_characteristics import Rates, Simulation
from checkweigh.report.html.svg import (
    Axis,
    el,
    label,
    line,
    picture,
)
from checkweigh.report.safe import one_line

HEADS = ("candidate", "ship %", "block %", "inconclusive %", "items", "by look 1")
STEP, TOP = 26.0, 40.0
FILE = "simulation.html"


def table(simulation: Simulation) -> RenderableType:
    """One row a scenario: shares with their Monte-Carlo standard errors, mean items, and blocks at the first look."""
    rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="underline")
    for head in HEADS:
        first = head == HEADS[0]
        rows.add_column(head, justify="left" if first else "right", no_wrap=not first)
    for rates in simulation.scenarios:
        rows.add_row(*_cells(rates))
    return Group(
        Text(headline(simulation)), rows, *(Text(one_line(note, 1000)) for note in notes(simulation))
    )


def headline(simulation: Simulation) -> str:
    """What was simulated."""
    looks = ", ".join(f"{look:g}" for look in simulation.looks)
    return (
        f"{one_line(simulation.policy_name, 60)}: {count(simulation.runs)} gates a row on "
        f"{count(simulation.items)} items, looks at {looks}; "
        f"checks correlated by {simulation.correlation:g}; seed {simulation.seed}"
    )


def notes(simulation: Simulation) -> list[str]:
    """What was drawn and what was not."""
    by_source: dict[str, list[str]] = defaultdict(list)
    for what, how in simulation.noise.items():
        scatter, _, source = how.partition("; ")
        by_source[source].append(f"{what} {scatter}")
    drawn = [f"{source}: {'; '.join(parts)}" for source, parts in by_source.items()]
    return [*drawn, *(f"{check} is left out: {why}" for check, why in simulation.left_out.items())]


def _cells(rates: Rates) -> tuple[str, ...]:
    def share(rate: float) -> str:
        return f"{100 * rate:.1f} ± {100 * rates.error(rate):.1f}"

    shares = (share(rates.ship), share(rates.block), share(rates.inconclusive))
    return (one_line(rates.scenario, 60), *shares, f"{rates.items:,.0f}", f"{rates.first_look:.1%}")


def plot(scenarios: Sequence[Rates], key: str = "rates") -> Markup:
    """A stacked bar a scenario: ship, inconclusive, block."""
    width, left, right = 960.0, 260.0, 60.0
    x = Axis(0.0, 1.0, left, width - right)
    bottom = TOP + STEP * len(scenarios)
    parts = [line(x(t / 4), TOP - 6, x(t / 4), bottom, "grid") for t in range(5)]
    parts += [label(x(t / 4), bottom + 18, f"{t / 4:.0%}", "muted", "middle") for t in range(5)]
    legend = (("ship", "o-passed"), ("inconclusive", "o-inconclusive"), ("block", "o-blocked"))
    for i, (word, class_) in enumerate(legend):
        parts.append(el("rect", x=left + 130 * i, y=8, width=14, height=14, class_=class_))
        parts.append(label(left + 130 * i + 20, 20, word, "name"))
    for row, rates in enumerate(scenarios):
        y, at = TOP + STEP * row, 0.0
        parts.append(label(left - 10, y + 15, rates.scenario, "name", "end", limit=40))
        for word, class_ in legend:
            rate = float(getattr(rates, word))
            tip = el("title", f"{rates.scenario}: {word} {rate:.1%} ± {rates.error(rate):.1%}")
            parts.append(
                el("rect", tip, x=x(at), y=y, width=x(at + rate) - x(at), height=STEP - 6, class_=class_)
            )
            at += rate
    title = "How often each kind of candidate ships, stays open and is blocked"
    return picture(key, title, width, bottom + 30, parts)


def write(simulation: Simulation, out: Path) -> Path:
    """Write the page below ``out``; its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("checkweigh.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("simulation.html.j2").render(
        headline=headline(simulation), heads=HEADS, rows=[_cells(rates) for rates in simulation.scenarios],
        plot=plot(simulation.scenarios), notes=notes(simulation), policy=simulation.policy,
    )  # fmt: skip
    path = out / FILE
    write_atomic(path, page.encode())
    return path
