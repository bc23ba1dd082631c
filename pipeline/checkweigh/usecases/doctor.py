"""What is missing on this machine. Looks, installs nothing, loads no model, sends nothing but one request to MLflow.

``missing`` is what no gate can do without; ``note`` costs a part of the tool, and says which.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from checkweigh.engines.host_memory import GIB, available
from checkweigh.errors import CheckweighError, ExitCode, ScorerError
from checkweigh.scorers.sandbox import Sandbox, SandboxLimits
from checkweigh.sinks.mlflow_target import resolve_target, scrub
from checkweigh.sources.cache import cache_root
from checkweigh.sources.pin import read_pinned
from checkweigh.usecases.calibration_store import known_here

State = Literal["ok", "note", "missing"]
LEAST_PYTHON = (3, 11)
LEAST_MEMORY, AMPLE_MEMORY = 2 * GIB, 4 * GIB  # an engine of 135M parameters takes 0.8 to 1.4 GB
LEAST_DISK, AMPLE_DISK = GIB // 2, 5 * GIB
BUSY = 0.5  # load average for each core, above which timing is noise
HEALTH_S = 3.0
NVIDIA = Path("/proc/driver/nvidia/version")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``hint`` says what to do, or is empty."""

    name: str
    state: State
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Examined:
    """All findings, in the order in which they were looked at."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> ExitCode:
        """BROKEN when something is missing that a gate cannot do without."""
        return ExitCode.BROKEN if any(f.state == "missing" for f in self.findings) else ExitCode.PASS

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"ready": self.exit_code == ExitCode.PASS, "findings": [asdict(f) for f in self.findings]}


def examine(manifests: tuple[Path, ...]) -> Examined:
    """Look at everything. A look that fails is itself a finding, never silence."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _torch, _extras, _processors, _memory, _disk, _sandbox, _browser, _floors, _mlflow,
    )  # fmt: skip
    found: list[Finding] = []
    for look in looks:
        try:
            found += look()
        except (CheckweighError, OSError, ValueError) as error:
            found.append(Finding(look.__name__.strip("_"), "missing", scrub(f"cannot be looked at: {error}")))
    return Examined((*found, *(_lock(path) for path in manifests)))


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    enough = sys.version_info[:2] >= LEAST_PYTHON
    yield Finding(
        "python", "ok" if enough else "missing", version, "" if enough else "3.11 or newer is needed"
    )
    yield _platform()


def _platform() -> Finding:
    here = f"{platform.system()} {platform.machine()}"
    if platform.system() == "Linux":
        return Finding("platform", "ok", here)
    return Finding(
        "platform", "note", here, "only Linux was tried; there is no sandbox for generated code elsewhere"
    )


def _torch() -> Iterator[Finding]:
    version = _version("torch")
    driver = NVIDIA.is_file() or shutil.which("nvidia-smi") is not None
    if version is None:
        yield Finding("torch", "missing", "not installed", "make setup, or pip install 'checkweigh[engine]'")
        return
    cpu = version.endswith("+cpu")
    said = f"{version}, {'an' if driver else 'no'} NVIDIA driver"
    if cpu and driver:
        yield Finding("torch", "note", said, "this build cannot use the GPU; engine.device must be cpu")
    elif not cpu and not driver and sys.platform == "linux":
        yield Finding(
            "torch", "note", said, "unless it was built for the CPU, it brings CUDA that nothing here uses"
        )
    else:
        yield Finding("torch", "ok", said)


def _extras() -> Iterator[Finding]:
    """Every extra of the package, by what its metadata say that it needs."""
    needed: dict[str, list[str]] = {}
    for line in metadata.requires("checkweigh") or ():
        package = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", line)
        if package is not None:
            needed.setdefault(extra[1] if extra else "", []).append(package[0])
    for group, names in needed.items():
        absent = [name for name in names if _version(name) is None]
        label = f"extra {group}" if group else "dependencies"
        if not absent:
            yield Finding(label, "ok", f"{len(names)} packages")
        else:
            state: State = "missing" if group in ("", "engine") else "note"
            hint = f"pip install 'checkweigh[{group}]'" if group else "pip install checkweigh"
            yield Finding(label, state, f"not installed: {', '.join(absent)}", hint)


