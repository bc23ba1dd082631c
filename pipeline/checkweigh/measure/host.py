"""What this host is: the hardware class in measurement keys, and provenance."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

import checkweigh
from checkweigh.records.measurement import Provenance

PACKAGES = ("torch", "transformers", "tokenizers", "bitsandbytes", "datasets", "numpy", "scipy", "pydantic")


@cache
def hardware() -> str:
    """Hardware class: system, processor and cores. Numbers of one class are not reused on another."""
    return f"{platform.system()} {platform.machine()}, {_processor()}, {psutil.cpu_count()} cores"


def _processor() -> str:
    """Model name and the vector instructions that decide which kernels run."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or "unknown processor"
    lines: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        lines.setdefault(name.strip(), value.strip())
    flags = set(lines.get("flags", lines.get("Features", "")).split())
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "asimd")
    return f"{lines.get('model name', 'unknown processor')} [{' '.join(f for f in known if f in flags)}]"


def swap_activity() -> int:
    """Bytes that this host has moved to and from swap since it started; 0 where it does not say (no Linux)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
        pages = sum(int(line.split()[1]) for line in lines if line.startswith(("pswpin ", "pswpout ")))
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def swapped() -> int:
    """Bytes that this host has moved to and from swap since it started."""
    found = psutil.swap_memory()
    return int(found.sin + found.sout)


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(started: str) -> Provenance:
    """Where and when, as of now."""
    commit, dirty = _git()
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Provenance(
        tool=checkweigh.__version__, commit=commit, dirty=dirty, packages=packages,
        hardware=hardware(), started=started, ended=now(),
    )  # fmt: skip


@cache
def _git() -> tuple[str | None, bool | None]:
    """The current directory's commit and whether its tree is dirty; None outside git."""
    try:
        commit = _run("git", "rev-parse", "HEAD")
        return commit, bool(_run("git", "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
