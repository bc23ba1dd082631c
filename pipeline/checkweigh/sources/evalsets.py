"""Evaluation sets on disk -> records, through ``datasets``, checked against their cards."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from checkweigh import canonical
from checkweigh.errors import BadDocument, BadInput, PinMismatch, Problem
from checkweigh.records.document import explain, load_json
from checkweigh.records.evalset import ITEM_OF, Card, EvalSet, Generation, Item, Kind
from checkweigh.scoring.replies import CHECKS, score_reply
from checkweigh.sources.cache import cache_root
from checkweigh.sources.digests import file_digest
from checkweigh.sources.documents import read_card

MAX_PROBLEMS = 20


def roots(policy: Path) -> tuple[Path, ...]:
    """Where a policy's sets are: ``evalsets/`` beside it, or beside the folder it is in. Never elsewhere: a gate must
    not measure other items because it was started from another directory."""
    folder = policy.resolve().parent
    return (folder / "evalsets", folder.parent / "evalsets")


def find_evalset(name: str, within: Sequence[Path]) -> EvalSet:
    """The set of that name below one of the folders. BadInput when there is none."""
    for root in within:
        if (root / name / "card.yaml").is_file():
            return load_evalset(root / name)
    known = sorted({card.parent.name for root in within for card in root.glob("*/card.yaml")})
    where = " or ".join(f"{root}/" for root in within) or "nowhere"
    raise BadInput(f"evalset '{name}': expected one of {', '.join(known) or 'no sets at all'} below {where}")


def load_evalset(folder: Path) -> EvalSet:
    """A set from its folder. BadDocument for items that are not sound, PinMismatch for another digest."""
    path = folder / "card.yaml"
    card = read_card(path)
    source = folder / card.source
    if card.name != folder.resolve().name:
        raise BadDocument([_problem(path, None, "name", folder.resolve().name, card.name)])
    if folder.resolve() not in source.resolve().parents:
        raise BadDocument([_problem(path, None, "source", "a file below the card", card.source)])
    if not source.is_file():
        raise BadDocument([_problem(source, None, "", "the items that card.yaml names", "no such file")])
    found = file_digest(source)
    if found != card.digest:
        raise PinMismatch([_problem(source, None, "digest", card.digest, found)])
    items = _items(card, source)
    _check_counts(card, path, items)
    return EvalSet(card=card, items=items)


def _items(card: Card, source: Path) -> tuple[Item, ...]:
    """The items as ``datasets`` reads them, which must be what the file's JSON says, line by line."""
    lines = _lines(source)
    expected = _parse(card, source, lines)
    for fresh in (False, True):  # a damaged cache is made again
        try:
            rows = _load(card, source, fresh)
            items = _parse(card, source, zip((line for line, _ in lines), rows, strict=False))
        except BadDocument:
            if fresh:
                raise
            continue
        if len(rows) == len(lines) and items == expected:
            return items
    of = f"the {len(lines)} rows of the file"
    raise BadDocument([_problem(source, None, "", of, "other rows when read by datasets")])


def _load(card: Card, source: Path, fresh: bool) -> list[Any]:
    """Rows as ``datasets`` loads them, with the kind's own columns; no network, no progress bars."""
    import datasets

    hidden = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            "json", data_files=glob.escape(str(source)), split="train", features=_features(card.kind),
            cache_dir=str(cache_root() / "datasets" / canonical.short(card.digest)),
            download_mode="force_redownload" if fresh else None,
        )  # fmt: skip
        return [_present(row) for row in loaded]
    except (datasets.exceptions.DatasetsError, ValueError, OSError, TypeError) as error:
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise BadDocument([_problem(source, None, "", "rows that datasets can read", reason)]) from error
    finally:
        if not hidden:
            datasets.enable_progress_bars()


