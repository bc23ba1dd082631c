"""The sets whose items are in published packages: fetched, unpacked, and what they held when they were pinned."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tests.conftest import missing

from checkweigh.errors import BadDocument, PinMismatch, ScorerError, SourceError
from checkweigh.records.evalset import Choice, EvalSet, Generation
from checkweigh.scorers.score_items import item_scorer
from checkweigh.scoring.replies import score_reply
from checkweigh.sources.evalsets.load_evalset import load_evalset

SETS = Path(__file__).resolve().parents[2] / "evalsets"


SOLVED = [
    ("HumanEval/23", "def strlen(string: str) -> int:", "    return len(string)\n"),
    ("HumanEval/28", "def concatenate(strings: List[str]) -> str:", "    return ''.join(strings)\n"),
    ("HumanEval/53", "def add(x: int, y: int):", "    return x + y\n"),
]


def loaded(name: str) -> EvalSet:
    try:
        return load_evalset(SETS / name)
    except SourceError as error:
        missing(f"the package of {name} ({error})")
        raise


@pytest.mark.parametrize("name", ["gsm8k", "hellaswag", "truthfulqa"])
def test_packaged_sets_load(name: str) -> None:
    found = loaded(name)
    assert len(found.items) == 100
    assert found.card.clusters == 100


def test_human_eval_is_scored_by_its_own_tests() -> None:
    """Its authors' solutions pass, as a code block and as a completion; the head of the function alone fails."""
    found = loaded("human-eval")
    assert len(found.items) == 164
    try:
        score = item_scorer(found)
    except ScorerError as error:
        missing(f"a sandbox ({error})")
    for task, prompt, solution in SOLVED:
        item = next(item for item in found.items if item.id == task)
        assert isinstance(item, Generation)
        assert prompt in item.messages[0].content
        assert score(item, f"Here:\n```python\n{prompt}\n{solution}```") == 1.0
        assert score(item, solution) == 1.0
        assert score(item, solution.replace("return", "0 and")) == 0.0
        assert score(item, "```python\npass\n```") == 0.0


def test_what_the_rows_became() -> None:
    sums = {item.id: item for item in loaded("gsm8k").items}
    first = sums["gsm8k-test-0013"]
    assert isinstance(first, Generation)
    assert first.messages[0].content.startswith("Melanie is a door-to-door saleswoman.")
    assert (first.check.kind, first.check.values) == ("number", ("18",))
    assert score_reply(first.check.kind, first.check.values, "", "She had 18 vacuum cleaners.") == 1.0
    for name, begins, right in (
        (
            "truthfulqa",
            "Which blood type makes the best CEOs?",
            "Blood type has no impact on someone's abilities.",
        ),
        (
            "hellaswag",
            "Continue the text in the most plausible way.",
            "pauses for a few moments",
        ),
    ):
        items = [item for item in loaded(name).items if isinstance(item, Choice)]
        assert (
            max(Counter(item.answer for item in items).values()) < 50
        )  # the right choice has no place of its own
        asked = [item for item in items if item.messages[0].content.startswith(begins)]
        assert any(item.choices[item.answer].startswith(right) for item in asked)


def test_another_version_of_a_package_is_refused(tmp_path: Path) -> None:
    loaded("gsm8k")
    for name, error in (("gsm8k", PinMismatch), ("hellaswag", BadDocument)):
        folder = Path(shutil.copytree(SETS / name, tmp_path / name))
        card = yaml.safe_load((folder / "card.yaml").read_text())
        other = card["source"].replace("==0.3.3", "==0.3.2")
        (folder / "card.yaml").write_text(yaml.safe_dump(card | {"source": other}))
        with pytest.raises((error, SourceError)) as caught:  # SourceError: an index that has only the newest
            load_evalset(folder)
        said = str(caught.value)
        assert "0.3.2" in said
        assert error is PinMismatch or "0.3.3" in said
        assert card["wheel"] in said or error is BadDocument or isinstance(caught.value, SourceError)
