"""What waits to be sent: one folder a parcel, complete in itself, because CI deletes a gate's own directory.

::

    HOME/outbox/.lock                  held by the process that sends to MLflow; HOME/notices/ is the webhook's
    HOME/outbox/<hex of the decision>/
        bundle.json                    runs, data sets and the list of files
        files/...                      what becomes artifacts

A folder is renamed into place when everything in it is on disk, and removed when the receiver has all of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from checkweigh.errors import StoreError
from checkweigh.files import write_atomic
from checkweigh.records.base import Digest, Record
from checkweigh.records.decision import Verdict
from checkweigh.records.yaml.document import parse_json
from checkweigh.sources.cache import cache_root

BUNDLE = "bundle.json"
FILES = "files"


class MlflowRun(Record):
    """One MLflow run: the gate, or one of its arms."""

    role: Literal["gate", "baseline", "candidate"]
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


class DatasetInput(Record):
    """An evaluation set as an input of the runs. ``digest`` is cut to what MLflow can hold."""

    name: str
    digest: str = Field(max_length=36)
    source: str
    schema_text: str
    profile: str


class MlflowTrace(Record):
    """One item that got worse, as a trace: both replies below it. Texts are harmless and cut."""

    key: str = Field(description="decision and item: the same trace twice is one")
    name: str
    prompt: str
    baseline: str
    candidate: str
    facts: dict[str, str]


class Parcel(Record):
    """Something to be sent, and the files that go with it; no secret, and no address with one."""

    destination: str = Field(description="the address without what is secret in it")
    secret: bool = Field(description="whether the address is incomplete without what was left out")
    files: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """The digest that names its folder: the same parcel twice is one."""
        raise NotImplementedError


P = TypeVar("P", bound=Parcel)


class Bundle(Parcel):
    """Everything about one decision that MLflow is to hold."""

    schema_: Literal["checkweigh/outbox@1"] = Field(default="checkweigh/outbox@1", alias="schema")
    decision: Digest
    verdict: Verdict
    experiment: str
    started: int = Field(description="milliseconds since 1970")
    ended: int
    runs: tuple[MlflowRun, ...] = Field(min_length=1, description="the gate first")
    datasets: tuple[DatasetInput, ...]
    traces: tuple[MlflowTrace, ...] = ()

    @property
    def address(self) -> str:
        """The decision's digest."""
        return self.decision


def outbox_root() -> Path:
    """The outbox of this user, for MLflow."""
    return cache_root() / "outbox"


def put(parcel: Parcel, files: Mapping[str, bytes], root: Path) -> Path:
    """Keep a parcel with its files; the folder. StoreError when the disk refuses."""
    folder = root / parcel.address.removeprefix("sha256:")
    try:
        root.mkdir(parents=True, exist_ok=True)
        growing = Path(tempfile.mkdtemp(dir=root, prefix="."))
    except OSError as error:
        raise StoreError(f"{root}: cannot be written ({error})") from error
    try:
        for name, data in files.items():
            write_atomic(growing / FILES / name, data)
        write_atomic(growing / BUNDLE, parcel.model_dump_json(indent=1).encode())
        growing.rename(folder)
    except OSError as error:
        if not (folder / BUNDLE).is_file():
            raise StoreError(f"{folder}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return folder


def waiting_folders(root: Path) -> list[Path]:
    """Folders that wait, oldest first."""
    folders = []
    with suppress(FileNotFoundError):
        folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(folders, key=lambda path: (path.stat().st_mtime, path.name))


def read_bundle(folder: Path) -> Bundle:
    """The bundle of a folder. StoreError when it is not whole."""
    return read_parcel(Bundle, folder)


def read_parcel(kind: type[P], folder: Path) -> P:
    """The parcel of a folder. StoreError when it is not whole."""
    try:
        parcel = parse_json(kind, (folder / BUNDLE).read_bytes(), str(folder / BUNDLE))
    except Exception as error:  # whatever is wrong with it: it is not ours, and is named instead of sent
        raise StoreError(f"{folder}: cannot be read ({error}); remove it to forget it") from error
    missing = [name for name in parcel.files if not (folder / FILES / name).is_file()]
    if missing or parcel.address != f"sha256:{folder.name}":
        what = f"lacks {', '.join(missing)}" if missing else "does not belong to its address"
        raise StoreError(f"{folder}: {what}; remove it to forget it")
    return parcel


def remove(folder: Path) -> None:
    """Forget what has arrived: the bundle first, so that a half-removed folder is never sent again."""
    (folder / BUNDLE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
