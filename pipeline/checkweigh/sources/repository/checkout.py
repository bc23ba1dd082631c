"""The repository that a gate's documents lie in: its name, the commit it is at, and which documents that lacks.

Only documents are looked at: manifests, locks, policies, cards and traces. Weights, tokenizers, chat templates and
items stand in a lock or a card by digest: a commit that holds the document fixes them, whether or not git holds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from checkweigh.errors import BadInput
from checkweigh.sources.repository.git import Repository, repository

TIMEOUT_S = 10  # a tree so large that git needs longer has no provenance; the gate goes on
ELSEWHERE = "(elsewhere)"  # follows the name of a document that lies outside of the repository
_SAFE = re.compile(r"[\w.~+-]+(:\d+)?(/[\w.~+-]+)+")
_SCP = re.compile(r"(?:[^@/:]*@)?([^@/:]+):(?!//)(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A working tree as it stood at one moment. ``name``: HOST/PATH of its remote, else the name of its folder."""

    repository: Repository
    name: str
    commit: str

    def shown(self, document: Path) -> str:
        """A document's path from the root; its bare name, marked, where it lies outside. Links are followed."""
        inside = self._inside(document)
        return f"{document.name} {ELSEWHERE}" if inside is None else inside

    def uncommitted(self, documents: Iterable[Path]) -> tuple[str, ...]:
        """Documents of this repository that the commit does not hold as they are: changed, untracked or ignored ones.

        Their bytes are compared, not their times: ``git update-index --assume-unchanged`` hides nothing. Raises
        BadInput where git does not say.
        """
        paths = sorted({path for path in map(self._inside, documents) if path is not None})
        held = self.repository.blobs(self.commit, paths)
        now = self.repository.blobs_now([path for path in paths if path in held])
        return tuple(path for path in paths if path not in held or held[path] != now[path])

    def _inside(self, document: Path) -> str | None:
        """The path from the root; None for a document of no repository or another, a submodule's among them."""
        path = document.resolve()
        try:
            if repository(path.parent).root != self.repository.root:
                return None
        except BadInput:
            return None
        return path.relative_to(self.repository.root).as_posix()


def checkout_of(document: Path) -> Checkout | None:
    """The checkout that a document lies in, as of now; None outside git, without a commit, and where git fails."""
    try:
        tree = replace(repository(document.resolve().parent), timeout_s=TIMEOUT_S)
        return Checkout(repository=tree, name=_name(tree), commit=tree.commit("HEAD"))
    except (BadInput, OSError):
        return None


def _name(tree: Repository) -> str:
    remotes = tree.remotes()
    url = remotes.get("origin") or next(iter(remotes.values()), "")
    return public_name(url) or tree.root.name


def public_name(url: str) -> str:
    """HOST/PATH of a remote's address; empty for a path of this machine and for what may hold a secret.

    Users, passwords, queries and fragments are left out.

    >>> public_name("https://x-access-token:ghs_secret@github.com/acme/models.git?token=1")
    'github.com/acme/models'
    >>> public_name("git@github.com:acme/models.git"), public_name("/srv/git/models.git")
    ('github.com/acme/models', '')
    """
    try:
        parts = urlsplit(url)
        host, path, port = parts.hostname or "", parts.path, parts.port
    except ValueError:
        return ""
    if "://" not in url:
        match = _SCP.fullmatch(url)
        if match is None:
            return ""
        (host, path), port = match.groups(), None
    name = f"{host}{f':{port}' if port else ''}/{path.strip('/').removesuffix('.git')}"
    return name if _SAFE.fullmatch(name) else ""
