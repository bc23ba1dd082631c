"""The desk at which gates are tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import WriteManifest
from tests.unit.usecases.desk import Desk


@pytest.fixture
def desk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_manifest: WriteManifest,
    capfd: pytest.CaptureFixture[str],
) -> Desk:
    """A working directory with sets and a policy, the current one."""
    return Desk(tmp_path, monkeypatch, write_manifest, capfd)
