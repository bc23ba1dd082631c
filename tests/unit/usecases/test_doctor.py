"""``checkweigh doctor``: says what is missing, in its exit code too, and nothing that is secret."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import WriteManifest

from checkweigh.cli import main
from checkweigh.usecases import doctor
from checkweigh.usecases.doctor import DoctorFinding, DoctorReport, examine

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkweigh_home: Path) -> None:
    monkeypatch.chdir(tmp_path)


def look(name: str, *manifests: Path) -> DoctorFinding:
    return next(f for f in examine(manifests).findings if f.name == name)


def test_a_whole_machine(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] is True
    names = [f["name"] for f in found["findings"]]
    assert {
        "python",
        "torch",
        "extra engine",
        "memory",
        "swap",
        "home",
        "sandbox",
        "noise floors",
        "mlflow",
    } <= set(names)
    assert not [f for f in found["findings"] if f["state"] == "missing"]
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "a gate can run here" in err


def test_what_is_missing_is_exit_code_four() -> None:
    ok, note, missing = (
        DoctorFinding("a", "ok", ""),
        DoctorFinding("b", "note", ""),
        DoctorFinding("c", "missing", ""),
    )
    assert DoctorReport((ok, note)).exit_code == 0
    assert DoctorReport((ok, note, missing)).exit_code == 4
    assert DoctorReport((ok, missing)).as_json()["ready"] is False


def test_a_manifest_without_its_lock_is_named(write_manifest: WriteManifest, capsys: Capture) -> None:
    bare, pinned = write_manifest("bare", pinned=False), write_manifest("pinned")
    assert main(["doctor", str(bare), str(pinned)]) == 4
    assert look("manifest bare.yaml", bare).hint == f"checkweigh pin {bare}"
    assert look("manifest pinned.yaml", pinned).state == "ok"
    pinned.write_text(pinned.read_text().replace("max_tokens: 24", "max_tokens: 25"))
    assert look("manifest pinned.yaml", pinned).state == "missing", "a stale lock is no lock"
    assert "cannot run here" in capsys.readouterr().err


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHECKWEIGH_HOME", str(tmp_path / "file" / "home"))
    assert look("home").state == "missing"
    assert main(["doctor"]) == 4


def test_a_damaged_calibration_is_no_silence(checkweigh_home: Path) -> None:
    assert look("noise floors").found == "none on this hardware"
    (checkweigh_home / "calibrations").mkdir(parents=True)
    (checkweigh_home / "calibrations" / "x.json").write_text("{}")
    assert look("floors").state == "missing"
    assert "damaged calibration" in look("floors").found


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=2", "nonsense-a; extra == 'mlflow'", "nonsense-b>=3; extra == 'engine'", "nonsense-c"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: wanted)
    assert (look("extra mlflow").state, look("extra mlflow").found) == ("note", "not installed: nonsense-a")
    assert (look("extra engine").state, look("dependencies").state) == ("missing", "missing")
    assert look("extra engine").hint == "pip install 'checkweigh[engine]'"


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.server.alive else 503)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Any]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Health) as running:
        running.alive = True  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_mlflow_is_asked(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look("mlflow").found == "turned off, or not installed"
    monkeypatch.setenv("CHECKWEIGH_MLFLOW", f"http://127.0.0.1:{server.server_port}")
    assert look("mlflow").state == "ok"
    server.alive = False
    assert (look("mlflow").state, look("mlflow").found[-3:]) == ("note", "503")
    monkeypatch.setenv("CHECKWEIGH_MLFLOW", "http://me:geheim77@127.0.0.1:9")
    found = look("mlflow")
    assert found.state == "note"
    assert "cannot be reached" in found.found
    assert "geheim77" not in json.dumps(examine(()).as_json())
