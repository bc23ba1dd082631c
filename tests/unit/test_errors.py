from __future__ import annotations

import inspect
import re

import pytest

from checkweigh import errors
from checkweigh.errors import BadDocument, BadInput, Broken, CheckweighError, EngineError, ExitCode, Problem


def classes() -> list[type[CheckweighError]]:
    found = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [value for value in found if issubclass(value, CheckweighError)]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"\b[A-Z][A-Za-z]+\b(?=\s+exit|\s{2,}|$)", errors.__doc__ or "", re.MULTILINE))
    assert {cls.__name__ for cls in classes()} <= drawn


@pytest.mark.parametrize("cls", classes())
def test_an_error_is_never_a_verdict(cls: type[CheckweighError]) -> None:
    expected = ExitCode.BAD_INPUT if issubclass(cls, BadInput) else ExitCode.BROKEN
    assert cls.exit_code is expected
    assert issubclass(cls, BadInput | Broken) or cls is CheckweighError


def test_a_problem_in_words() -> None:
    where = {"file": "gate.yaml", "path": "checks[0].margin", "expected": "a number", "found": "true"}
    assert str(Problem(line=7, **where)) == "gate.yaml:7: checks[0].margin: expected a number, found true"
    assert str(Problem(line=None, suggestion="margin", **where)).endswith("(did you mean 'margin'?)")


def test_all_problems_at_once() -> None:
    one = Problem(file="a", line=1, path="x", expected="this", found="that")
    two = Problem(file="a", line=None, path="", expected="this", found="that")
    assert str(BadDocument([one, two])) == "a:1: x: expected this, found that\na: expected this, found that"
    assert str(EngineError("it died", cause="killed for memory")) == "it died (killed for memory)"


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ("", 0), ("0", 0), ("00", 0), ("3", 3), ("1", 1), ("4", 4), ("2", 2),
        ("03", 3), ("01", 1), ("04", 4), ("02", 2), ("31", 1), ("34", 4), ("32", 2), ("14", 4), ("12", 2), ("42", 2),
        ("031", 1), ("034", 4), ("314", 4), ("142", 2), ("03142", 2), ("0314", 4), ("0033", 3), ("11330", 1),
    ],
)  # fmt: skip
def test_of_several_exit_codes_the_most_serious_wins(codes: str, worst: int) -> None:
    several = [ExitCode(int(code)) for code in codes]
    assert ExitCode.worst(*several) is ExitCode(worst)
    assert ExitCode.worst(*reversed(several)) is ExitCode(worst)