def _processors() -> Iterator[Finding]:
    count = psutil.cpu_count() or 1
    load = os.getloadavg()[0]
    said = f"{count} cores, load {load:.1f}"
    if load > BUSY * count:
        yield Finding(
            "processors", "note", said, "the machine is busy: latency will be measured, but noisily"
        )
    else:
        yield Finding("processors", "ok", said)


def _memory() -> Iterator[Finding]:
    free = available()
    state: State = "ok" if free >= AMPLE_MEMORY else "note" if free >= LEAST_MEMORY else "missing"
    hint = (
        "" if state == "ok" else "a model that does not fit with its headroom is refused before it is loaded"
    )
    yield Finding("memory", state, f"{free / GIB:.1f} GiB can be had", hint)
    swap = psutil.swap_memory()
    if swap.used:
        yield Finding("swap", "note", f"{swap.used / GIB:.1f} of {swap.total / GIB:.1f} GiB in use",
                      "timings of a swapping process say nothing")  # fmt: skip
    else:
        yield Finding("swap", "ok", "none in use")


def _disk() -> Iterator[Finding]:
    """The home can be written, and there is room for it and for temporary files."""
    home = cache_root()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home, prefix=".doctor."):
            pass
    except OSError as error:
        yield Finding(
            "home", "missing", f"{home} cannot be written ({error.strerror})", "set CHECKWEIGH_HOME"
        )
        return
    for name, folder in (("home", home), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        state: State = "ok" if free >= AMPLE_DISK else "note" if free >= LEAST_DISK else "missing"
        hint = "" if state == "ok" else "checkweigh store gc --older-than DAYS makes room"
        yield Finding(name, state, f"{folder}, {free / GIB:.1f} GiB free", hint)


def _sandbox() -> Iterator[Finding]:
    try:
        run = Sandbox(SandboxLimits()).run("assert 1 + 1 == 2")
    except ScorerError as error:
        yield Finding(
            "sandbox", "note", str(error), "sets scored by code_execution end with exit code 4 here"
        )
        return
    state: State = "ok" if run.passed else "note"
    yield Finding(
        "sandbox", state, "generated code can be isolated" if run.passed else "a program did not run in it"
    )


def _browser() -> Iterator[Finding]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found:
        yield Finding("browser", "ok", found)
    else:
        yield Finding("browser", "note", "no chromium", "only the tests of the report's page need it")


def _floors() -> Iterator[Finding]:
    """Noise floors of this kind of hardware; a damaged calibration raises."""
    found = sorted({calibration.name for calibration in known_here()})
    if found:
        yield Finding("noise floors", "ok", ", ".join(found))
    else:
        hint = "checkweigh calibrate MANIFEST measures one; until then the divergence gates nothing"
        yield Finding("noise floors", "note", "none on this hardware", hint)


def _mlflow() -> Iterator[Finding]:
    target = resolve_target(os.environ.get("CHECKWEIGH_MLFLOW"))
    if target is None:
        yield Finding(
            "mlflow", "note", "turned off, or not installed", "gates are written to their directory only"
        )
        return
    scheme = target.uri.partition(":")[0]
    if scheme not in ("http", "https"):
        yield Finding("mlflow", "ok", target.shown)
        return
    hint = "results wait in the outbox; checkweigh mlflow sync sends them"
    try:
        with urllib.request.urlopen(f"{target.uri.rstrip('/')}/health", timeout=HEALTH_S) as answer:
            alive = answer.status == 200
    except urllib.error.HTTPError as error:
        yield Finding("mlflow", "note", f"{target.shown} answers {error.code}", hint)
        return
    except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors
        yield Finding(
            "mlflow", "note", scrub(f"{target.shown} cannot be reached ({error})", target.uri), hint
        )
        return
    yield Finding("mlflow", "ok" if alive else "note", target.shown, "" if alive else hint)


def _lock(path: Path) -> Finding:
    """The manifest is sound and its lock is its own; whether the files are what it says, ``verify`` knows."""
    try:
        read_pinned(path)
    except CheckweighError as error:
        first = scrub(str(error).splitlines()[0])
        return Finding(f"manifest {path.name}", "missing", first, f"checkweigh pin {path}")
    return Finding(f"manifest {path.name}", "ok", "locked")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
