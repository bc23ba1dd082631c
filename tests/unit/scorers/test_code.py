"""Replies that are programs: what is taken from them, and how HumanEval's items are scored."""

from __future__ import annotations

import pytest
from tests.conftest import missing

from checkweigh.errors import ScorerError
from checkweigh.records.evalset import Generation
from checkweigh.scorers.code import CodeExecution, compose_program, extract_code
from checkweigh.scorers.sandbox import SandboxLimits
from checkweigh.sources.evalsets.dataset_recipes import human_eval

ROW = {
    "task_id": "Test/0",
    "prompt": "from typing import List\n\n\ndef helper(x):\n    return x + 1\n\n\n"
    'def rise(xs: List[int]) -> List[int]:\n    """Each one more. >>> rise([1])\n    [2]\n    """\n',
    "entry_point": "rise",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate([1, 2]) == [2, 3]\n"
    "    assert candidate([]) == []\n",
}  # fmt: skip
ITEM = Generation.model_validate(human_eval(ROW), strict=False)
RIGHT = "def rise(xs: List[int]) -> List[int]:\n    return [helper(x) for x in xs]"


@pytest.fixture(scope="module")
def score() -> CodeExecution:
    try:
        return CodeExecution(SandboxLimits(cpu_s=1, wall_s=3))
    except ScorerError as error:
        missing(f"a sandbox ({error})")
        raise


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("Sure!\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nprint(f(1))\n```\n```py\ndef f(): pass\n```", "def f(): pass\n"),
        ("```python\ndef f(): pass\n", "def f(): pass\n"),  # cut off before the fence
        ("    return 1", "    return 1"),
        ("```\n```", ""),
    ],
)
def test_the_code_of_a_reply(reply: str, code: str) -> None:
    assert extract_code(reply) == code


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (f"Here it is:\n```python\n{RIGHT}\n```\nCall it with `rise([1])`.", 1.0),
        (RIGHT, 1.0),
        ("    return [x + 1 for x in xs]\n", 1.0),  # a completion of the prompt
        (f"```python\n{RIGHT.replace('helper(x)', 'x')}\n```", 0.0),
        ("```python\npass\n```", 0.0),
        ("", 0.0),
        ("I cannot help with that.", 0.0),
        ("```python\nimport sys\nsys.exit(0)\n```", 0.0),
        ("```python\nimport os\nos._exit(0)\n```", 0.0),
        (f"```python\n{RIGHT}\nwhile True:\n    pass\n```", 0.0),
    ],
)
def test_human_eval(score: CodeExecution, reply: str, expected: float) -> None:
    assert score(ITEM, reply) == expected


def test_every_test_must_pass(score: CodeExecution) -> None:
    more = ITEM.model_copy(update={"references": (*ITEM.references, "assert rise([1]) == [1]")})
    assert score(more, RIGHT) == 0.0


def test_the_program_has_the_prompts_own_code_first() -> None:
    made = compose_program(ITEM, f"```python\n{RIGHT}\n```", ITEM.references[0])
    assert made.index("from typing") < made.index("return [helper") < made.index("check(rise)")
