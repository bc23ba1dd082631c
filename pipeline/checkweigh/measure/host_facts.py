"""What this host is: the hardware class in measurement keys, and provenance."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

import checkweigh
from checkweigh import canonical
from checkweigh.engines import gpu
from checkweigh.errors import BadInput
from checkweigh.records.measurement import Provenance
from checkweigh.sources.repository.checkout import Checkout, checkout_of

# What the embedded engine computes with; a stored number or verdict of other versions is of something else.
EMBEDDED_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "bitsandbytes")
PACKAGES = ("torch", "transformers", "tokenizers", "bitsandbytes", "datasets", "numpy", "scipy", "pydantic")


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


@cache
def tool_digest() -> str:
    """Digest of this package's own files by name: what measures and decides, whatever version it calls itself."""
    root = Path(checkweigh.__file__).parent
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix != ".pyc")
    return canonical.digest(
        {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    )


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(started: str) -> Provenance:
    """Where and when, as of now, of no repository."""
    return Provenance(
        tool=checkweigh.__version__, build=tool_digest(), commit=None, dirty=None, packages=versions(PACKAGES),
        hardware=hardware(), started=started, ended=now(),
    )  # fmt: skip


def provenance_of_documents(
    checkout: Checkout | None, documents: Mapping[str, Path], others: Iterable[Path], started: str
) -> Provenance:
    """The same with the repository that the documents were read from, which lie at these places.

    ``documents``: by role, as they are shown; ``others`` were read as well. Nothing is known outside git, and nothing
    of what is uncommitted where git does not say.
    """
    found = provenance(started)
    if checkout is None:
        return found.model_copy(update={"documents": {role: path.name for role, path in documents.items()}})
    try:
        uncommitted = checkout.uncommitted((*documents.values(), *others))
        dirty = bool(uncommitted)
    except (BadInput, OSError):
        uncommitted, dirty = (), None
    shown = {role: checkout.shown(path) for role, path in documents.items()}
    return found.model_copy(
        update={"commit": checkout.commit, "dirty": dirty, "repository": checkout.name, "documents": shown,
                "uncommitted": uncommitted}
    )  # fmt: skip


def provenance_of_tree(started: str) -> Provenance:
    """The same with the whole working tree of the current directory: a benchmark is made from all of it."""
    found, here = provenance(started), checkout_of(Path("any"))
    if here is None:
        return found
    with suppress(BadInput):
        update = {"commit": here.commit, "dirty": here.repository.dirty, "repository": here.name}
        return found.model_copy(update=update)
    return found
