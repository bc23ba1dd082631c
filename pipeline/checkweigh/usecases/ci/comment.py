"""The results of ``ci gate`` -> one comment on a pull request."""

from __future__ import annotations

import json
from pathlib import Path

from checkweigh.report.pull_request import marker, unfinished
from checkweigh.sinks.github import Github
from checkweigh.usecases.ci.run import COMMENT, RESULTS, link


def put(pull_request: int, out: Path, key: str) -> str:
    """Update the comment, or make it where there is something to say; a sentence about it.

    Without results the run ended half-way: an earlier comment must not stand for it.
    """
    github = Github.from_environment()
    try:
        outcomes = json.loads((out / RESULTS).read_bytes())["outcomes"]
        body = (out / COMMENT).read_text("utf-8")
    except (OSError, ValueError, KeyError):
        outcomes, body = None, unfinished(key, link())
    if not body.startswith(marker(key)):
        body = f"{marker(key)}\n{body}"
    where = github.put_comment(pull_request, marker(key), body, create=outcomes != [])
    return f"commented: {where}" if where else "nothing to say, and no comment to update"
