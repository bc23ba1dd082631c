"""Documents on disk -> records, with an error for every way of not being there."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from checkweigh.errors import BadDocument, Problem
from checkweigh.records.base import Record
from checkweigh.records.evalset import Card
from checkweigh.records.manifest import Manifest
from checkweigh.records.policy import Policy
from checkweigh.records.yaml.document import parse
from checkweigh.records.yaml.yaml_tree import MAX_BYTES

R = TypeVar("R", bound=Record)


def read_bytes(path: Path, what: str, limit: int = MAX_BYTES) -> bytes:
    """A file's bytes, at most ``limit`` + 1 of them; BadDocument says why it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except FileNotFoundError:
        found = "no such file"
    except IsADirectoryError:
        found = "a directory"
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror})"
    raise BadDocument([Problem(file=str(path), line=None, path="", expected=what, found=found)])


def read_manifest(path: Path) -> Manifest:
    """A manifest. Raises BadDocument."""
    return _read(Manifest, path, "a manifest")


def read_policy(path: Path) -> Policy:
    """A policy. Raises BadDocument."""
    return _read(Policy, path, "a policy")


def read_card(path: Path) -> Card:
    """An evaluation set's card. Raises BadDocument."""
    return _read(Card, path, "a card")


def _read(model: type[R], path: Path, what: str) -> R:
    return parse(model, read_bytes(path, what), str(path))
