"""What is missing on this machine. Installs nothing, loads no model, and sends one request, to MLflow.

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
from checkweigh.usecases.calibration_store import for_this_host

FindingState = Literal["ok", "note", "missing"]
LEAST_PYTHON = (3, 11)
LEAST_MEMORY, AMPLE_MEMORY = 2 * GIB, 4 * GIB  # an engine of 135M parameters takes 0.8 to 1.4 GB
LEAST_DISK, AMPLE_DISK = GIB // 2, 5 * GIB
BUSY = 0.5  # load average for each core, above which timing is noise
HEALTH_S = 3.0
NVIDIA = Path("/proc/driver/nvidia/version")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """The result of one examination; ``hint`` says what to do, or is empty."""

    name: str
    state: FindingState
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All findings, in the order of the examinations."""

    findings: tuple[DoctorFinding, ...]

    @property
    def exit_code(self) -> ExitCode:
        """BROKEN when something is missing that a gate cannot do without."""
        return ExitCode.BROKEN if any(f.state == "missing" for f in self.findings) else ExitCode.PASS

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"ready": self.exit_code == ExitCode.PASS, "findings": [asdict(f) for f in self.findings]}


def examine(manifests: tuple[Path, ...]) -> DoctorReport:
    """Examine everything. An examination that fails is itself a finding, never silence."""
    looks: tuple[Callable[[], Iterator[DoctorFinding]], ...] = (
        _python, _torch, _extras, _processors, _memory, _disk, _sandbox, _browser, _floors, _mlflow,
    )  # fmt: skip
    findings: list[DoctorFinding] = []
    for look in looks:
        try:
            findings += look()
        except (CheckweighError, OSError, ValueError) as error:
            findings.append(
                DoctorFinding(look.__name__.strip("_"), "missing", scrub(f"cannot be looked at: {error}"))
            )
    return DoctorReport((*findings, *(_check_lock(path) for path in manifests)))


def _python() -> Iterator[DoctorFinding]:
    version = platform.python_version()
    enough = sys.version_info[:2] >= LEAST_PYTHON
    yield DoctorFinding(
        "python", "ok" if enough else "missing", version, "" if enough else "3.11 or newer is needed"
    )
    yield _platform()


def _platform() -> DoctorFinding:
    here = f"{platform.system()} {platform.machine()}"
    if platform.system() == "Linux":
        return DoctorFinding("platform", "ok", here)
    return DoctorFinding(
        "platform", "note", here, "only Linux was tried; there is no sandbox for generated code elsewhere"
    )


def _torch() -> Iterator[DoctorFinding]:
    version = _installed_version("torch")
    driver = NVIDIA.is_file() or shutil.which("nvidia-smi") is not None
    if version is None:
        yield DoctorFinding(
            "torch", "missing", "not installed", "make setup, or pip install 'checkweigh[engine]'"
        )
        return
    cpu = version.endswith("+cpu")
    text = f"{version}, {'an' if driver else 'no'} NVIDIA driver"
    if cpu and driver:
        yield DoctorFinding("torch", "note", text, "this build cannot use the GPU; engine.device must be cpu")
    elif not cpu and not driver and sys.platform == "linux":
        yield DoctorFinding(
            "torch", "note", text, "unless it was built for the CPU, it brings CUDA that nothing here uses"
        )
    else:
        yield DoctorFinding("torch", "ok", text)


def _extras() -> Iterator[DoctorFinding]:
    """Every extra of the package, by what its metadata say that it needs."""
    needed: dict[str, list[str]] = {}
    for line in metadata.requires("checkweigh") or ():
        package = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", line)
        if package is not None:
            needed.setdefault(extra[1] if extra else "", []).append(package[0])
    for group, names in needed.items():
        absent = [name for name in names if _installed_version(name) is None]
        label = f"extra {group}" if group else "dependencies"
        if not absent:
            yield DoctorFinding(label, "ok", f"{len(names)} packages")
        else:
            state: FindingState = "missing" if group in ("", "engine") else "note"
            hint = f"pip install 'checkweigh[{group}]'" if group else "pip install checkweigh"
            yield DoctorFinding(label, state, f"not installed: {', '.join(absent)}", hint)


