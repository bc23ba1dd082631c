"""Keeps one server for a parent and leaves nothing behind, however the parent ends. Run as a script; stdlib only.

``keeper.py GRACE LAST COMMAND...`` starts the command in a process group of its own and says its id on stdout. It ends
the server when a line comes on stdin, and when stdin ends, which the kernel sees to even if the parent is killed. First
SIGTERM and GRACE seconds, then SIGKILL to everything that descends from here: as a subreaper (Linux) it also inherits
what a dead server has left behind. LAST is a JSON list: a command to run after that (a container outlives its client),
or empty. Its last line is the server's exit code; a signal's is negative.
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
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


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
    found, open_ = [], [os.getpid()]
    while open_:
        below = children.get(open_.pop(), [])
        found += below
        open_ += below
    return found


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
    """See the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    grace, last = float(sys.argv[1]), json.loads(sys.argv[2])
    keeper = Keeper(sys.argv[3:])
    say(pid=keeper.server.pid)
    while keeper.code is None and not asked:
        ready, _, _ = select.select([0], [], [], 0.1)
        if ready:
            os.read(0, 4096)
            break
        keeper.reap()
    keeper.end(grace)
    if last:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                last, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr, timeout=30, check=False
            )
    say(code=-signal.SIGKILL if keeper.code is None else keeper.code)


if __name__ == "__main__":
    main()
