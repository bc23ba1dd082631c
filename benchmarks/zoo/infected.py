"""checkweigh with a defect in one manifest's engine: ``python -m benchmarks.zoo.infected NAME DEFECT ARGS...``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from checkweigh.__main__ import run
from checkweigh.engines.worker import process
from checkweigh.engines.worker.engine import WorkerEngine

ENGINE = Path(__file__).resolve().parent / "engine"


def infect(name: str, defect: str) -> None:
    """From now on the worker of manifest ``name`` begins with ``engine/sitecustomize.py``."""
    enter, plain = WorkerEngine.__enter__, process.environment

    def sick(threads: int) -> dict[str, str]:
        found = plain(threads)
        path = os.pathsep.join([str(ENGINE), found["PYTHONPATH"]])
        return found | {"PYTHONPATH": path, "CHECKWEIGH_ZOO": defect}

    def entered(self: WorkerEngine) -> WorkerEngine:
        process.environment = sick if self.spec.manifest.name == name else plain
        return enter(self)

    WorkerEngine.__enter__ = entered  # type: ignore[method-assign]


if __name__ == "__main__":
    infect(sys.argv[1], sys.argv[2])
    sys.argv = ["checkweigh", *sys.argv[3:]]
    run()
