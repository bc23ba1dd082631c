"""Files that are whole or not there, and locks between real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkweigh.errors import ExitCode, HostBusy, StoreError
from checkweigh.files import lock, read_sealed, write_atomic, write_sealed

HOLD = (
    "import sys, time; from pathlib import Path; from checkweigh.files import lock\n"
    "with lock(Path(sys.argv[1]), timeout_s=1, what='sits'):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


def test_it_replaces_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    write_atomic(path, b"first")
    before = path.open("rb")
    write_atomic(path, b"second, longer")
    with before:
        assert before.read() == b"first"  # a reader never sees half of two
    assert path.read_bytes() == b"second, longer"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from checkweigh.errors import StoreError; from checkweigh.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(Path(sys.argv[1]), bytes(5000))\n"
        "except StoreError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path}: cannot be written (")
    assert "File too large" in done.stdout
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "folder" / "full" / "x").write_text("x")
    for path in (tmp_path / "file" / "a", tmp_path / "folder" / "full", tmp_path / ("x" * 300)):
        with pytest.raises(StoreError, match="cannot be written") as caught:
            write_atomic(path, b"data")
        assert caught.value.exit_code is ExitCode.BROKEN
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "full", "x"]


BODY = {"key": "sha256:ab", "rows": [1, 2.5, None], "text": "é \u202e"}


def test_a_sealed_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, BODY)
    assert read_sealed(path) == BODY
    assert path.read_text().startswith('{"digest":"sha256:'), "the digest first, then the body"


def test_a_sealed_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, BODY)
    whole = path.read_text()
    path.write_text(whole.replace("2.5", "2.4"))
    with pytest.raises(ValueError, match="it is not the file that was written"):
        read_sealed(path)
    path.write_text(whole[:-5])
    with pytest.raises(ValueError):  # noqa: PT011  (whatever the JSON parser says of half a file)
        read_sealed(path)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '"x"', '{"body": 3}'])
def test_other_json_is_no_sealed_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="it has no digest and body"):
        read_sealed(path)


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "a.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        started = time.monotonic()
        busy = pytest.raises(HostBusy, match=r"another checkweigh sits and has not finished in 0\.2 s")
        with busy, lock(path, timeout_s=0.2, what="sits"):
            pytest.fail("two at once")
        assert time.monotonic() - started < 5
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock(path, timeout_s=5, what="sits"):
        pass


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused = pytest.raises(StoreError, match="cannot be locked")
    with refused, lock(tmp_path / "file" / "a.lock", timeout_s=1, what="sits"):
        pytest.fail("held")


@pytest.mark.parametrize("error", [OSError("mine"), TimeoutError("mine"), HostBusy("mine"), KeyError("mine")])
def test_what_happens_inside_is_not_the_locks(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match="mine"), lock(tmp_path / "a.lock", timeout_s=1, what="sits"):
        raise error
    with lock(tmp_path / "a.lock", timeout_s=1, what="sits"):
        assert (tmp_path / "a.lock").exists()
