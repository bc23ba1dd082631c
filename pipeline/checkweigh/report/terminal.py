"""The terminal report: the verdict in the first line, in words; then why; then the table.

Everything printed is ``rich.text.Text`` built from ``one_line`` texts, so neither escape sequences nor rich
markup in a record do anything. Colour repeats what words say and is left out by rich where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from checkweigh.decision import formatting
from checkweigh.records.comparison import Inestimable
from checkweigh.records.decision import Decision, Verdict
from checkweigh.report import view
from checkweigh.report.safe import one_line

_WIDE, _MIDDLE = 100, 80  # widths from which the bounds, and how sure one is, have columns of their own
_CHANGES = 8
_TOKENS, _CONTEXT = 4, 40
_STYLE = {
    Verdict.PASS: "bold white on green",
    Verdict.INCONCLUSIVE: "bold black on yellow",
    Verdict.BLOCK: "bold white on red",
    Verdict.ERROR: "bold white on magenta",
}
_OUTCOME = {
    "passed": "green", "warning": "yellow", "blocked": "bold red", "inconclusive": "bold yellow",
    "anomalous": "bold yellow",
}  # fmt: skip
_ASCII = str.maketrans({"→": "->", "≤": "<=", "≥": ">=", "×": "x", "…": "...", "µ": "u"})


@dataclass(frozen=True, slots=True)
class Screen:
    """A decision as a rich renderable that fits the console it is printed on."""

    decision: Decision

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out for the console's width and encoding."""
        pen = _Pen(ascii_only=options.ascii_only)
        yield Group(*_blocks(self.decision, pen, options.max_width))


@dataclass(frozen=True, slots=True)
class _Pen:
    """Turns untrusted text into ``Text``; in ASCII where the console has nothing else."""

    ascii_only: bool

    def __call__(self, text: str, style: str = "", limit: int = 300) -> Text:
        line = one_line(text, limit)
        if self.ascii_only:
            line = line.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
        return Text(line, style=style)


def render(decision: Decision) -> Screen:
    """The decision as a rich renderable."""
    return Screen(decision)


def print_decision(decision: Decision, console: Console) -> None:
    """Print the decision; the console decides about colour (none off a terminal or under NO_COLOR)."""
    console.print(render(decision), highlight=False)


def _blocks(decision: Decision, pen: _Pen, width: int) -> Iterator[RenderableType]:
    yield from _head(decision, pen)
    if decision.checks:
        yield _checks(decision, pen, width)
        yield pen(view.P_NOTE, "dim")
        yield Text("")
    yield from _unestimated(decision, pen)
    yield from _settling(decision, pen)
    yield from _divergence(decision, pen)
    if decision.stages:
        yield _stages(decision, pen)
        yield Text("")
    for note in view.notes(decision):
        yield pen(note, "bold magenta" if note.startswith("UNSAFE") else "")
    # Once more, because the first line may have scrolled away.
    yield Text(f" {view.headline(decision)} ", style=_STYLE[decision.verdict])


def _head(decision: Decision, pen: _Pen) -> Iterator[RenderableType]:
    yield Text(f" {view.headline(decision)} ", style=_STYLE[decision.verdict])
    arms = pen(decision.baseline.name, "bold", 60)
    arms.append(" -> ").append_text(pen(decision.candidate.name, "bold", 60))
    arms.append_text(pen(f"   policy {decision.policy_name}, exit code {int(decision.exit_code)}", "dim"))
    yield arms
    for line in view.first_lines(decision):
        yield Padding(pen(line, "bold", 400), (0, 0, 0, 2))
    for reason in decision.reasons:
        yield Padding(pen(f"- {reason}", limit=400), (0, 0, 0, 2))
    yield Text("")
    yield _changes(decision, pen)
    for difference in decision.effective_differences[:_CHANGES]:
        yield pen(view.effective_line(difference), limit=400)
    if (left := len(decision.effective_differences) - _CHANGES) > 0:
        yield pen(f"and {left} more in what is loaded", "dim")
    yield Text("")


