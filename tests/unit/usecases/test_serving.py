"""What the guard's engines are started from: private copies of files that stay what was verified."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import WriteManifest

from checkweigh.engines.http.client import Endpoint
from checkweigh.engines.vllm.server_launch import LaunchPlan
from checkweigh.errors import PinMismatch
from checkweigh.sources.engine_environment import EnginePackages
from checkweigh.sources.pin import Resolved, verify
from checkweigh.sources.pinned_files import PinnedFiles
from checkweigh.sources.private_copy import private_copy
from checkweigh.usecases.gate.arms.open_engine import engine_spec
from checkweigh.usecases.serving import unchanged

HERE = Endpoint(url="http://127.0.0.1:1/v1", model="arm")


@pytest.fixture
def resolved(tmp_path: Path, tiny_model_dir: Path, write_manifest: WriteManifest) -> Resolved:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    return verify(write_manifest("arm", model={"source": f"path:{tmp_path / 'model'}"}))


def plans(log: Path) -> Callable[[], LaunchPlan]:
    """Plans of a server that is never started."""
    return lambda: LaunchPlan(argv=(), environment={}, endpoint=HERE, log=log)


def test_a_file_that_changes_is_refused_once_loaded_and_at_every_start(
    resolved: Resolved, tmp_path: Path
) -> None:
    plan = unchanged(PinnedFiles.of(resolved), plans(tmp_path / "log"))
    started = plan()
    asyncio.run(started.check(HERE, ""))
    weights = resolved.model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    with pytest.raises(PinMismatch, match=r"model\.safetensors"):
        asyncio.run(started.check(HERE, ""))
    with pytest.raises(PinMismatch, match=r"model\.safetensors"):
        plan()


def test_a_container_gets_the_users_own_folder_because_it_sees_no_other(resolved: Resolved) -> None:
    with private_copy(PinnedFiles.of(resolved)) as copy:
        assert engine_spec(resolved, copy).model_dir == copy.of(resolved.model_dir) != resolved.model_dir
        image = EnginePackages(
            version="1", digest="sha256:" + "0" * 64, computing={}, image="vllm@sha256:" + "0" * 64
        )
        boxed = engine_spec(replace(resolved, packages=image), copy)
        assert boxed.model_dir == boxed.tokenizer_dir == resolved.model_dir
