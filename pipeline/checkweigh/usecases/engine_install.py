"""Install an engine from its lock; the lock is made when there is none."""

from __future__ import annotations

from pathlib import Path

from checkweigh.envs.build import install, parse_spec, resolve
from checkweigh.envs.locations import Installed
from checkweigh.errors import BadDocument, Problem
from checkweigh.files import write_atomic
from checkweigh.progress import Progress
from checkweigh.sources.engine_lock import read_engine_lock

LOCKS = Path("manifests") / "engines"


def install_engine(spec: str, file: Path | None, progress: Progress) -> tuple[Path, Path, Installed]:
    """Install an engine; returns its lock's file, its environment and what that holds.

    ``spec`` is NAME==VERSION, or a lock's file, which must exist. The lock in ``file`` is installed exactly; when
    there is none, the version is resolved and the lock is written first.
    """
    if file is None and Path(spec).is_file():
        file = Path(spec)
        wanted = read_engine_lock(file)
    else:
        distribution, version = parse_spec(spec)
        file = file or LOCKS / f"{distribution}-{version}.txt"
        if file.exists():
            wanted = read_engine_lock(file)
            if (wanted.distribution, wanted.version) != (distribution, version):
                locked = f"{wanted.distribution}=={wanted.version}"
                raise BadDocument([Problem(file=str(file), line=1, path="", expected=spec, found=locked)])
        else:
            wanted = resolve(distribution, version, progress)
            write_atomic(file, wanted.text().encode())
    folder, installed = install(wanted, file, progress)
    return file, folder, installed
