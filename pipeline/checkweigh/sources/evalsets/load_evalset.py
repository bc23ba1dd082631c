"""Evaluation sets -> records, checked against their cards. Our own files are read through ``datasets``."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import BadDocument, BadInput, PinMismatch, Problem
from checkweigh.progress import Progress, no_progress
from checkweigh.records.evalset import Card, EvalSet, Item
from checkweigh.scoring.replies import CHECKS
from checkweigh.sources.digests import file_digest
from checkweigh.sources.documents import read_card
from checkweigh.sources.evalsets.column_mapping import map_columns
from checkweigh.sources.evalsets.dataset_recipes import RECIPES
from checkweigh.sources.evalsets.item_parsing import ItemsAndProblems, own_items, parse_items
from checkweigh.sources.evalsets.row_readers import (
    NumberedRows,
    data_problem,
    file_rows,
    first_problems,
    hub_rows,
    rows_digest,
    without_nulls,
)
from checkweigh.sources.resolve import resolve


def evalset_roots(policy: Path) -> tuple[Path, ...]:
    """The folders of a policy's sets: ``evalsets/`` beside it, and beside the folder that it is in.

    The working directory does not count: a gate must not measure other items because it was started elsewhere.
    """
    folder = policy.resolve().parent
    return (folder / "evalsets", folder.parent / "evalsets")


def find_evalset(name: str, within: Sequence[Path], progress: Progress = no_progress) -> EvalSet:
    """The set of that name below one of the folders. BadInput when there is none, or more than one.

    Two copies are refused even where they are equal: nobody would say so on the day when one of them is changed.
    """
    cards = [root / name / "card.yaml" for root in within]
    places = {card.resolve(): card.parent for card in cards if card.is_file()}
    if len(places) > 1:
        both = " and ".join(map(str, places.values()))
        raise BadInput(f"evalset '{name}': expected one place for it, found {both}; remove one of them")
    for folder in places.values():
        return load_evalset(folder, progress)
    known = sorted({card.parent.name for root in within for card in root.glob("*/card.yaml")})
    where = " or ".join(f"{root}/" for root in within) or "nowhere"
    raise BadInput(f"evalset '{name}': expected one of {', '.join(known) or 'no sets at all'} below {where}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedEvalSet:
    """A set that may have problems. ``digest`` is that of its data, ``items`` are those that are valid."""

    card: Card
    data: str
    digest: str
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]


def load_evalset(folder: Path, progress: Progress = no_progress) -> EvalSet:
    """A set from its folder, its card completed (``with_counts``).

    Raises BadDocument for items that are not valid, PinMismatch for another digest than the card's, SourceError for
    data that cannot be had.
    """
    path, card = _read_card(folder)
    data = _locate_data(path, card, progress)
    if data.digest != card.digest:
        raise PinMismatch([data_problem(data.file, None, "digest", card.digest, data.digest)])
    items, problems = data.items()
    if problems:
        raise BadDocument(first_problems(problems, data.file))
    if problems := _count_problems(card, path, items):
        raise BadDocument(problems)
    return EvalSet(card=with_counts(card, items), items=items, folder=str(folder))


def inspect_evalset(folder: Path, progress: Progress = no_progress) -> InspectedEvalSet:
    """The same with the problems as values, another digest among them.

    Raises BadDocument without a valid card, SourceError for data that cannot be had.
    """
    path, card = _read_card(folder)
    data = _locate_data(path, card, progress)
    try:
        items, problems = data.items()
    except BadDocument as error:
        items, problems = (), error.problems
    if not problems:
        problems = _count_problems(card, path, items)
    if data.digest != card.digest:
        problems = [data_problem(data.file, None, "digest", card.digest, data.digest), *problems]
    return InspectedEvalSet(
        card=card, data=str(data.file), digest=data.digest, items=items, problems=tuple(problems)
    )


def _read_card(folder: Path) -> tuple[Path, Card]:
    path = folder / "card.yaml"
    card = read_card(path)
    if card.name != folder.resolve().name:
        raise BadDocument([data_problem(path, None, "name", folder.resolve().name, card.name)])
    if card.check is not None and card.check not in CHECKS:
        near = difflib.get_close_matches(card.check, CHECKS, n=1)
        fault = data_problem(path, None, "check", f"one of {', '.join(CHECKS)}", card.check)
        raise BadDocument([replace(fault, suggestion=near[0] if near else None)])
    if card.recipe is not None:
        _require_fitting_recipe(path, card)
    return path, card


def _require_fitting_recipe(path: Path, card: Card) -> None:
    """BadDocument unless the card's recipe is known and is for this version of this package and this kind of set."""
    assert card.recipe is not None
    recipe = RECIPES.get(card.recipe)
    if recipe is None:
        near = difflib.get_close_matches(card.recipe, RECIPES, n=1)
        fault = data_problem(path, None, "recipe", f"one of {', '.join(RECIPES)}", card.recipe)
        raise BadDocument([replace(fault, suggestion=near[0] if near else None)])
    if card.source != f"package:{recipe.package}":
        wanted = f"package:{recipe.package} for the recipe {card.recipe}"
        raise BadDocument([data_problem(path, None, "source", wanted, card.source)])
    if card.kind != recipe.kind:
        raise BadDocument(
            [data_problem(path, None, "kind", f"{recipe.kind} for the recipe {card.recipe}", card.kind)]
        )


