"""The bench on which gates are tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import WriteManifest
from tests.unit.usecases.gate_bench import GateBench


@pytest.fixture
def bench(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_manifest: WriteManifest,
    capfd: pytest.CaptureFixture[str],
) -> GateBench:
    """A working directory with sets and a policy, the current one."""
    return GateBench(tmp_path, monkeypatch, write_manifest, capfd)
