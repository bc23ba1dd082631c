from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.unit.report import sample

from checkweigh.records.comparison import Estimate
from checkweigh.records.decision import Verdict
from checkweigh.report import view
from checkweigh.report.terminal import print_decision


def printed(
    verdict: Verdict,
    width: int,
    *,
    hostile: bool = False,
    tty: bool = False,
    env: dict[str, str] | None = None,
) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=tty, _environ={"TERM": "xterm-256color", **(env or {})}
    )
    print_decision(sample.decision(verdict, hostile), console)
    return file.getvalue()


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_verdict_is_the_first_and_the_last_line_in_words(verdict: Verdict) -> None:
    lines = printed(verdict, 100).splitlines()
    assert lines[0].strip() == view.HEADLINE[verdict]
    assert lines[-1].strip() == view.HEADLINE[verdict]
    assert "smollm2-135m-bf16 -> smollm2" in lines[1]


@pytest.mark.parametrize("width", [120, 100, 80, 60])
@pytest.mark.parametrize("hostile", [False, True])
def test_it_fits(width: int, hostile: bool) -> None:
    assert all(
        cell_len(line) <= width for line in printed(Verdict.BLOCK, width, hostile=hostile).splitlines()
    )


@pytest.mark.parametrize("width", [100, 80])
def test_numbers_are_not_broken_over_lines(width: int) -> None:
    text = printed(Verdict.BLOCK, width)
    for whole in (
        "+0.3347 nats/token",
        "+0.3086 to +0.3608",
        "≤ +0.0300",
        "INCONCLUSIVE",
        "worse, p < 0.0001",
    ):
        assert whole in text


@pytest.mark.parametrize("width", [120, 100, 80])
def test_every_check_has_its_name_beside_its_numbers_however_long_the_rest(width: int) -> None:
    """At a look with a level of its own the last column says so, which once pushed the names off the table."""
    decision = sample.decision(Verdict.INCONCLUSIVE)
    checks = tuple(
        r.model_copy(
            update={
                "level": 0.00557,
                "comparison": r.comparison.model_copy(update={"confidence_high": 0.9994}),
            }
        )
        if isinstance(r.comparison, Estimate)
        else r
        for r in decision.checks
    )
    file = io.StringIO()
    print_decision(decision.model_copy(update={"checks": checks}), Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("check ")) :]
    assert any("0.00557" in line for line in table)
    for result in checks:
        assert any(line.startswith(f"  {result.check.id[:14]}") for line in table), result.check.id


def test_hostile_text_neither_escapes_nor_styles() -> None:
    text = printed(Verdict.BLOCK, 100, hostile=True)
    assert not {"\x1b", "\x07", "\x9b", "\x00", "\r", "\u202e"} & set(text)
    assert "[red]not red[/red]" in text.replace("\n", " ").replace("  ", " ")
    assert ":bomb:" in text
    assert "UNSAFE: the manifest of smollm2-135m-nf4 allows unsafe_pickle" in text


def test_colour_only_on_a_terminal_and_never_under_no_color() -> None:
    assert "\x1b[1;37;41m" in printed(Verdict.BLOCK, 100, tty=True)
    plain = printed(Verdict.BLOCK, 100, tty=True, env={"NO_COLOR": "1"})
    assert "41m" not in plain
    assert "\x1b" not in printed(Verdict.BLOCK, 100)


def test_an_ascii_terminal_gets_ascii() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_decision(sample.decision(hostile=True), Console(file=file, width=100, _environ={}))
    file.flush()
    assert b"<= +0.0300" in raw.getvalue()


def test_only_an_inconclusive_gate_says_what_would_settle_it() -> None:
    assert "about 1,840 items would settle it" in printed(Verdict.INCONCLUSIVE, 100)
    assert "would settle" not in printed(Verdict.BLOCK, 100)
    assert "is not evidence" in printed(Verdict.INCONCLUSIVE, 200)


def test_costs_say_what_was_stored() -> None:
    lines = printed(Verdict.PASS, 100).splitlines()
    assert any("baseline" in line and "358" in line and "stored" in line for line in lines)
    assert any("candidate" in line and "measured" in line for line in lines)
