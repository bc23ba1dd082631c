"""Posts one notice: ``python -m checkweigh.sinks.webhook``, a process of its own.

Reads ``{"uri", "folder", "seconds"}`` from stdin, so that no address appears in a list of processes. Exit 0: the
receiver said 2xx. 75: nobody answered, or it was busy (5xx, 429). 1: anything else, a redirect among it: what is
secret in the address is sent nowhere else. The last line on stderr says why.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from checkweigh.errors import CheckweighError, HostBusy
from checkweigh.files import lock
from checkweigh.sinks.mlflow import UNREACHABLE
from checkweigh.sinks.outbox import read_as, remove
from checkweigh.sinks.webhook_payload import Notice, Waiting

ANSWER = 65_536  # bytes of an answer that are read


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows nothing."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def post(notice: Notice, uri: str, seconds: float) -> int:
    """Send it; the status. HTTPError for any but 2xx, OSError when nobody answers."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "checkweigh",
        "X-Checkweigh-Event": notice.event,
        "Idempotency-Key": notice.id,
    }
    request = urllib.request.Request(uri, notice.model_dump_json().encode(), headers, method="POST")
    with urllib.request.build_opener(_Straight).open(request, timeout=seconds) as answer:
        answer.read(ANSWER)
        return int(answer.status)


def send(folder: Path, uri: str, seconds: float) -> int:
    """Post what waits in ``folder``, then forget it; the exit code of the process."""
    try:
        waiting = read_as(Waiting, folder)
        status = post(waiting.notice, uri, seconds)
    except urllib.error.HTTPError as error:
        with error:
            print(f"it answered {error.code}", file=sys.stderr)
            return UNREACHABLE if error.code >= 500 or error.code == 429 else 1
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error or type(error).__name__}", file=sys.stderr)
        return UNREACHABLE
    remove(folder)
    print(json.dumps({"status": status}))
    return 0


def main() -> int:
    """Exit code of the process; see the module."""
    asked = json.loads(sys.stdin.read())
    if hasattr(signal, "alarm"):
        signal.alarm(int(asked["seconds"]) + 1)  # the parent may be gone: nobody else would end this
    folder = Path(asked["folder"])
    try:
        with lock(folder.parent / ".lock", timeout_s=asked["seconds"], what="is sending notices"):
            return send(folder, asked["uri"], asked["seconds"]) if folder.exists() else 0
    except HostBusy as error:
        print(error, file=sys.stderr)
        return UNREACHABLE
    except (CheckweighError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
