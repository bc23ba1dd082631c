"""What the gate's and the guard's process behind the keeper have in common: its log, and its exit code in words.

The two start and stop it differently on purpose. The gate's calls block, and Ctrl-C may interrupt each of them
(``engines.vllm.server_process``). The guard must never block the event loop that serves its clients
(``guard.supervision.engine_process``). One class for both would be two behind one name.
"""

from __future__ import annotations

import re
import signal
from collections import deque
from contextlib import suppress
from pathlib import Path


class RunLog:
    """The part of a log file that one run of a process writes, from where the file ended when it started."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._start = path.stat().st_size if path.exists() else 0

    def text(self) -> str:
        """All that the run has logged so far; empty where the file cannot be read."""
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(self._start)
            return file.read().decode("utf-8", "replace")
        return ""

    def tail(self, lines: int, *, without: re.Pattern[str] | None = None) -> str:
        """The last ``lines`` lines of the run, those that ``without`` occurs in left out."""
        kept = (line for line in self.text().splitlines() if without is None or not without.search(line))
        return "\n".join(deque(kept, maxlen=lines))


def exit_cause(code: int) -> str:
    """In words, how a process ended that nobody asked to end. ``code`` is negative for a signal."""
    if code >= 0:
        return f"exited with code {code}" + (" although nobody asked it to" if code == 0 else "")
    names = {
        number.value: f" ({number.name})" for number in signal.Signals
    }  # not every real-time signal has one
    hint = ", likely out of memory" if -code == signal.SIGKILL else ""
    return f"killed by signal {-code}{names.get(-code, '')}{hint}"
