"""A server inside a container image that is there already, by docker or podman: the command around its own.

The image is named by digest and never pulled. It may see the model, the tokenizer and the chat template, read-only, and
the variables of the manifest. Its port is published on loopback only. A container outlives its client, so that
``ending`` is run when all is over.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import SourceError

RUNTIMES = ("docker", "podman")
ASKING_S = 30


def runtime() -> str:
    """Where docker is, else podman. SourceError: neither."""
    for name in RUNTIMES:
        if found := shutil.which(name):
            return found
    raise SourceError(f"expected {' or '.join(RUNTIMES)} to run engine.environment.image, found neither")


def require_image(image: str) -> str:
    """The runtime that has the image. SourceError: it is not there."""
    found = runtime()
    done = _ask([found, "image", "inspect", image])
    if done is None:
        raise SourceError(
            f"expected the image {image} on this host, found none: {Path(found).name} pull {image}"
        )
    return found


def around(
    spec: EngineSpec, inner: Sequence[str], variables: Mapping[str, str], name: str, template: Path
) -> list[str]:
    """The command that runs ``inner``, which is ``python -m ...``, in a container called ``name``."""
    assert spec.image is not None
    port = inner[list(inner).index("--port") + 1]
    folders = {
        spec.model_dir,
        spec.tokenizer_dir,
        template.parent,
        *([spec.draft_dir] if spec.draft_dir else []),
    }
    mounts = [word for folder in sorted(folders) for word in ("--volume", f"{folder}:{folder}:ro")]
    passed = [
        word for variable in sorted(variables) for word in ("--env", variable)
    ]  # values stay off the command line
    devices = ["--gpus", "all"] if spec.manifest.engine.device == "cuda" else []
    own = list(inner[1:])
    own[own.index("--host") + 1] = "0.0.0.0"  # inside; outside only loopback reaches it
    return [
        runtime(), "run", "--rm", "--init", "--pull", "never", "--name", name, "--ipc", "host", *devices,
        "--publish", f"127.0.0.1:{port}:{port}", *mounts, *passed, "--entrypoint", "python3", spec.image, *own,
    ]  # fmt: skip


def ending(name: str) -> list[str]:
    """The command after which the container is gone."""
    return [runtime(), "rm", "--force", name]


def processes(name: str) -> list[psutil.Process]:
    """The container's processes as this host sees them."""
    found = _ask([runtime(), "inspect", "--format", "{{json .State.Pid}}", name])
    try:
        first = psutil.Process(int(json.loads(found or "0")))
        return [first, *first.children(recursive=True)]
    except (ValueError, psutil.Error):
        return []


def _ask(command: list[str]) -> str | None:
    """Its output; None when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASKING_S, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