def _processors() -> Iterator[DoctorFinding]:
    count = psutil.cpu_count() or 1
    load = os.getloadavg()[0]
    text = f"{count} cores, load {load:.1f}"
    if load > BUSY * count:
        yield DoctorFinding(
            "processors", "note", text, "the machine is busy: latency will be measured, but noisily"
        )
    else:
        yield DoctorFinding("processors", "ok", text)


def _memory() -> Iterator[DoctorFinding]:
    free = available()
    state: FindingState = "ok" if free >= AMPLE_MEMORY else "note" if free >= LEAST_MEMORY else "missing"
    hint = (
        "" if state == "ok" else "a model that does not fit with its headroom is refused before it is loaded"
    )
    yield DoctorFinding("memory", state, f"{free / GIB:.1f} GiB can be had", hint)
    swap = psutil.swap_memory()
    if swap.used:
        yield DoctorFinding("swap", "note", f"{swap.used / GIB:.1f} of {swap.total / GIB:.1f} GiB in use",
                      "timings of a swapping process say nothing")  # fmt: skip
    else:
        yield DoctorFinding("swap", "ok", "none in use")


def _disk() -> Iterator[DoctorFinding]:
    """The home can be written, and there is room for it and for temporary files."""
    home = cache_root()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home, prefix=".doctor."):
            pass
    except OSError as error:
        yield DoctorFinding(
            "home", "missing", f"{home} cannot be written ({error.strerror})", "set CHECKWEIGH_HOME"
        )
        return
    for name, folder in (("home", home), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        state: FindingState = "ok" if free >= AMPLE_DISK else "note" if free >= LEAST_DISK else "missing"
        hint = "" if state == "ok" else "checkweigh store gc --older-than DAYS makes room"
        yield DoctorFinding(name, state, f"{folder}, {free / GIB:.1f} GiB free", hint)


def _sandbox() -> Iterator[DoctorFinding]:
    try:
        run = Sandbox(SandboxLimits()).run("assert 1 + 1 == 2")
    except ScorerError as error:
        yield DoctorFinding(
            "sandbox", "note", str(error), "sets scored by code_execution end with exit code 4 here"
        )
        return
    state: FindingState = "ok" if run.passed else "note"
    yield DoctorFinding(
        "sandbox", state, "generated code can be isolated" if run.passed else "a program did not run in it"
    )


def _browser() -> Iterator[DoctorFinding]:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser:
        yield DoctorFinding("browser", "ok", browser)
    else:
        yield DoctorFinding("browser", "note", "no chromium", "only the tests of the report's page need it")


def _floors() -> Iterator[DoctorFinding]:
    """Noise floors of this kind of hardware; a damaged calibration raises."""
    names = sorted({calibration.name for calibration in for_this_host()})
    if names:
        yield DoctorFinding("noise floors", "ok", ", ".join(names))
    else:
        hint = "checkweigh calibrate MANIFEST measures one; until then the divergence gates nothing"
        yield DoctorFinding("noise floors", "note", "none on this hardware", hint)


def _mlflow() -> Iterator[DoctorFinding]:
    target = resolve_target(os.environ.get("CHECKWEIGH_MLFLOW"))
    if target is None:
        yield DoctorFinding(
            "mlflow", "note", "turned off, or not installed", "gates are written to their directory only"
        )
        return
    scheme = target.uri.partition(":")[0]
    if scheme not in ("http", "https"):
        yield DoctorFinding("mlflow", "ok", target.shown)
        return
    hint = "results wait in the outbox; checkweigh mlflow sync sends them"
    try:
        with urllib.request.urlopen(f"{target.uri.rstrip('/')}/health", timeout=HEALTH_S) as answer:
            alive = answer.status == 200
    except urllib.error.HTTPError as error:
        yield DoctorFinding("mlflow", "note", f"{target.shown} answers {error.code}", hint)
        return
    except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors
        yield DoctorFinding(
            "mlflow", "note", scrub(f"{target.shown} cannot be reached ({error})", target.uri), hint
        )
        return
    yield DoctorFinding("mlflow", "ok" if alive else "note", target.shown, "" if alive else hint)


def _check_lock(path: Path) -> DoctorFinding:
    """Whether the manifest is valid and its lock belongs to it. Only ``verify`` compares the files."""
    try:
        read_pinned(path)
    except CheckweighError as error:
        first = scrub(str(error).splitlines()[0])
        return DoctorFinding(f"manifest {path.name}", "missing", first, f"checkweigh pin {path}")
    return DoctorFinding(f"manifest {path.name}", "ok", "locked")


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
