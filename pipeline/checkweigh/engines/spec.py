"""What an engine is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkweigh.records.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One resolved manifest: what to serve and where its files lie."""

    manifest: Manifest
    model_dir: Path
    tokenizer_dir: Path
    chat_template: str  # Jinja text, as pinned
    draft_dir: Path | None = None  # the drafting model, where the manifest names one
    lock: Path | None = None  # of an environment of the engine's own, or
    python: Path | None = None  # the interpreter, or
    image: str | None = None  # the container image that the manifest names
    packages: Mapping[str, str] = field(default_factory=dict)  # that compute the numbers, in that environment

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {
            "manifest": self.manifest.model_dump(mode="json"),
            "model_dir": str(self.model_dir),
            "tokenizer_dir": str(self.tokenizer_dir),
            "chat_template": self.chat_template,
            "draft_dir": None if self.draft_dir is None else str(self.draft_dir),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Longest waits for a child process, in seconds; the error names the one that ran out."""

    start: float = 300.0
    call: float = 600.0
    render: float = 60.0
