"""Reports of a decision. Everything is text in, text out; only ``write_all`` touches a disk.

``terminal`` for a tired person, ``junit`` and ``markdown`` for CI and pull requests, ``html`` for evidence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from checkweigh.files import write_atomic
from checkweigh.records.decision import Decision
from checkweigh.report.worst_items import ItemPair, worst_pairs

__all__ = ["DECISION", "ItemPair", "clear", "decision_json", "worst_pairs", "write_all"]

DECISION = "decision.json"


def decision_json(decision: Decision) -> str:
    """The record as indented JSON; ``Decision.model_validate_json`` reads it back."""
    return json.dumps(decision.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def clear(out: Path) -> None:
    """Make ``out`` and mark it incomplete: an earlier ``decision.json`` must not pass for this run's."""
    out.mkdir(parents=True, exist_ok=True)
    (out / DECISION).unlink(missing_ok=True)
    _sync(out)


def write_all(decision: Decision, pairs: Sequence[ItemPair], out: Path) -> dict[str, Path]:
    """Write all reports into ``out``; file name -> path.

    1. Render everything, so that a rendering error writes nothing.
    2. Remove an earlier ``decision.json``: from here on the directory is incomplete.
    3. Write each file beside its place, flush it to disk, rename it.
    4. ``decision.json`` comes last: its presence means that all the others are there and belong to it.

    StoreError when the disk refuses; then none of them is left, because a job that publishes ``junit.xml`` would show
    a pass that the exit code does not.
    """
    # Loaded when first used: jinja2 costs start-up time that `--help` should not pay.
    from checkweigh.report.html.page import page
    from checkweigh.report.junit import junit
    from checkweigh.report.markdown import summary

    texts = {
        "junit.xml": junit(decision),
        "summary.md": summary(decision, pairs),
        "report.html": page(decision, pairs),
        DECISION: decision_json(decision),
    }
    clear(out)
    try:
        for name, text in texts.items():
            write_atomic(out / name, text.encode())
            _sync(out)
    except BaseException:
        for name in texts:
            with suppress(OSError):
                (out / name).unlink(missing_ok=True)
        raise
    return {name: out / name for name in texts}


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
