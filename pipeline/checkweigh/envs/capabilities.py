"""What an installed vLLM can do, asked of it once: quantizations, kinds of speculation, options of its server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from pydantic import ValidationError

from checkweigh.errors import EngineError
from checkweigh.records.base import Record

ASKING_S = 300.0
PROBE = """
import contextlib, json, typing
import vllm
found = {"version": vllm.__version__}
with contextlib.suppress(Exception):
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.platforms import current_platform
    known = current_platform.supported_quantization
    found["quantizations"] = sorted(m for m in QUANTIZATION_METHODS if not known or m in known)
with contextlib.suppress(Exception):
    from vllm.engine.arg_utils import AsyncEngineArgs
    found["options"] = sorted(AsyncEngineArgs.__dataclass_fields__)
with contextlib.suppress(Exception):
    from vllm.config import speculative
    flat = lambda t: [x for a in typing.get_args(t) for x in (flat(a) if typing.get_args(a) else [a])]
    found["speculative"] = sorted(x for x in flat(speculative.SpeculativeMethod) if isinstance(x, str))
print("\\n" + json.dumps(found))
"""


class Capabilities(Record):
    """What an engine supports. None means that it did not say: the server then refuses what it cannot do."""

    version: str
    quantizations: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None
    speculative: tuple[str, ...] | None = None


def probe_capabilities(python: Path, what: str) -> Capabilities:
    """Ask the engine that ``python`` imports. Raises EngineError when it does not import, or gives no version.

    ``what`` begins the error's text.
    """
    try:
        completed = subprocess.run(
            [python, "-I", "-c", PROBE], capture_output=True, text=True, timeout=ASKING_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{what} is not usable", cause=str(error)) from error
    if completed.returncode:
        tail = "\n".join(completed.stderr.splitlines()[-8:])
        raise EngineError(f"{what} is not usable", cause="it does not import", log_tail=tail)
    try:
        return Capabilities.model_validate_json(
            json.dumps(json.loads(completed.stdout.strip().splitlines()[-1]))
        )
    except (ValidationError, ValueError, IndexError) as error:
        raise EngineError(f"{what} is not usable", cause="it does not say its version") from error
