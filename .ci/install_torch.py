"""Install the locked torch into this interpreter's environment: without CUDA where there is no NVIDIA driver.

1. Already there: done.
2. Ask pip, without installing, which build the configured indexes offer. A CPU build (``+cpu``), or any build
   where there is a driver or the system is no Linux, is taken.
3. Otherwise ``uv pip install --torch-backend=cpu``, which knows PyTorch's own indexes.
4. Otherwise refuse: several gigabytes of CUDA on a machine that cannot use them are nobody's wish.
   ``CHECKWEIGH_ALLOW_CUDA=1`` takes them nevertheless.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def main() -> int:
    """Exit code 0 when the wanted torch is installed."""
    lock = (Path(__file__).parent.parent / "constraints.txt").read_text()
    wanted = re.search(r"^torch==([\w.]+)", lock, re.MULTILINE)
    if wanted is None:
        print("constraints.txt does not pin torch", file=sys.stderr)
        return 1
    version = wanted.group(1)
    if _installed() == version:
        print(f"torch {version} is there")
        return 0
    driver = shutil.which("nvidia-smi") is not None
    offered = _offered(version)
    harmless = offered is not None and ("+cpu" in offered or sys.platform != "linux")
    if harmless or driver or os.environ.get("CHECKWEIGH_ALLOW_CUDA") == "1":
        print(
            f"torch {offered or version}: {'NVIDIA driver found' if driver else 'the configured index offers it'}"
        )
        return subprocess.call([*PIP, "install", "--quiet", f"torch=={offered or version}"])
    print(
        f"torch {version}: no NVIDIA driver and no CPU build in the configured index; asking PyTorch's own with uv"
    )
    if subprocess.call([*PIP, "install", "--quiet", "uv"]) == 0:
        uv = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
        if subprocess.call([*uv, "--torch-backend=cpu", f"torch=={version}"]) == 0:
            return 0
    print(
        "refused to install a CUDA build without a driver; CHECKWEIGH_ALLOW_CUDA=1 overrides", file=sys.stderr
    )
    return 1


def _installed() -> str | None:
    try:
        return metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _offered(version: str) -> str | None:
    """The exact build pip would take, with its local label such as ``+cpu``; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [*PIP, "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
        if subprocess.call([*command, "--report", str(report), f"torch=={version}"]) != 0:
            return None
        (found,) = json.loads(report.read_text())["install"]
        return str(found["metadata"]["version"])


if __name__ == "__main__":
    sys.exit(main())
