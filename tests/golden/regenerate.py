"""Regenerates the golden files of the reports: ``python tests/golden/regenerate.py``."""

from __future__ import annotations

import io
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from rich.console import Console
from tests.unit.report import sample

from checkweigh.records.decision import Verdict
from checkweigh.report.junit import junit
from checkweigh.report.markdown import summary
from checkweigh.report.terminal import print_decision


def terminal(verdict: Verdict, width: int = 100) -> str:
    """What a log without colour shows; blanks at line ends removed."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None, _environ={})
    print_decision(sample.decision(verdict), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def files() -> dict[str, str]:
    """File name -> text of every golden file."""
    hostile = sample.decision(hostile=True)
    return {
        "summary.md": summary(hostile, sample.pairs(hostile=True)),
        "junit.xml": junit(hostile),
        **{f"terminal-{verdict.value}.txt": terminal(verdict) for verdict in Verdict},
    }


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(name)
