"""A guard alone, in front of an engine that already runs: what the serving benchmarks put between client and engine.

    python benchmarks/guarded.py ENGINE_URL MODEL SLOTS [GUARD_POLICY]

Says its address as one line of JSON; SIGTERM ends it. The engine is not supervised here, all other parts are on.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from checkweigh.engines.http.client import Endpoint
from checkweigh.engines.mock.serve import listen
from checkweigh.guard.guard import Guard, GuardSetup
from checkweigh.guard.http.request_schema import Bounds
from checkweigh.usecases.serving import read_limits

KEY = "OVERLOAD_KEY"  # environment variable with the engine's key, where it has one


async def main(url: str, model: str, slots: int, limits: Path | None) -> None:
    """Serve until told to stop."""
    policy = read_limits(limits)
    bounds = Bounds(
        model=model, max_sequence=4096, max_tokens=policy.admission.max_tokens,
        default_tokens=policy.admission.default_tokens, count=lambda text: -(-len(text.encode()) // 4),
    )  # fmt: skip
    setup = GuardSetup(
        policy=policy,
        bounds=bounds,
        slots=slots,
        baseline=Endpoint(url=url, model=model, key=os.environ.get(KEY)),
    )
    guard = Guard(setup, lambda line: print(line, file=sys.stderr))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, guard.drain)
    with listen() as bound:
        print(json.dumps({"url": f"http://127.0.0.1:{bound.getsockname()[1]}/v1"}), flush=True)
        await guard.run(bound)


if __name__ == "__main__":
    asyncio.run(
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]) if len(sys.argv) > 4 else None)
    )
