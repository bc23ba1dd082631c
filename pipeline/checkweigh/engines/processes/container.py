"""A server inside a container, by docker or podman: the command around the server's own.

The image is named by digest, must be on this host already and is never pulled. The container sees the model, the
tokenizer, the chat template and our module for its import path, read-only, and the variables of the manifest. Its port
is published on loopback only.
A container outlives its client, so ``ending`` is run after the client's end.
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
INSPECT_S = 30


def runtime() -> str:
    """The path of docker, else of podman. SourceError: this host has neither."""
    for name in RUNTIMES:
        if path := shutil.which(name):
            return path
    raise SourceError(f"expected {' or '.join(RUNTIMES)} to run engine.environment.image, found neither")


def require_image(image: str) -> str:
    """The runtime that has the image. SourceError: it does not have it."""
    path = runtime()
    if _output([path, "image", "inspect", image]) is None:
        raise SourceError(
            f"expected the image {image} on this host, found none: {Path(path).name} pull {image}"
        )
    return path


def around(
    spec: EngineSpec, inner: Sequence[str], variables: Mapping[str, str], name: str, template: Path
) -> list[str]:
    """The command that runs ``inner``, which is ``python -m ...``, in a container called ``name``."""
    assert spec.image is not None
    port = inner[list(inner).index("--port") + 1]
    folders = [
        spec.model_dir,
        spec.tokenizer_dir,
        template.parent,
        *([spec.draft_dir] if spec.draft_dir else []),
        *([Path(variables["PYTHONPATH"])] if "PYTHONPATH" in variables else []),
    ]
    passed = [
        word for variable in sorted(variables) for word in ("--env", variable)
    ]  # values stay off the command line
    devices = ["--gpus", "all"] if spec.manifest.engine.device == "cuda" else []
    arguments = list(inner[1:])
    arguments[arguments.index("--host") + 1] = "0.0.0.0"  # inside; outside only loopback reaches it
    return [
        runtime(), "run", "--rm", "--init", "--pull", "never", "--name", name, "--ipc", "host", *devices,
        "--publish", f"127.0.0.1:{port}:{port}", *_mounts(folders), *passed,
        "--entrypoint", "python3", spec.image, *arguments,
    ]  # fmt: skip


def once(image: str, arguments: Sequence[str], folders: Sequence[Path], name: str) -> list[str]:
    """The command that runs ``python3 arguments`` in a container called ``name`` to its end, without a network."""
    return [
        runtime(), "run", "--rm", "--init", "--pull", "never", "--name", name, "--network", "none", *_mounts(folders),
        "--entrypoint", "python3", image, *arguments,
    ]  # fmt: skip


def _mounts(folders: Sequence[Path]) -> list[str]:
    """Options that show these folders read-only, and those that links in them lead to, each at its own path."""
    seen = set(folders)
    for folder in folders:
        if folder.is_dir():
            seen |= {path.resolve().parent for path in folder.iterdir() if path.is_symlink()}
    return [word for folder in sorted(seen) for word in ("--volume", f"{folder}:{folder}:ro")]


def ending(name: str) -> list[str]:
    """The command after which the container is gone."""
    return [runtime(), "rm", "--force", name]


def processes(name: str) -> list[psutil.Process]:
    """The container's processes as this host sees them."""
    pid = _output([runtime(), "inspect", "--format", "{{json .State.Pid}}", name])
    try:
        first = psutil.Process(int(json.loads(pid or "0")))
        return [first, *first.children(recursive=True)]
    except (ValueError, psutil.Error):
        return []


def _output(command: list[str]) -> str | None:
    """What a command prints; None when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSPECT_S, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
