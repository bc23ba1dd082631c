"""The drafting model of ``engine.speculative``: found, digested and checked like the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from checkweigh.errors import SourceError
from checkweigh.progress import Progress
from checkweigh.records.manifest import DraftModel, Eagle3, Manifest
from checkweigh.sources.digests import kind_of, remembered_digests
from checkweigh.sources.model.derive import served_directory
from checkweigh.sources.model.model_directory import (
    check_shards,
    refuse_auto_map,
    small_files,
    weight_files,
)
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.model.safetensors_header import read_tensors
from checkweigh.sources.resolve import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFiles:
    """Where the drafting model lies."""

    model: DraftModel
    folder: Path
    weights: list[Path]
    own_tokens: bool = True  # a model with a tokenizer; a trained head reads the model's own states


def find_draft(path: Path, manifest: Manifest, progress: Progress) -> DraftFiles | None:
    """The files that draft for the manifest at ``path``; None when none is named. SourceError: not servable."""
    model = manifest.draft
    if model is None:
        return None
    own_tokens = not isinstance(manifest.engine.speculative, Eagle3)
    plain = model.as_model()
    folder = served_directory(plain, resolve(model.source, path.parent, progress).path, progress)
    weights = weight_files(folder, plain)
    for name in ("config.json", "tokenizer.json") if own_tokens else ("config.json",):
        if not (folder / name).is_file():
            raise SourceError(f"{folder}: expected {name} of the drafting model, found none")
    return DraftFiles(model=model, folder=folder, weights=weights, own_tokens=own_tokens)


def draft_digests(files: DraftFiles | None, progress: Progress) -> dict[str, str]:
    """File -> digest of weights (of their tensors when derived), configurations and tokenizer."""
    if files is None:
        return {}
    tensors = files.model.derive is not None
    small = small_files(files.folder, files.folder)
    paths = [*files.weights, *small.values()]
    wanted = {p.name: (p, "tensors" if tensors and p.suffix == ".safetensors" else kind_of(p)) for p in paths}
    return remembered_digests(dict(sorted(wanted.items())), progress, "digests of the drafting model (MB)")


def require_same_tokens(files: DraftFiles, template: str, vocabulary: str) -> None:
    """SourceError unless the files can be loaded and a token is the same to both models.

    ``vocabulary``: the model's own ``Pins.vocabulary``. With another one a draft would be ids that mean
    something else, and hardly ever be accepted.
    """
    refuse_auto_map(files.folder, files.model.as_model())
    check_shards(files.weights)
    for path in files.weights:
        if path.suffix == ".safetensors":
            read_tensors(path)
    drafting = Renderer(files.folder, template).vocabulary_digest
    if drafting != vocabulary:
        raise SourceError(
            f"{files.folder}: expected the model's own vocabulary ({vocabulary}) in the drafting model, "
            f"found {drafting}"
        )
