"""Every file of a folder that an engine may read, and what no folder may hold: ways out of it.

Engines read what they find: a side file that states a quantization, a second tokenizer, weights in a folder below. So
all is listed but a few names that no engine reads (``IGNORED``, ``IGNORED_FOLDERS``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from checkweigh.errors import Problem, RefusedFiles, SourceError
from checkweigh.sources.sealed_cache import SEAL

# Texts for people, what version control and desktops leave, manifests and their locks, weights of other runtimes.
IGNORED = (
    "*.md", "LICENSE*", "NOTICE*", ".git", ".gitattributes", ".gitignore", ".DS_Store", SEAL,
    "*.yaml", "*.yml", "*.lock.json",
    "*.gguf", "*.onnx", "*.onnx_data",
)  # fmt: skip
IGNORED_FOLDERS = (".git", ".cache")


def list_files(folder: Path) -> dict[str, Path]:
    """Relative POSIX name -> path of every file in and below a folder that an engine may read, sorted by name.

    RefusedFiles, a SourceError, lists a link that leaves the folder (a hub cache's link into its own blobs aside), a
    link to a folder or to nothing, a name that cannot be printed, and what is neither file nor folder.
    """
    root = folder.resolve()
    blobs = _hub_blobs(root)
    files: dict[str, Path] = {}
    refused: list[Problem] = []
    for name, path in _walk(root, ""):
        why = _refusal(path, name, root, blobs)
        if why is None:
            files[name] = folder / name
        else:
            shown = str(folder / name)
            shown = shown if shown.isprintable() else ascii(shown)
            refused.append(
                Problem(file=shown, line=None, path="", expected="a file of the folder", found=why)
            )
    if refused:
        raise RefusedFiles(refused)
    return dict(sorted(files.items()))


def is_ignored(name: str) -> bool:
    """Whether no engine reads the file of this relative POSIX name."""
    *folders, file = name.split("/")
    return any(folder in IGNORED_FOLDERS for folder in folders) or any(
        fnmatchcase(file, pattern) for pattern in IGNORED
    )


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """All but folders and what is ignored; links are not followed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in found:
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in IGNORED_FOLDERS:
                yield from _walk(Path(entry.path), name + "/")
        elif not is_ignored(name):
            yield name, Path(entry.path)


def _refusal(path: Path, name: str, root: Path, blobs: Path | None) -> str | None:
    """Why a file is refused, in words."""
    if not name.isprintable():
        return "a name that cannot be printed"
    try:
        mode = path.stat().st_mode
        target = path.resolve()
    except (OSError, RuntimeError):
        return "a link to nothing" if path.is_symlink() else "what cannot be read"
    if stat.S_ISDIR(mode):
        return f"a link to a folder ({target})"
    if not stat.S_ISREG(mode):
        return "neither a file nor a folder"
    if root not in target.parents and target.parent != blobs:
        return f"a link that leaves the folder ({target}); copy the file"
    return None


def _hub_blobs(root: Path) -> Path | None:
    """The blobs of the hub cache that ``root`` is, or lies in, a snapshot of: ``models--*/snapshots/COMMIT``."""
    for place in (root, *root.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and repository.name.startswith("models--"):
            return repository / "blobs"
    return None
