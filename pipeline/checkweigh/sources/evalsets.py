"""Evaluation sets on disk -> records, through ``datasets``, checked against their cards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from checkweigh import canonical
from checkweigh.errors import BadDocument, BadInput, PinMismatch, Problem
from checkweigh.records.evalset import ITEM_OF, Card, EvalSet, Generation, Item
from checkweigh.scoring.replies import CHECKS
from checkweigh.sources.cache import cache_root
from checkweigh.sources.digests import file_digest
from checkweigh.sources.documents import read_card

MAX_PROBLEMS = 20


def roots() -> tuple[Path, ...]:
    """Where sets are looked for: ``evalsets/`` here, then in the checkout that this package runs from."""
    return (Path("evalsets"), Path(__file__).resolve().parents[3] / "evalsets")


def find_evalset(name: str) -> EvalSet:
    """The set of that name. BadInput when there is none."""
    for root in roots():
        if (root / name / "card.yaml").is_file():
            return load_evalset(root / name)
    known = sorted({card.parent.name for root in roots() for card in root.glob("*/card.yaml")})
    raise BadInput(f"evalset '{name}': expected one of {', '.join(known) or 'no sets at all'} below {roots()[0]}/")


def load_evalset(folder: Path) -> EvalSet:
    """A set from its folder. BadDocument for items that are not well formed, PinMismatch for another digest."""
    card = read_card(folder / "card.yaml")
    source = folder / card.source
    if not source.is_file():
        raise BadDocument([_problem(source, None, "", "the items that card.yaml names", "no such file")])
    found = file_digest(source)
    if found != card.digest:
        raise PinMismatch([_problem(source, None, "digest", card.digest, found)])
    items = _parse(card, source, _rows(source))
    _check_counts(card, folder / "card.yaml", items)
    return EvalSet(card=card, items=items)


def _rows(source: Path) -> list[dict[str, Any]]:
    """The rows as ``datasets`` reads them; no network, no progress bar."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            "json", data_files=str(source), split="train", cache_dir=str(cache_root() / "datasets")
        )
    except (datasets.exceptions.DatasetsError, ValueError, OSError, TypeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise BadDocument([_problem(source, None, "", "JSON objects of one shape, one a line", reason)]) from error
    return list(loaded)


def _parse(card: Card, source: Path, rows: Iterable[dict[str, Any]]) -> tuple[Item, ...]:
    items: list[Item] = []
    problems: list[Problem] = []
    for line, row in enumerate(rows, start=1):
        try:
            item = ITEM_OF[card.kind].model_validate_json(canonical.dumps(row))
        except (ValidationError, ValueError) as error:
            problems += _explain(source, line, error)
            continue
        if isinstance(item, Generation) and item.check.kind not in CHECKS:
            problems.append(_problem(source, line, "check.kind", f"one of {', '.join(CHECKS)}", item.check.kind))
        items.append(item)
    doubled = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    problems += [_problem(source, None, "id", "ids that are all different", f"'{name}' twice") for name in doubled]
    if problems:
        raise BadDocument(problems[:MAX_PROBLEMS])
    return tuple(items)


def _explain(source: Path, line: int, error: ValueError) -> list[Problem]:
    if not isinstance(error, ValidationError):
        return [_problem(source, line, "", "a plain JSON object", str(error))]
    return [
        _problem(source, line, ".".join(map(str, e["loc"])), e["msg"].removeprefix("Input should be "), repr(e["input"])[:80])
        for e in error.errors()
    ]


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
