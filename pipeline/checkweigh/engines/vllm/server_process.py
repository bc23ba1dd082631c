"""The gate's vLLM server process: kept by ``keeper``, with its log, its memory and the cause of its end in words."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from checkweigh.engines.host_memory import GIB
from checkweigh.engines.processes import container, keeper
from checkweigh.engines.processes.kept_process import RunLog, exit_cause
from checkweigh.engines.protocol import Resources
from checkweigh.engines.vllm.server_launch import LaunchPlan
from checkweigh.errors import EngineDied, EngineError

GRACE_S = 20.0  # that a server has to drain and leave
TAIL_LINES = 25
MEMORY = "out of memory"
# What a log says when a server fails, and what that means. The first pattern that matches counts.
CAUSES = (
    (re.compile(r"address already in use", re.I), "its port was taken"),
    (re.compile(r"out of memory|MemoryError|Cannot allocate memory|No available memory for the cache|not enough memory"
                r"|larger than the (?:available|maximum).*KV cache|bad_alloc"
                r"|Free memory on device .* less than desired GPU memory utilization", re.I), MEMORY),
    (re.compile(r"Following weights were not initialized from checkpoint: \{[^}]*\}"
                r"|There is no module or parameter named '[^']*' in \w+"
                r"|KeyError: '(?:\w+\.){2,}\w+'|SafetensorError: .*"
                r"|Attempted to load weight .*into parameter.*"), "it refuses the checkpoint"),
    (re.compile(r"error: (?:unrecognized arguments|argument|ambiguous option).*", re.I), "it refuses a setting"),
    (re.compile(r"ModuleNotFoundError: No module named '[^']*'|(?:ModuleNotFoundError|ImportError): .*"),
     "its environment is broken"),
    (re.compile(r"Value error, .*|(?:ValueError|RuntimeError|NotImplementedError|AssertionError|KeyError): .*"), ""),
)  # fmt: skip
NOISE = re.compile(
    r"nanobind|leaked |resource_tracker|warnings\.warn|UserWarning|FutureWarning|DeprecationWarning"
)


class Server:
    """One running server. ``stop`` is safe to call twice; nothing is left behind if it never is."""

    def __init__(self, plan: LaunchPlan) -> None:
        """Start it. EngineDied: it could not be started."""
        self.plan = plan
        self.lowest_free = psutil.virtual_memory().available
        self._log = RunLog(plan.log)
        with plan.log.open("ab") as stderr:
            self._keeper = subprocess.Popen(
                keeper.command_line(plan.argv, grace_s=GRACE_S, cleanup=plan.cleanup),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                env=dict(plan.environment), start_new_session=True, bufsize=0,
            )  # fmt: skip
        self._unread = b""
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
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                self.pid = message.get("pid", self.pid)
                self._code = message.get("code", self._code)
            if not data or (wanted == "pid" and self.pid is not None) or self._code is not None:
                return

    def stop(self, grace: float = GRACE_S) -> None:
        """Drain and end the server and all it started; ``grace`` 0 kills."""
        assert self._keeper.stdin is not None
        if grace == 0 and self._keeper.poll() is None:
            for process in self._family():
                with suppress(psutil.Error):
                    process.kill()
        with suppress(OSError):
            self._keeper.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._keeper.wait(GRACE_S + 10.0)
        if self._keeper.poll() is None:  # never seen; the kernel ends the server with it
            self._keeper.kill()
            self._keeper.wait()
        self._listen(0.0, "code")
        assert self._keeper.stdout is not None
        self._keeper.stdout.close()

    def processes(self) -> list[psutil.Process]:
        """The server and all it started. A container's are not below its client."""
        return self._family() if self.plan.container is None else container.processes(self.plan.container)

    def _family(self) -> list[psutil.Process]:
        """Everything below the keeper."""
        try:
            return psutil.Process(self._keeper.pid).children(recursive=True)
        except psutil.Error:
            return []

    def cause(self) -> str:
        """In words, why the server ended."""
        text = self.text()
        for pattern, meaning in CAUSES:
            if match := pattern.search(text):
                words = match.group(0).strip()[:300]
                return f"{meaning}: {words}" if meaning and meaning.lower() not in words.lower() else words
        if self._code is None:
            return "its end was not seen"
        if self._code == -signal.SIGKILL:
            return f"{exit_cause(self._code)}: host had {self.lowest_free / GIB:.1f} GiB free"
        return exit_cause(self._code) if self._code < 0 else f"it {exit_cause(self._code)}"

    def refused(self) -> bool:
        """Whether it ended because it does not know a setting, or a tensor is missing or unexpected."""
        return self.cause().startswith("it refuses ")

    def out_of_memory(self) -> bool:
        """Whether it ended for want of memory."""
        text = self.text()
        return next((meaning for pattern, meaning in CAUSES if pattern.search(text)), "") == MEMORY

    def text(self) -> str:
        """All that this server wrote to its log so far."""
        return self._log.text()

    def tail(self) -> str:
        """The last lines of its log that say something."""
        return self._log.tail(TAIL_LINES, without=NOISE)


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
