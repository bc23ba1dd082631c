"""What an interpreter's environment is said to hold."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from tests.unit.engines.vllm.fake_vllm import write_environment

from checkweigh.records.manifest import EngineSection
from checkweigh.sources.engine_environment import packages_of


def test_of_a_distribution_that_is_there_twice_the_one_that_is_imported_counts(tmp_path: Path) -> None:
    """An environment laid over another one, by a .pth file or with the system's packages."""
    python = write_environment(tmp_path / "env")
    assert metadata.version("torch") != "0.1"
    info = next((tmp_path / "env").glob("lib/*/site-packages")) / "torch-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.1\n")
    engine = {
        "kind": "vllm",
        "version": "9.9.0",
        "device": "cuda",
        "dtype": "float32",
        "threads": 1,
        "max_batch": 1,
    }
    engine |= {"max_batch_tokens": 64, "environment": {"interpreter": str(python)}}
    found = packages_of(tmp_path / "x.yaml", EngineSection.model_validate(engine))
    assert found is not None
    assert found.version == "9.9.0"
    assert found.computing["torch"] == "0.1"
