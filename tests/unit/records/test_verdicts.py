"""Which of several verdicts wins, and the exit code of each."""

from __future__ import annotations

import pytest

from checkweigh.errors import ExitCode
from checkweigh.records.decision import Verdict

OF = {"p": Verdict.PASS, "i": Verdict.INCONCLUSIVE, "b": Verdict.BLOCK, "e": Verdict.ERROR}


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        ("p", "p"), ("i", "i"), ("b", "b"), ("e", "e"), ("pp", "p"), ("pi", "i"), ("pb", "b"), ("pe", "e"),
        ("ib", "b"), ("ie", "e"), ("be", "e"), ("pib", "b"), ("pie", "e"), ("pbe", "e"), ("ibe", "e"),
        ("pibe", "e"), ("ppii", "i"), ("ibip", "b"),
    ],
)  # fmt: skip
def test_of_several_verdicts_the_worst_wins(verdicts: str, worst: str) -> None:
    several = [OF[verdict] for verdict in verdicts]
    assert Verdict.worst(*several) is OF[worst]
    assert Verdict.worst(*reversed(several)) is OF[worst]


def test_no_verdict_at_all_is_no_pass() -> None:
    with pytest.raises(ValueError, match="empty"):
        Verdict.worst()


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (Verdict.PASS, ExitCode.PASS),
        (Verdict.INCONCLUSIVE, ExitCode.INCONCLUSIVE),
        (Verdict.BLOCK, ExitCode.BLOCK),
        (Verdict.ERROR, ExitCode.BROKEN),
    ],
)
def test_every_verdict_has_an_exit_code_of_its_own(verdict: Verdict, code: ExitCode) -> None:
    assert verdict.exit_code is code