def _lines(source: Path) -> list[tuple[int, Any]]:
    """Line number and JSON value of every line that is not blank. BadDocument with every line that is not JSON."""
    found: list[tuple[int, Any]] = []
    problems: list[Problem] = []
    for number, line in enumerate(source.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                found.append((number, load_json(line, str(source), number)))
            except BadDocument as error:
                problems += [replace(problem, line=number) for problem in error.problems]
    problems += [
        _problem(source, number, "", "a JSON object", repr(row)[:80])
        for number, row in found
        if not isinstance(row, dict)
    ]
    if problems:
        raise BadDocument(_first(problems, source))
    return found


def _first(problems: list[Problem], source: Path) -> list[Problem]:
    """The first problems, and how many more there are."""
    if len(problems) <= MAX_PROBLEMS:
        return problems
    more = _problem(source, None, "", "no problems", f"{len(problems) - MAX_PROBLEMS} more")
    return [*problems[:MAX_PROBLEMS], more]


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
    return Features(columns | {"check": {"kind": text, "values": List(text), "pattern": text}})


def _present(value: Any) -> Any:
    """A row without the nulls that stand for columns its line does not have."""
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value


def _parse(card: Card, source: Path, rows: Iterable[tuple[int, Any]]) -> tuple[Item, ...]:
    items: list[Item] = []
    problems: list[Problem] = []
    first: dict[str, int] = {}
    same: dict[str, int] = {}
    for line, row in rows:
        try:
            item = ITEM_OF[card.kind].model_validate_json(canonical.dumps(row))
        except ValueError as error:
            problems += _explain(card.kind, source, line, row, error)
            continue
        if isinstance(item, Generation) and item.check.kind not in CHECKS:
            known = f"one of {', '.join(CHECKS)}"
            problems.append(_problem(source, line, "check.kind", known, item.check.kind))
        elif isinstance(item, Generation) and (fault := _check_fault(item)):
            problems.append(
                _problem(source, line, "check", f"a {item.check.kind} check that can score", fault)
            )
        if item.id in first:
            seen = f"'{item.id}' again, first in line {first[item.id]}"
            problems.append(_problem(source, line, "id", "ids that are all different", seen))
        first.setdefault(item.id, line)
        content = canonical.digest(item.model_dump(mode="json", exclude={"id", "cluster", "stratum"}))
        if content in same and first[item.id] == line:
            seen = f"the item of line {same[content]} again under another id"
            problems.append(_problem(source, line, "", "items that are all different", seen))
        same.setdefault(content, line)
        items.append(item)
    if problems:
        raise BadDocument(_first(problems, source))
    return tuple(items)


def _check_fault(item: Generation) -> str | None:
    """Why an item's check cannot score any reply at all, such as a pattern that is no regular expression."""
    check = item.check
    try:
        score_reply(check.kind, check.values, check.pattern, "a reply, 1")
    except Exception as error:  # whatever a check may raise, it would raise for every reply
        return f"{type(error).__name__}: {error}"
    return None


def _explain(kind: Kind, source: Path, line: int, row: Any, error: ValueError) -> list[Problem]:
    if not isinstance(error, ValidationError):
        return [_problem(source, line, "", "a plain JSON object", str(error))]
    return explain(ITEM_OF[kind], error, row, str(source), line)


def _check_counts(card: Card, path: Path, items: tuple[Item, ...]) -> None:
    strata = dict(sorted(Counter(item.stratum for item in items).items()))
    found: dict[str, tuple[object, object]] = {
        "items": (card.items, len(items)),
        "clusters": (card.clusters, len({item.cluster for item in items})),
        "strata": (dict(sorted(card.strata.items())), strata),
    }
    problems = [
        _problem(path, None, name, f"{stated} as stated", str(counted))
        for name, (stated, counted) in found.items()
        if stated != counted
    ]
    if problems:
        raise BadDocument(problems)


def _problem(file: Path, line: int | None, path: str, expected: str, found: str) -> Problem:
    return Problem(file=str(file), line=line, path=path, expected=expected, found=found)
