"""Recipes: what a row of a package becomes, and rows that they do not know."""

from __future__ import annotations

from typing import Any

import pytest

from checkweigh.sources.evalsets.dataset_recipes import (
    RECIPES,
    hellaswag,
    human_eval,
    truthfulqa,
)


def test_truthful_choices_are_turned_and_stay_the_same_choices() -> None:
    places = set()
    for n in range(40):
        row = {"id": f"t{n}", "question": "Why?", "choices": ["true", "b", "c", "d"], "expected_index": 0}
        ours = truthfulqa(row)
        assert ours["choices"][ours["answer"]] == "true"
        assert sorted(ours["choices"]) == ["b", "c", "d", "true"]
        assert ours == truthfulqa(row)
        places.add(ours["answer"])
    assert places == {0, 1, 2, 3}


def test_endings() -> None:
    ours = hellaswag(
        {"id": "h", "ctx": "A man sits. he", "endings": ["a", "b"], "expected_index": 1, "more": 1}
    )
    assert ours["choices"] == ["a", "b"]
    assert ours["answer"] == 1
    assert ours["messages"][0]["content"].endswith("\n\nA man sits. he")


def test_functions_come_with_a_test_that_runs() -> None:
    row = {
        "task_id": "HumanEval/0", "prompt": 'def double(x):\n    """Twice x."""\n', "entry_point": "double",
        "canonical_solution": "    return 2 * x\n", "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }  # fmt: skip
    (program,) = human_eval(row)["references"]
    exec(row["prompt"] + row["canonical_solution"] + program, {})
    with pytest.raises(AssertionError):
        exec(row["prompt"] + "    return 3 * x\n" + program, {})


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize(
    "row", [{}, {"id": None}, {"id": "x", "ctx": 3, "question": ["q"], "choices": [], "expected_index": "z"}]
)
def test_strange_rows_are_refused(name: str, row: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        RECIPES[name].make(row)