def _changes(decision: Decision, pen: _Pen) -> RenderableType:
    if not decision.changes:
        return pen("What changed: nothing that is pinned")
    table = Table.grid(padding=(0, 2))
    for change in decision.changes[:_CHANGES]:
        cell = (
            pen(change.baseline or '""', limit=60)
            .append(" -> ")
            .append_text(pen(change.candidate or '""', limit=60))
        )
        table.add_row(pen(change.path, "bold", 60), cell)
    left = len(decision.changes) - _CHANGES
    if left > 0:
        table.add_row(pen(f"and {left} more", "dim"), "")
    return Group(Text("What changed", style="bold"), table)


def _checks(decision: Decision, pen: _Pen, width: int) -> Table:
    heads = ["check", "effect", "limit", "result"]
    if width >= _WIDE:
        heads.insert(2, view.bounds_head(decision))
    if width >= _MIDDLE:
        heads.append("how sure")
    gap = 2 if width >= _WIDE + 16 else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="underline")
    table.add_column(heads[0], overflow="fold", min_width=16)
    for head in heads[1:]:
        last = head == "how sure"  # may be a sentence: it wraps before the names of the checks give way
        table.add_column(
            head, no_wrap=width >= _MIDDLE and not last, overflow="fold", min_width=17 if last else None
        )
    before = ""
    for row in view.check_rows(decision):
        if row.tier != before:
            table.add_row(Text(row.tier, style="italic dim"))
            before = row.tier
        table.add_row(*_cells(row, pen, width), style="" if row.gating else "dim")
    return table


def _cells(row: view.CheckRow, pen: _Pen, width: int) -> list[Text]:
    name, effect, bounds = pen(f"  {row.id}"), pen(row.effect), pen(row.bounds)
    limit, sure = pen(formatting.without_unit(row.limit)), pen(row.sure)
    result = pen(row.word, _OUTCOME[row.outcome] if row.gating else "")
    if width >= _WIDE:
        return [name, effect, bounds, limit, result, sure]
    if row.bounds != "-":
        effect = Text("\n").join([effect, bounds])
    if width >= _MIDDLE:
        return [name, effect, limit, result, sure]
    return [name, effect, limit, Text("\n").join([result, sure])]


def _unestimated(decision: Decision, pen: _Pen) -> Iterator[RenderableType]:
    """Why there is no estimate, of checks that gate nothing: the reasons above name only those that do."""
    reasons = [
        pen(f"{result.check.id}: no estimate: {result.comparison.reason}", "dim", 400)
        for result in decision.checks
        if result.check.tier == "advisory" and isinstance(result.comparison, Inestimable)
    ]
    if reasons:
        yield Group(*reasons, Text(""))


def _settling(decision: Decision, pen: _Pen) -> Iterator[RenderableType]:
    wanted = view.settling_checks(decision)
    if not wanted:
        return
    for name, had, items in wanted:
        yield pen(f"{name}: about {items:,} items would settle it if the truth is as estimated (now {had:,})")
    yield pen(view.RETRY_NOTE, "dim")
    yield Text("")


def _divergence(decision: Decision, pen: _Pen) -> Iterator[RenderableType]:
    for summary in decision.divergence:
        yield Text("Divergence", style="bold")
        yield pen(view.divergence(summary), limit=400)
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(overflow="fold")
        for worst in summary.worst[:_TOKENS]:
            context = pen(f"...{worst.token.before[-_CONTEXT:]}").append_text(
                pen(f"[{worst.token.token}]", "bold")
            )
            table.add_row(f"{worst.token.kl:.2f}", context, pen(view.likeliest_tokens(worst.token)))
        yield table
        yield Text("")


def _stages(decision: Decision, pen: _Pen) -> Table:
    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="underline", title="Cost",
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for head in ("stage", "arm"):
        table.add_column(head, overflow="fold")
    for head in ("items", "tokens", "time", "tokens/s"):
        table.add_column(head, justify="right")
    table.add_column("")
    for s in decision.stages:
        table.add_row(
            pen(s.name), pen(s.arm), f"{s.items:,}", f"{s.tokens:,}",
            pen(formatting.duration(s.seconds)), view.speed(s),
            Text("stored" if s.stored else "measured", style="dim" if s.stored else ""),
        )  # fmt: skip
    return table
