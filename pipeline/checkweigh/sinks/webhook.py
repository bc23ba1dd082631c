"""Posts one notice: ``python -m checkweigh.sinks.webhook``, a process of its own.

``sender_main`` has the request, the reply and the exit codes; the request names the notice's ``folder``. Exit 0: the
receiver said 2xx. 75: nobody answered, or it was busy (5xx, 429). 1: anything else, a redirect among it: what is
secret in the address is sent nowhere else.
"""

from __future__ import annotations

import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkweigh.sinks.no_redirects import open_directly
from checkweigh.sinks.outbox import read_parcel, remove
from checkweigh.sinks.sender_main import DeliveryFailed, Unreachable, send_folder, serve
from checkweigh.sinks.webhook_payload import Notice, WaitingNotice

ANSWER = 65_536  # bytes of an answer that are read


def post(notice: Notice, uri: str, timeout_s: float) -> int:
    """Send it; the status. HTTPError for any but 2xx, OSError when nobody answers."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "checkweigh",
        "X-Checkweigh-Event": notice.event,
        "Idempotency-Key": notice.id,
    }
    request = urllib.request.Request(uri, notice.model_dump_json().encode(), headers, method="POST")
    with open_directly(request, timeout_s) as response:
        response.read(ANSWER)
        return int(response.status)


def send(folder: Path, uri: str, timeout_s: float) -> dict[str, int]:
    """Post what waits in ``folder``, then forget it; the status. Unreachable, DeliveryFailed."""
    waiting = read_parcel(WaitingNotice, folder)
    try:
        status = post(waiting.notice, uri, timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            busy = error.code >= 500 or error.code == 429
            raise (Unreachable if busy else DeliveryFailed)(f"it answered {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"no answer: {error or type(error).__name__}") from error
    except ValueError as error:  # an address that no request can be made of
        raise DeliveryFailed(str(error)) from error
    remove(folder)
    return {"status": status}


def _handle(request: dict[str, Any]) -> Mapping[str, Any]:
    uri, timeout_s = request["uri"], request["seconds"]
    return send_folder(request, "is sending notices", lambda folder: send(folder, uri, timeout_s))


if __name__ == "__main__":
    sys.exit(serve(_handle))
