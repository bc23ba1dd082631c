"""The results of ``ci gate`` -> one comment on a pull request."""

from __future__ import annotations

import json
from pathlib import Path

from checkweigh.report.pull_request import marker, unfinished
from checkweigh.sinks.github import Github
from checkweigh.usecases.ci.run import COMMENT, RESULTS, run_url


def post(pull_request: int, out: Path, key: str) -> str:
    """Update the comment of ``key``, or create it where there are results; returns a sentence about what was done.

    Without results below ``out`` the run ended half-way, and the comment says so: an earlier one must not stand for it.
    """
    github = Github.from_environment()
    try:
        outcomes = json.loads((out / RESULTS).read_bytes())["outcomes"]
        body = (out / COMMENT).read_text("utf-8")
    except (OSError, ValueError, KeyError):
        outcomes, body = None, unfinished(key, run_url())
    if not body.startswith(marker(key)):
        body = f"{marker(key)}\n{body}"
    where = github.put_comment(pull_request, marker(key), body, create=outcomes != [])
    return f"commented: {where}" if where else "nothing to say, and no comment to update"
