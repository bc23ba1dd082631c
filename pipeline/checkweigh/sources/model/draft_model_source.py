"""The drafting model of ``engine.speculative``: found and checked like the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from checkweigh.errors import Problem, SourceError
from checkweigh.progress import Progress
from checkweigh.records.manifest import DraftModel, Eagle3, Manifest, Quantization
from checkweigh.sources.model.derive import served_directory
from checkweigh.sources.model.inventory import list_files
from checkweigh.sources.model.refusals import model_problems, tokenizer_problems
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.resolve import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFiles:
    """Where the drafting model lies, and every file of it by relative name."""

    model: DraftModel
    folder: Path
    files: dict[str, Path]
    own_tokens: bool = True  # a model with a tokenizer; a trained head reads the model's own states

    def problems(self, engine: str) -> list[Problem]:
        """What the folder is refused for."""
        plain = self.model.as_model()
        problems = model_problems(self.folder, self.files, plain, Quantization(), engine, drafts=True)
        if self.own_tokens:
            problems += tokenizer_problems(self.folder, self.files, plain, own=False)
        return problems


def find_draft(path: Path, manifest: Manifest, progress: Progress) -> DraftFiles | None:
    """The files that draft for the manifest at ``path``; None when none is named."""
    model = manifest.draft
    if model is None:
        return None
    folder = served_directory(model.as_model(), resolve(model.source, path.parent, progress).path, progress)
    own_tokens = not isinstance(manifest.engine.speculative, Eagle3)
    return DraftFiles(model=model, folder=folder, files=list_files(folder), own_tokens=own_tokens)


def require_same_tokens(files: DraftFiles, template: str, vocabulary: str) -> None:
    """SourceError unless a token is the same to both models.

    ``vocabulary``: the model's own ``Pins.vocabulary``. With another one a draft would be ids that mean
    something else, and hardly ever be accepted.
    """
    drafting = Renderer(files.folder, template).vocabulary_digest
    if drafting != vocabulary:
        raise SourceError(
            f"{files.folder}: expected the model's own vocabulary ({vocabulary}) in the drafting model, "
            f"found {drafting}"
        )
