"""The worker process: ``python -m checkweigh.engines.worker.main``. Reads calls from stdin, answers on stdout.

1. Take stdout away from everybody else: what a library prints goes to the log.
2. Make sure to leave with the parent.
3. Start the backend the spec names; answer with its identity.
4. Answer calls one by one. BadInput is an answer; lack of memory or of disk and anything unforeseen are the last one.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from checkweigh.engines import host_memory
from checkweigh.engines.backend import Backend
from checkweigh.engines.protocol import ItemFailure, ScoreRequest, States
from checkweigh.engines.spec import EngineSpec
from checkweigh.engines.worker import wire
from checkweigh.errors import BadInput, EngineError, EngineOutOfMemory, StoreError
from checkweigh.records.manifest import Manifest

PR_SET_PDEATHSIG = 1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
OUT_OF_DISK = tuple(os.strerror(number).lower() for number in FULL)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def take_stdout() -> BinaryIO:
    """The real stdout, for frames only; file descriptor 1 becomes stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def leave_with_parent(parent: int | None) -> None:
    """On Linux the kernel kills this process when the parent's thread that started it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def read_calls(stdin: BinaryIO, calls: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Queue every call; when the parent's side ends, end at once, whatever is being computed."""
    try:
        while (call := wire.read_frame(stdin)) is not None:
            calls.put(call)
    finally:
        os._exit(0)


def read_spec(value: dict[str, Any]) -> EngineSpec:
    """Inverse of ``EngineSpec.to_json``."""
    return EngineSpec(
        manifest=Manifest.model_validate_json(json.dumps(value["manifest"])),
        model_dir=Path(value["model_dir"]),
        tokenizer_dir=Path(value["tokenizer_dir"]),
        chat_template=value["chat_template"],
        draft_dir=None if value["draft_dir"] is None else Path(value["draft_dir"]),
    )


def start(spec: EngineSpec) -> Backend:
    """The backend of ``engine.kind``, loaded and warm. Only the one that is needed is imported."""
    if spec.manifest.engine.kind == "fake":
        from checkweigh.engines.fake.backend import FakeBackend

        return FakeBackend(spec)
    if spec.manifest.engine.device == "cpu":  # before torch is imported: a refusal takes no time
        host_memory.require_room(spec.manifest, spec.model_dir, host_memory.available(), spec.draft_dir)
    from checkweigh.engines.hf.backend import TransformersBackend

    return TransformersBackend(spec)


def answer(backend: Backend, call: dict[str, Any]) -> Any:
    """One call's result as JSON values."""
    match call["call"]:
        case "render":
            return [
                list(ids) for ids in backend.render([wire.unpack_messages(c) for c in call["conversations"]])
            ]
        case "score":
            return wire.pack_results(backend.score([wire.unpack_score_request(r) for r in call["batch"]]))
        case "states":
            batch = [wire.unpack_score_request(r) for r in call["batch"]]
            return wire.pack_results(write_states(backend, batch, Path(call["folder"])))
        case "divergence":
            batch = [wire.unpack_score_request(r) for r in call["batch"]]
            return wire.pack_results(backend.divergence(batch, Path(call["theirs"]), Path(call["mine"])))
        case "generate":
            requests = [wire.unpack_generate_request(r) for r in call["batch"]]
            return wire.pack_results(backend.generate(requests, sent=call["sent"]))
        case "resources":
            memory = backend.resources(reset_peak=call["reset_peak"])
            return [memory.resident, memory.peak, memory.swapped]
    raise ValueError(f"unknown call {call['call']!r}")


def write_states(backend: Backend, batch: list[ScoreRequest], folder: Path) -> Sequence[States | ItemFailure]:
    """``backend.states``; StoreError when it is the disk that fails.

    Numpy says so without an error number, safetensors with an exception of its own.
    """
    try:
        return backend.states(batch, folder)
    except Exception as error:
        if isinstance(error, OSError) or any(words in str(error).lower() for words in OUT_OF_DISK):
            raise StoreError(f"{folder}: cannot be written ({error})") from error
        raise


def explain(error: Exception) -> dict[str, str]:
    """An exception as an answer."""
    text = str(error)
    if isinstance(error, BadInput):
        return {"error": "bad_input", "text": text}
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, StoreError) or (isinstance(error, OSError) and error.errno in FULL):
        return {"error": "disk", "text": text}
    if isinstance(error, EngineOutOfMemory):
        return {"error": "out_of_memory", "text": text}
    if isinstance(error, EngineError):
        return {"error": "engine", "text": text}
    if isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and any(words in text.lower() for words in OUT_OF_MEMORY)
    ):
        return {"error": "out_of_memory", "text": named}
    with suppress(OSError):  # the log's disk may be full: the answer still leaves
        traceback.print_exception(error)
    return {"error": "died", "text": named}


def serve(calls: queue.SimpleQueue[dict[str, Any]], out: BinaryIO) -> int:
    """Answer calls until one is the last; the exit code."""
    backend: Backend | None = None
    while True:
        call = calls.get()
        try:
            if backend is None:
                backend = start(read_spec(call["spec"]))
                reply: dict[str, Any] = {"result": backend.identity.model_dump(mode="json")}
            else:
                reply = {"result": answer(backend, call)}
        except Exception as error:
            reply = explain(error)
        out.write(wire.frame(reply))
        out.flush()
        if backend is None or reply.get("error") in ("died", "engine", "out_of_memory", "disk"):
            return 1


def main() -> None:
    """Run until the parent leaves."""
    out = take_stdout()
    faulthandler.enable(all_threads=False)
    leave_with_parent(int(sys.argv[2]) if sys.argv[1:2] == ["--parent"] else None)
    calls: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=read_calls, args=(sys.stdin.buffer, calls), daemon=True).start()
    code = serve(calls, out)
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)  # the reader thread may hold stdin's lock, which an ordinary exit would wait for


if __name__ == "__main__":
    main()
