"""A worker process: started in a session of its own, spoken to with deadlines, and surely ended.

The worker's environment is an allow-list: no token or key of the parent reaches it. It leaves with the
parent in every way the parent can leave: its stdin ends, and on Linux the kernel kills it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

import checkweigh
from checkweigh.engines.host_memory import GIB
from checkweigh.engines.worker import wire

PASSED = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "USER", "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH", "XDG_CACHE_HOME",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES",
    "PYTHONDONTWRITEBYTECODE", "SYSTEMROOT",
)  # fmt: skip
GRACE = 3.0  # seconds a worker has to leave by itself
TAIL_LINES = 20


class WorkerGone(Exception):
    """The worker closed its side: it is ending or has ended."""


class TooSlow(Exception):
    """The deadline passed."""


def environment(threads: int) -> dict[str, str]:
    """What the worker sees of the environment, with ``threads`` for every numeric library."""
    kept = {name: os.environ[name] for name in PASSED if name in os.environ}
    return kept | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": str(Path(checkweigh.__file__).resolve().parents[1]),  # the parent's own checkweigh
    }


class Worker:
    """One running ``checkweigh.engines.worker.main``."""

    def __init__(self, *, threads: int, log: Path) -> None:
        self.log = log
        self.lowest_free = psutil.virtual_memory().available
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-m", "checkweigh.engines.worker.main"]
        if threading.current_thread() is threading.main_thread():
            # The kernel's death signal follows the *thread* that started the worker: only the main one asks.
            command += ["--parent", str(os.getpid())]
        with log.open("ab") as stderr:
            self._start = stderr.tell()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(threads),
                start_new_session=True,
                bufsize=0,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        os.set_blocking(self._in.fileno(), False)
        os.set_blocking(self._out.fileno(), False)

    def exchange(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send one message and wait for its answer. Raises WorkerGone, TooSlow or wire.BrokenFrame."""
        deadline = time.monotonic() + seconds
        self.lowest_free = psutil.virtual_memory().available
        self._send(wire.frame(message), deadline)
        size = wire.length_of(self._receive(wire.HEADER.size, deadline))
        return wire.parse(self._receive(size, deadline))

    def _wait(self, deadline: float, *, read: bool) -> None:
        """Until the pipe is ready; notes the least free memory seen, once a second."""
        poll = select.poll()
        poll.register((self._out if read else self._in).fileno(), select.POLLIN if read else select.POLLOUT)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TooSlow
            if poll.poll(min(left, 1.0) * 1000):
                return
            self.lowest_free = min(self.lowest_free, psutil.virtual_memory().available)

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(deadline, read=False)
            try:
                view = view[os.write(self._in.fileno(), view[:65536]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise WorkerGone from error

    def _receive(self, size: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while size:
            self._wait(deadline, read=True)
            try:
                part = os.read(self._out.fileno(), min(size, 1 << 20))
            except BlockingIOError:
                continue
            if not part:
                raise WorkerGone
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def stop(self, grace: float = GRACE) -> None:
        """End the worker and everything in its process group. Safe to call twice."""
        with suppress(OSError):
            self._in.close()
        if grace > 0 and self.process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self._out.close()

    def cause(self) -> str:
        """In words, why the worker ended; waits a moment for its exit status."""
        try:
            code = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "it closed its output but did not exit"
        if code == -signal.SIGKILL:
            free = self.lowest_free / GIB
            return f"killed by signal 9 (SIGKILL), likely out of memory: host had {free:.1f} GiB free"
        if code < 0:
            return f"killed by signal {-code} ({signal.Signals(-code).name})"
        if code == 0:
            return "it exited with code 0 although nobody asked it to"
        return f"it exited with code {code}"

    def tail(self) -> str:
        """The last lines this worker wrote to its log."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(self._start)
            lines = deque(file, maxlen=TAIL_LINES)
            return b"".join(lines).decode("utf-8", "replace")
        return ""
