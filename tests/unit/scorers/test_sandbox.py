"""The sandbox against code that means harm. Nothing is faked: all of it runs."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
from tests.conftest import missing

from checkweigh.errors import ScorerError
from checkweigh.scorers.sandbox import OUTPUT, ProgramResult, Sandbox, SandboxLimits

SHORT = SandboxLimits(cpu_s=1, wall_s=3)
FORKS = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(100)
        made += 1
except OSError:
    print("forks:", made, flush=True)
    raise
"""
BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
ORPHANS = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(100)
    os._exit(0)
"""
HOST = """
import os
def there(path):
    try:
        return os.listdir(path)
    except OSError:
        return []
print(sorted(os.listdir("/")), there("/tmp"), there("/home"), there("/proc"), there("/run"))
print(dict(os.environ), flush=True)
assert not os.path.exists({secret!r})
"""


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(SHORT)
    except ScorerError as error:
        missing(f"a sandbox ({error})")
        raise


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory for temporary files of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


def escaped(sandbox: Sandbox, program: str) -> ProgramResult:
    """What became of a program that leaves neither processes nor files behind."""
    run = sandbox.run(program)
    left = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert os.listdir(tempfile.gettempdir()) == []
    return run


def test_a_sound_program_passes(sandbox: Sandbox) -> None:
    run = sandbox.run("import math, re, collections\nopen('file', 'w').write('x')\nassert math.sqrt(4) == 2")
    assert run == ProgramResult(passed=True, timed_out=False, output="")


@pytest.mark.parametrize(
    "program",
    [
        "assert False", "1 +", "\0", "import os; os._exit(0)", "import sys; sys.exit()", "raise SystemExit(0)",
        "import os; os.close(1); os.closerange(3, 64)",
        "import ctypes; ctypes.string_at(0)", "def f(): f()\nf()", "input()",
    ],
)  # fmt: skip
def test_a_program_that_does_not_come_to_its_end_fails(sandbox: Sandbox, program: str) -> None:
    assert not sandbox.run(program).passed


def test_an_endless_loop_is_ended(sandbox: Sandbox) -> None:
    assert escaped(sandbox, "while True: pass") == ProgramResult(
        passed=False, timed_out=False, output=sandbox.run("while True: pass").output
    )


@pytest.mark.parametrize("program", ["import time; time.sleep(100)", BOMB])
def test_what_waits_or_breeds_is_ended_whole(sandbox: Sandbox, program: str) -> None:
    run = escaped(sandbox, program)
    assert run.timed_out
    assert not run.passed


def test_processes_are_few(sandbox: Sandbox) -> None:
    run = escaped(sandbox, FORKS)
    assert not run.passed
    assert 0 < int(run.output.split("forks:")[1].split()[0]) < SHORT.processes


def test_what_a_program_leaves_behind_is_ended(sandbox: Sandbox) -> None:
    escaped(sandbox, ORPHANS)


def test_there_is_no_network(sandbox: Sandbox) -> None:
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        listener = threading.Thread(target=lambda: heard.append(_accepted(server)), daemon=True)
        listener.start()
        port = server.getsockname()[1]
        run = sandbox.run(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
        assert not run.passed
        assert "refused" in run.output or "unreachable" in run.output
        assert heard == []
        socket.create_connection(("127.0.0.1", port)).close()  # the server would have answered
        listener.join()
        assert heard == [True]


def _accepted(server: socket.socket) -> bool:
    server.accept()[0].close()
    return True


def test_memory_is_limited(sandbox: Sandbox) -> None:
    run = sandbox.run("held = [b'x' * (1 << 20) for _ in range(1024)]")
    assert not run.passed
    assert "MemoryError" in run.output


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("open('/usr/checkweigh-was-here', 'w')", "Read-only file system"),
        ("import sys; open(sys.base_prefix + '/checkweigh-was-here', 'w')", "Read-only file system"),
        ("open({outside!r}, 'w')", "No such file"),
        ("open('big', 'wb').write(b'x' * (2 << 20))", "File too large"),
        ("for i in range(64): open(str(i), 'wb').write(b'x' * (1 << 20))", "No space left"),
        ("for i in range(9999): open(str(i), 'wb').close()", "No space left"),
        ("import subprocess; subprocess.run(['mount', '-o', 'remount,rw', '/usr'], check=True)", "CalledProcessError"),
        ("import subprocess; subprocess.run(['unshare', '--user', 'true'], check=True)", "CalledProcessError"),
        ("import os; os.setuid(0) if os.getuid() else os.setgroups([])", "PermissionError"),
        ("import os; os.chroot('.')", "PermissionError"),
    ],
)  # fmt: skip
def test_nothing_outside_is_written(sandbox: Sandbox, program: str, said: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    run = sandbox.run(program.replace("{outside!r}", repr(str(outside))))
    assert not run.passed
    assert said in run.output
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_host_is_seen(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    secret = tmp_path / "secret"
    secret.write_text("x")
    run = sandbox.run(HOST.format(secret=str(secret)))
    assert run.passed, run.output
    assert "a-secret" not in run.output
    assert "[] [] [] []" in run.output
    assert str(os.getpid()) not in sandbox.run("import os; print(os.getppid(), flush=True)").output


def test_output_is_cut_off_and_the_next_program_starts_afresh(sandbox: Sandbox) -> None:
    run = sandbox.run("open('left', 'w')\nfor _ in range(9): print('x' * 9999, flush=True)")
    assert run.passed
    assert len(run.output) == OUTPUT
    assert sandbox.run("import os; assert os.listdir('.') == []").passed


def test_where_there_is_no_sandbox_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ScorerError, match="only run in a sandbox, which needs Linux with util-linux: no unshare"
    ):
        Sandbox(SHORT)


def test_a_host_that_forbids_namespaces_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ScorerError, match="cannot be had here: unshare failed: Operation not permitted"):
        Sandbox(SHORT)