@dataclass(frozen=True, slots=True)
class _EvalData:
    """The data of a set: its file or hub address, its digest, and how its items are read."""

    file: Path | str
    digest: str
    items: Callable[[], ItemsAndProblems]


def _locate_data(path: Path, card: Card, progress: Progress) -> _EvalData:
    if card.source.startswith("hf:"):
        rows, faults = _map_rows(card, card.source, hub_rows(card, progress))
        if faults:  # rows that lack cells have no digest worth comparing
            raise BadDocument(first_problems(faults, card.source))
        return _EvalData(card.source, rows_digest(rows), lambda: parse_items(card, card.source, rows))
    file = _package_file(path, card, progress) if card.wheel is not None else _local_file(path, card)
    if card.columns is None and card.recipe is None and file.name.endswith(".jsonl"):
        return _EvalData(file, file_digest(file), lambda: own_items(card, file))
    return _EvalData(file, file_digest(file), lambda: _mapped_items(card, file))


def _local_file(path: Path, card: Card) -> Path:
    source = path.parent / card.source
    if path.parent.resolve() not in source.resolve().parents:
        raise BadDocument([data_problem(path, None, "source", "a file below the card", card.source)])
    if not source.is_file():
        raise BadDocument([data_problem(source, None, "", "the items that card.yaml names", "no such file")])
    return source


def _package_file(path: Path, card: Card, progress: Progress) -> Path:
    try:
        return resolve(card.source, path.parent, progress, wheel=card.wheel).path
    except PinMismatch as error:  # it speaks of a manifest's pins
        raise PinMismatch(
            [data_problem(path, None, f"wheel of {p.file}", p.expected, p.found) for p in error.problems]
        ) from None


def _mapped_items(card: Card, file: Path) -> ItemsAndProblems:
    """Items of a file in another layout, or in another format."""
    rows, faults = _map_rows(card, file, file_rows(file, card.columns))
    items, problems = parse_items(card, file, rows)
    return items, sorted([*faults, *problems], key=lambda problem: problem.line or 0)


def _map_rows(card: Card, file: Path | str, rows: NumberedRows) -> tuple[NumberedRows, list[Problem]]:
    """Rows in our own fields, by columns or recipe; a row with faults is left out and reported."""
    if card.recipe is not None:
        return _apply_recipe(card, file, rows)
    if card.columns is None:
        return [(number, without_nulls(row)) for number, row in rows], []
    good: NumberedRows = []
    problems: list[Problem] = []
    for number, row in rows:
        ours, faults = map_columns(card, number, row)
        problems += [data_problem(file, number, *fault) for fault in faults]
        good += [] if faults else [(number, ours)]
    return good, problems


def _apply_recipe(card: Card, file: Path | str, rows: NumberedRows) -> tuple[NumberedRows, list[Problem]]:
    recipe = RECIPES[card.recipe or ""]
    good: NumberedRows = []
    problems: list[Problem] = []
    for number, row in rows:
        try:
            good.append((number, recipe.make(row)))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            wanted = f"a row that the recipe {card.recipe} knows"
            problems.append(data_problem(file, number, "", wanted, f"{type(error).__name__}: {error}"))
    return good, problems


def _strata(items: Sequence[Item]) -> dict[str, int]:
    return dict(sorted(Counter(item.stratum for item in items).items()))


def _count_problems(card: Card, path: Path, items: tuple[Item, ...]) -> list[Problem]:
    """The counts that the card states and the items do not have."""
    stated = None if card.strata is None else dict(sorted(card.strata.items()))
    counts: dict[str, tuple[object, object]] = {
        "items": (card.items, len(items)),
        "clusters": (card.clusters, len({item.cluster for item in items})),
        "strata": (stated, _strata(items)),
    }
    return [
        data_problem(path, None, name, f"{stated} as stated", str(counted))
        for name, (stated, counted) in counts.items()
        if stated is not None and stated != counted
    ]


def with_counts(card: Card, items: tuple[Item, ...]) -> Card:
    """The card with its counts; where items are mapped from other data, also with the digest of the items.

    So another mapping of the same data is another set in the store.
    """
    counts: dict[str, object] = {
        "items": len(items),
        "clusters": len({item.cluster for item in items}),
        "strata": _strata(items),
    }
    if card.columns is not None or card.recipe is not None:
        counts["digest"] = canonical.digest([item.model_dump(mode="json") for item in items])
    return card.model_copy(update=counts)
