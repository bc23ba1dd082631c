"""What this host is: the hardware class in measurement keys, and provenance."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

import checkweigh
from checkweigh.engines import gpu
from checkweigh.errors import BadInput
from checkweigh.records.measurement import Provenance
from checkweigh.sources.repository.git import repository

# What the embedded engine computes with; a stored number or verdict of other versions is of something else.
EMBEDDED_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "bitsandbytes")
PACKAGES = ("torch", "transformers", "tokenizers", "bitsandbytes", "datasets", "numpy", "scipy", "pydantic")
GIT_TIMEOUT_S = 10  # a tree so large that git needs longer has no provenance; the gate goes on


@cache
def hardware() -> str:
    """Hardware class: system, processor, cores and GPUs. Numbers of one class are not reused on another."""
    gpus = "".join(f", {count} {name}" for name, count in sorted(Counter(gpu.names()).items()))
    return f"{platform.system()} {platform.machine()}, {_processor()}, {psutil.cpu_count()} cores{gpus}"


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


def versions(names: Sequence[str]) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    installed = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(started: str) -> Provenance:
    """Where and when, as of now."""
    commit, dirty = _git()
    return Provenance(
        tool=checkweigh.__version__, commit=commit, dirty=dirty, packages=versions(PACKAGES),
        hardware=hardware(), started=started, ended=now(),
    )  # fmt: skip


@cache
def _git() -> tuple[str | None, bool | None]:
    """The current directory's commit and whether its tree is dirty; None outside git, or where git does not say."""
    try:
        here = replace(repository(Path()), timeout_s=GIT_TIMEOUT_S)
        return here.commit("HEAD"), here.dirty
    except (BadInput, OSError):
        return None, None
