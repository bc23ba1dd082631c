"""Seconds to digest a model's weights beside ``sha256sum`` and ``openssl sha256`` on as many cores.

Files of random bytes are read from the page cache by all three, in turns; ``xargs -P`` gives the others their cores.
Coreutils' sha256sum may lack the processor's SHA instructions, hence OpenSSL, which has them. Exits 1 when a digest
differs or a median ratio is above 1.2.

    python benchmarks/verification.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from checkweigh.progress import no_progress
from checkweigh.sources.digests import Files, fresh_digests

HERE = Path(__file__).resolve().parent
AIM = 1.2
OTHERS = {"sha256sum": ["sha256sum"], "openssl": ["openssl", "sha256", "-r"]}
LAYOUTS = {
    "one file of 270 MB": (270,),
    "two of 270 MB": (270, 270),
    "seven of 20 to 400 MB": (20, 400, 60, 100, 300, 40, 200),
}


def ours(files: list[Path]) -> tuple[float, dict[str, str]]:
    """Seconds, and name -> digest."""
    wanted: Files = {file.name: (file, "file") for file in files}
    start = time.perf_counter()
    found = fresh_digests(wanted, no_progress, "")
    return time.perf_counter() - start, found


def theirs(command: list[str], files: list[Path], cores: int) -> tuple[float, dict[str, str]]:
    """The same by a command that prints a digest and a name, one process a file, the largest first."""
    files = sorted(files, key=lambda file: -file.stat().st_size)
    start = time.perf_counter()
    done = subprocess.run(
        ["xargs", "-0", "-n", "1", "-P", str(cores), *command],
        input="\0".join(map(str, files)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    lines = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return seconds, {Path(name.lstrip("*")).name: f"sha256:{digest}" for digest, name in lines}


def compare(sizes: tuple[int, ...], rounds: int, cores: int) -> dict[str, Any]:
    """Medians and the median ratio of the rounds, for files of these megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"model-{number}.safetensors" for number in range(len(sizes))]
        for file, size in zip(files, sizes, strict=True):
            file.write_bytes(os.urandom(size * 1_000_000))
        times: dict[str, list[float]] = {name: [] for name in ("checkweigh", *OTHERS)}
        for _ in range(rounds):
            seconds, found = ours(files)
            times["checkweigh"].append(seconds)
            for name, command in OTHERS.items():
                seconds, expected = theirs(command, files, cores)
                times[name].append(seconds)
                if found != expected:
                    raise SystemExit(f"{name} finds other digests")
    mine = times["checkweigh"]
    ratios = {name: median(a / b for a, b in zip(mine, times[name], strict=True)) for name in OTHERS}
    return {
        "megabytes": list(sizes),
        "seconds": {name: round(median(values), 3) for name, values in times.items()},
        "ratio": {name: round(value, 3) for name, value in ratios.items()},
    }


def main() -> int:
    """Measure all layouts and write the JSON beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    cores = len(os.sched_getaffinity(0))
    layouts = {name: compare(sizes, rounds, cores) for name, sizes in LAYOUTS.items()}
    result = {"cores": cores, "rounds": rounds, "load": round(os.getloadavg()[0], 2), "layouts": layouts}
    (HERE / "verification.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return int(any(max(layout["ratio"].values()) > AIM for layout in layouts.values()))


if __name__ == "__main__":
    sys.exit(main())
