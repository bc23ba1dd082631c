"""The digest that the version before gave to the same pins: by it its ledger of attempts is found. Pure."""

from __future__ import annotations

from checkweigh import canonical
from checkweigh.records.manifest import Manifest, Pins
from checkweigh.sources.model.model_directory import CONFIGURATIONS, TOKENIZERS

DRAFT_ENDINGS = (".safetensors", ".safetensors.index.json")


def former_digest(manifest: Manifest, pins: Pins) -> str:
    """``Pins.record_digest`` as it was: settings with their places, a drafting model's known files, and no others."""
    image = None if manifest.engine.environment is None else manifest.engine.environment.image
    former = pins.model_dump(mode="json", exclude={"files"}) | {
        "manifest": canonical.digest(manifest.declared()),
        "prompts": canonical.digest(manifest.prompts.model_dump(mode="json")),
        "environment": pins.environment if image is None else canonical.digest(image),
        "draft": {name: digest for name, digest in pins.draft.items() if _was_pinned(name)},
    }
    absent = {name for name in ("draft", "parts", "environment") if not former[name]}
    return canonical.digest({name: value for name, value in former.items() if name not in absent})


def _was_pinned(name: str) -> bool:
    """Whether a file of a drafting model was pinned."""
    weights = "/" not in name and name.endswith(DRAFT_ENDINGS)
    return weights or name in (*CONFIGURATIONS, *TOKENIZERS)
