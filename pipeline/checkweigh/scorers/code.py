"""Replies that are programs: run against an item's tests in the sandbox."""

from __future__ import annotations

import re

from checkweigh.records.evalset import Generation
from checkweigh.scorers.sandbox import Sandbox, SandboxLimits

_BLOCK = re.compile(
    r"^```(?:python|py|python3)?[ \t]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
_DEFINES = re.compile(r"^\s*(?:async\s+def|def|class)\s", re.MULTILINE)


def extract_code(reply: str) -> str:
    """The first code block that defines something, else the first one, else the whole reply."""
    blocks = [match.group(1) for match in _BLOCK.finditer(reply)]
    return next((block for block in blocks if _DEFINES.search(block)), blocks[0] if blocks else reply)


def compose_program(item: Generation, reply: str, test: str) -> str:
    """The prompt's own code, the reply's and the test.

    The prompt's block (imports, helpers, the head of the function) comes first, so that a reply may bring the whole
    function, which then replaces the head, or only the indented body, which continues it.
    """
    blocks = [match.group(1) for match in _BLOCK.finditer(item.messages[-1].content)]
    return "\n".join([*(blocks[-1:]), extract_code(reply), "", test, ""])


class CodeExecution:
    """1 when every one of the item's references, which are test programs, runs to its end; else 0.

    ScorerError where there is no sandbox. Tests run in the reply's own interpreter: a reply that sets out to fool them
    from within (objects that equal everything) is not found out.
    """

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self.sandbox = Sandbox(limits or SandboxLimits())

    def __call__(self, item: Generation, reply: str) -> float:
        if not reply.strip():
            return 0.0
        return float(
            all(self.sandbox.run(compose_program(item, reply, test)).passed for test in item.references)
        )
