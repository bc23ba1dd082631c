"""The admission example for Kubernetes: it parses, and its very command admits and refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.attest.conftest import Door

from checkweigh.sources.pin import pin

EXAMPLE = Path(__file__).resolve().parents[3] / "workflows/kubernetes/admission.yaml"
CONSOLE = Path(sys.executable).with_name("checkweigh")


def pod() -> dict[str, Any]:
    (found,) = yaml.safe_load_all(EXAMPLE.read_text())
    assert isinstance(found, dict)
    return found


def test_the_pod_mounts_what_is_hashed_read_only_and_runs_as_nobody() -> None:
    spec = pod()["spec"]
    admit, (server,) = spec["initContainers"][0], spec["containers"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in (admit, server):
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert set(mounts) <= volumes
        assert mounts["models"]["readOnly"] is True
    assert admit["securityContext"]["runAsNonRoot"] is True
    assert admit["securityContext"]["readOnlyRootFilesystem"] is True


def run(door: Door) -> subprocess.CompletedProcess[str]:
    """The init container's command, with its paths where a container would have them."""
    container = pod()["spec"]["initContainers"][0]
    words = [*container["command"], *container["args"]]
    assert words[0] == "checkweigh"
    stated = f"sample-set={door.evalset('sample-set').content_digest()}"
    words = [word.replace("/admission", str(door.folder / "admission")) for word in words]
    words = [word.replace("SET=DIGEST", stated) for word in words]
    own = {entry["name"]: entry["value"] for entry in container["env"]}
    own = {name: value.replace("/scratch", str(door.folder / "scratch")) for name, value in own.items()}
    return subprocess.run(
        [str(CONSOLE), *words[1:]], env=dict(os.environ) | own, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip


@pytest.fixture
def mounted(door: Door) -> Path:
    """What the ConfigMap of the example's comment holds."""
    folder = door.folder / "admission"
    folder.mkdir()
    for source, name in (
        (door.manifest, "candidate.yaml"), (door.manifest.with_suffix(".lock.json"), "candidate.lock.json"),
        (door.attestation, "attestation.json"), (door.out / "weights.sig", "weights.sig"),
        (door.policy, "policy.yaml"), (door.public, "key.pub"),
    ):  # fmt: skip
        shutil.copy(source, folder / name)
    return folder


def test_its_command_admits_what_passed_and_refuses_the_rest(door: Door, mounted: Path) -> None:
    found = run(door)
    assert found.returncode == 0, found.stderr
    weights = next(door.model.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found = run(door)
    assert found.returncode == 1, found.stderr
    assert "refused: files" in found.stderr
    pin(mounted / "candidate.yaml")
    found = run(door)
    assert found.returncode == 1, found.stderr
    assert "refused: subject: weights/" in found.stderr
    (mounted / "key.pub").unlink()
    assert run(door).returncode == 2
