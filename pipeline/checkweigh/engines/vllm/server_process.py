"""A server process of our own: kept by ``keeper``, on a free loopback port, with its log and the cause of its end."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from checkweigh.engines.processes import keeper
from checkweigh.engines.protocol import Resources
from checkweigh.engines.worker.process import GIB, PASSED
from checkweigh.errors import EngineDied, EngineError

GRACE_S = 20.0  # that a server has to drain and leave
TAIL_LINES = 25
MEMORY = "out of memory"
# What a log says when a server fails, and what that means. The first that is found counts.
CAUSES = (
    (re.compile(r"address already in use", re.I), "its port was taken"),
    (re.compile(r"out of memory|MemoryError|Cannot allocate memory|No available memory for the cache|not enough memory"
                r"|larger than the (?:available|maximum).*KV cache|bad_alloc"
                r"|Free memory on device .* less than desired GPU memory utilization", re.I), MEMORY),
    (re.compile(r"error: (?:unrecognized arguments|argument|ambiguous option).*", re.I), "it refuses a setting"),
    (re.compile(r"ModuleNotFoundError: No module named '[^']*'|(?:ModuleNotFoundError|ImportError): .*"),
     "its environment is broken"),
    (re.compile(r"Value error, .*|(?:ValueError|RuntimeError|NotImplementedError|AssertionError|KeyError): .*"), ""),
)  # fmt: skip
NOISE = re.compile(
    r"nanobind|leaked |resource_tracker|warnings\.warn|UserWarning|FutureWarning|DeprecationWarning"
)


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What the server sees: an allow-list of ours, and ``extra``. No token or key of the parent reaches it."""
    return {name: os.environ[name] for name in PASSED if name in os.environ} | dict(extra)


class Server:
    """One running server. ``stop`` is safe to call twice; nothing is left behind if it never is."""

    def __init__(
        self, command: Sequence[str], extra: Mapping[str, str], log: Path, last: Sequence[str] = ()
    ) -> None:
        """``last``: a command that is run when the server has ended, however that came."""
        self.log = log
        self.lowest_free = psutil.virtual_memory().available
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            self._start = stderr.tell()
            keep = [sys.executable, "-I", keeper.__file__, str(GRACE_S), json.dumps(list(last))]
            self._keeper = subprocess.Popen(
                [*keep, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                env=environment(extra), start_new_session=True, bufsize=0,
            )  # fmt: skip
        self._said = b""
        self._code: int | None = None
        self.pid: int | None = None
        self._listen(10.0, "pid")
        if self.pid is None:
            self.stop()
            raise EngineDied("the server could not be started", cause=self.cause(), log_tail=self.tail())

    def ended(self, wait_s: float = 0.0) -> bool:
        """Whether the server has ended; waits for that at most so long. Notes the least free memory seen."""
        self.lowest_free = min(self.lowest_free, psutil.virtual_memory().available)
        self._listen(wait_s, "code")
        return self._code is not None or self._keeper.poll() is not None

    def _listen(self, seconds: float, wanted: str) -> None:
        assert self._keeper.stdout is not None
        until = time.monotonic() + seconds
        while not self._keeper.stdout.closed:
            ready, _, _ = select.select([self._keeper.stdout], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self._keeper.stdout.fileno(), 4096) if ready else b""
            *lines, self._said = (self._said + data).split(b"\n")
            for line in lines:
                found = json.loads(line)
                self.pid = found.get("pid", self.pid)
                self._code = found.get("code", self._code)
            if not data or (wanted == "pid" and self.pid is not None) or self._code is not None:
                return

    def stop(self, grace: float = GRACE_S) -> None:
        """Drain and end the server and all it started; ``grace`` 0 kills."""
        keeper_ = self._keeper
        assert keeper_.stdin is not None
        if grace == 0 and keeper_.poll() is None:
            for process in self.processes():
                with suppress(psutil.Error):
                    process.kill()
        with suppress(OSError):
            keeper_.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            keeper_.wait(GRACE_S + 10.0)
        if keeper_.poll() is None:  # never seen; the kernel ends the server with it
            keeper_.kill()
            keeper_.wait()
        self._listen(0.0, "code")
        assert keeper_.stdout is not None
        keeper_.stdout.close()

    def processes(self) -> list[psutil.Process]:
        """The server and all it started."""
        try:
            return psutil.Process(self._keeper.pid).children(recursive=True)
        except psutil.Error:
            return []

    def cause(self) -> str:
        """In words, why the server ended."""
        for pattern, meaning in CAUSES:
            if found := pattern.search(self._text()):
                said = found.group(0).strip()[:300]
                return f"{meaning}: {said}" if meaning and meaning.lower() not in said.lower() else said
        if self._code is None:
            return "its end was not seen"
        if self._code == -9:
            free = self.lowest_free / GIB
            return f"killed by signal 9 (SIGKILL), likely out of memory: host had {free:.1f} GiB free"
        if self._code < 0:
            return f"killed by signal {-self._code}"
        return f"it exited with code {self._code}" + (
            " although nobody asked it to" if self._code == 0 else ""
        )

    def refused_setting(self) -> bool:
        """Whether it ended because it does not know a setting."""
        return self.cause().startswith("it refuses a setting")

    def out_of_memory(self) -> bool:
        """Whether it ended for want of memory."""
        return next((meaning for pattern, meaning in CAUSES if pattern.search(self._text())), "") == MEMORY

    def text(self) -> str:
        """All that this server wrote to its log so far."""
        return self._text()

    def _text(self) -> str:
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(self._start)
            return file.read().decode("utf-8", "replace")
        return ""

    def tail(self) -> str:
        """The last lines of its log that say something."""
        return "\n".join(
            deque((x for x in self._text().splitlines() if not NOISE.search(x)), maxlen=TAIL_LINES)
        )


def memory_of(processes: Sequence[psutil.Process], *, reset_peak: bool) -> Resources:
    """Sums over processes, in bytes. The peak is the sum of each one's own peak, at least what was used at once."""
    resident = peak = swapped = 0
    for process in processes:
        sizes = {"VmRSS": 0, "VmHWM": 0, "VmSwap": 0}
        try:
            for line in Path(f"/proc/{process.pid}/status").read_text(errors="replace").splitlines():
                name, _, rest = line.partition(":")
                if name in sizes:
                    sizes[name] = int(rest.split()[0]) * 1024
            if reset_peak:
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        except FileNotFoundError:  # no Linux, or it has just ended
            with suppress(psutil.Error):
                sizes["VmRSS"] = sizes["VmHWM"] = int(process.memory_info().rss)
        except OSError:
            continue
        resident += sizes["VmRSS"]
        peak += max(sizes["VmRSS"], sizes["VmHWM"])
        swapped += sizes["VmSwap"]
    if not resident:
        raise EngineError("the memory of the server cannot be read: it has no process")
    return Resources(resident=resident, peak=peak, swapped=swapped)
