"""Keeps one server for a parent and leaves nothing behind, however the parent ends. Run as a script; stdlib only.

``keeper.py GRACE CLEANUP COMMAND...`` starts the command in a process group of its own and writes its id to stdout. It
ends the server when a line comes on stdin, and when stdin ends, which the kernel sees to even if the parent is killed.
First it sends SIGTERM and waits GRACE seconds. Then it sends SIGKILL to everything that descends from here: as a
subreaper (Linux) it also inherits what a dead server has left behind. CLEANUP is a JSON list: a command that runs after
that (a container outlives its client), or empty. The last line on stdout is the server's exit code, negative for a
signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def command_line(command: Sequence[str], *, grace_s: float, cleanup: Sequence[str] = ()) -> list[str]:
    """What starts ``command`` behind a keeper, in this interpreter. ``grace_s`` lies between SIGTERM and SIGKILL."""
    return [sys.executable, "-I", __file__, str(grace_s), json.dumps(list(cleanup)), *command]


def say(**words: int) -> None:
    """One JSON line; a parent that is gone hears nothing."""
    with suppress(OSError):
        os.write(1, (json.dumps(words) + "\n").encode())


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere a process group is what there is."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """Every process that descends from this one, zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    below, unvisited = [], [os.getpid()]
    while unvisited:
        own_children = children.get(unvisited.pop(), [])
        below += own_children
        unvisited += own_children
    return below


class Keeper:
    """One server and everything it starts."""

    def __init__(self, command: list[str]) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.code: int | None = None
        self.server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr, start_new_session=True,
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )  # fmt: skip

    def reap(self) -> None:
        """Collect what ended; the server's exit code is kept."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.server.pid:
                self.code = os.waitstatus_to_exitcode(status)

    def end(self, grace: float) -> None:
        """Ask the server to end, then end it and all that is left."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.server.pid, signal.SIGTERM)
        self.wait(grace)
        for _ in range(100):
            self.reap()
            left = descendants()
            if not left:
                return
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.server.pid, signal.SIGKILL)
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def wait(self, seconds: float) -> None:
        """Until the server has ended, at most so long."""
        until = time.monotonic() + seconds
        while self.code is None and time.monotonic() < until:
            self.reap()
            time.sleep(0.02)


def main() -> None:
    """Keep one server until it ends or its parent does; the module says how it is called."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))
    grace, cleanup = float(sys.argv[1]), json.loads(sys.argv[2])
    keeper = Keeper(sys.argv[3:])
    say(pid=keeper.server.pid)
    while keeper.code is None and not terminated:
        ready, _, _ = select.select([0], [], [], 0.1)
        if ready:
            os.read(0, 4096)
            break
        keeper.reap()
    keeper.end(grace)
    if cleanup:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                cleanup,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                stderr=sys.stderr,
                timeout=30,
                check=False,
            )
    say(code=-signal.SIGKILL if keeper.code is None else keeper.code)


if __name__ == "__main__":
    main()
