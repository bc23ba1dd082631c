"""What every sender's process does around its own work: request in, reply out, and an exit code.

The request is one JSON object on stdin with ``uri`` and ``seconds``, so that no address appears in a list of
processes. Exit 0: the receiver has all of it, and stdout holds one JSON object. 75: nobody answered. 1: anything
else. The last line on stderr says why.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from checkweigh.errors import Broken, CheckweighError, HostBusy
from checkweigh.files import lock

UNREACHABLE = 75  # sysexits.h, EX_TEMPFAIL


class Unreachable(Broken):
    """The receiver does not answer, or is busy: another attempt may arrive."""


class DeliveryFailed(Broken):
    """The receiver refused what it was sent, or does not hold it."""


def serve(handle: Callable[[dict[str, Any]], Mapping[str, Any]]) -> int:
    """Read the request, let ``handle`` make the reply, write it; the exit code of the process."""
    reply_to = os.fdopen(os.dup(1), "w")  # what a library prints goes to stderr
    os.dup2(2, 1)
    request = json.loads(sys.stdin.read())
    if hasattr(signal, "alarm"):
        signal.alarm(int(request["seconds"]) + 1)  # the parent may be gone: nobody else would end this
    try:
        reply = handle(request)
    except (HostBusy, Unreachable) as error:
        print(error, file=sys.stderr)
        return UNREACHABLE
    except CheckweighError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # what a server of another version, or one that lies, makes a client raise
        traceback.print_exc()
        print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr)
        return 1
    reply_to.write(json.dumps(reply))
    reply_to.flush()
    return 0


def send_folder(
    request: Mapping[str, Any], what: str, send: Callable[[Path], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Send the request's ``folder``, one sender at a time; the reply of ``send``, empty when the folder is gone.

    HostBusy when another sender keeps the outbox for all of ``seconds``.
    """
    folder = Path(request["folder"])
    with lock(folder.parent / ".lock", timeout_s=request["seconds"], what=what):
        return send(folder) if folder.exists() else {}
