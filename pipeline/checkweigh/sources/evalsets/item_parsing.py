"""Rows in our own fields -> items, with every row's problems; our own files as ``datasets`` reads them."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from checkweigh import canonical
from checkweigh.errors import BadDocument, Problem, StoreError
from checkweigh.files import disk_full
from checkweigh.records.evalset import ITEM_OF, Card, Generation, Item, Kind
from checkweigh.records.yaml.document import explain
from checkweigh.scoring.replies import CHECKS, score_reply
from checkweigh.scoring.standard import STANDARD, score_against
from checkweigh.sources.cache import cache_root
from checkweigh.sources.evalsets.row_readers import data_problem, json_lines, without_nulls

ItemsAndProblems = tuple[tuple[Item, ...], list[Problem]]


def own_items(card: Card, source: Path) -> ItemsAndProblems:
    """The items as ``datasets`` reads them, which must be what the file's JSON says, line by line."""
    lines = json_lines(source)
    expected, problems = parse_items(card, source, lines)
    if problems:
        return expected, problems
    for fresh in (False, True):  # a damaged cache is made again
        try:
            rows = _load(card, source, fresh)
        except BadDocument:
            if fresh:
                raise
            continue
        items, problems = parse_items(card, source, zip((line for line, _ in lines), rows, strict=False))
        if not problems and len(rows) == len(lines) and items == expected:
            return items, []
    of = f"the {len(lines)} rows of the file"
    return (), [data_problem(source, None, "", of, "other rows when read by datasets")]


def _load(card: Card, source: Path, fresh: bool) -> list[Any]:
    """Rows as ``datasets`` loads them, with the kind's own columns; no network, no progress bars.

    StoreError when its cache has no room, which is no fault of the file.
    """
    import datasets

    hidden = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            "json", data_files=glob.escape(str(source)), split="train", features=_features(card.kind),
            cache_dir=str(cache_root() / "datasets" / canonical.short(card.digest)),
            download_mode="force_redownload" if fresh else None,
        )  # fmt: skip
        return [without_nulls(row) for row in loaded]
    except (datasets.exceptions.DatasetsError, ValueError, OSError, TypeError) as error:
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        if disk_full(error):
            raise StoreError(f"{cache_root() / 'datasets'}: cannot be written ({reason})") from error
        raise BadDocument([data_problem(source, None, "", "rows that datasets can read", reason)]) from error
    finally:
        if not hidden:
            datasets.enable_progress_bars()


def _features(kind: Kind) -> Any:
    """The columns of a kind's items, so that nothing about them is guessed."""
    from datasets import Features, List, Value

    text = Value("string")
    columns = dict.fromkeys(("id", "cluster", "stratum"), text)
    if kind == "text":
        return Features(columns | {"text": text, "origin": text})
    columns["messages"] = List({"role": text, "content": text})
    if kind == "choice":
        return Features(columns | {"choices": List(text), "answer": Value("int64")})
    check = {"kind": text, "values": List(text), "pattern": text}
    return Features(columns | {"check": check, "references": List(text)})


def parse_items(card: Card, source: Path | str, rows: Iterable[tuple[int, Any]]) -> ItemsAndProblems:
    """The rows that are valid items, and every problem of the others."""
    items: list[Item] = []
    problems: list[Problem] = []
    first: dict[str, int] = {}
    same: dict[str, int] = {}
    for line, row in rows:
        try:
            item = ITEM_OF[card.kind].model_validate_json(canonical.dumps(row))
        except ValueError as error:
            problems += _row_problems(card.kind, source, line, row, error)
            continue
        if isinstance(item, Generation) and (fault := _scorer_fault(card, item)):
            problems.append(data_problem(source, line, *fault))
        if item.id in first:
            seen = f"'{item.id}' again, first in line {first[item.id]}"
            problems.append(data_problem(source, line, "id", "ids that are all different", seen))
        first.setdefault(item.id, line)
        content = canonical.digest(item.model_dump(mode="json", exclude={"id", "cluster", "stratum"}))
        if content in same and first[item.id] == line:
            seen = f"the item of line {same[content]} again under another id"
            problems.append(data_problem(source, line, "", "items that are all different", seen))
        same.setdefault(content, line)
        items.append(item)
    return tuple(items), problems


def _scorer_fault(card: Card, item: Generation) -> tuple[str, str, str] | None:
    """What the card's scorer lacks to score any reply at all, such as a pattern that is no regular expression."""
    scorer, check = card.scorer.name, item.check
    if (check is None) == (scorer == "reply_check"):
        needs = ("check", "references") if check is None else ("references", "a check")
        return needs[0], f"{needs[0]} for the scorer {scorer}", needs[1]
    if check is not None and check.kind not in CHECKS:
        return "check.kind", f"one of {', '.join(CHECKS)}", check.kind
    try:
        if check is not None:
            score_reply(check.kind, check.values, check.pattern, "a reply, 1")
        elif scorer in STANDARD:
            score_against(scorer, item.references, "a reply, 1")
    except Exception as error:  # whatever it may raise, it would raise for every reply
        found = f"{type(error).__name__}: {error}"
        if check is None:
            return "references", f"references that {scorer} can use", found
        return "check", f"a {check.kind} check that can score", found
    return None


def _row_problems(kind: Kind, source: Path | str, line: int, row: Any, error: ValueError) -> list[Problem]:
    if not isinstance(error, ValidationError):
        return [data_problem(source, line, "", "a plain JSON object", str(error))]
    return explain(ITEM_OF[kind], error, row, str(source), line)
