"""The regression zoo: every specimen through the real gate; those that are timed only with ``--family timing``.

    python -m benchmarks.zoo [NAME ...] [--family F] [--quick] [--jobs N] [--work runs/zoo] [--out DIR]

One JSON a specimen; one whose inputs have not changed since is not run again. Ends with exit code 1 when a specimen
did not come out as it must, and names it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.zoo.gating import TIMED, Zoo, inputs, run, zoo
from benchmarks.zoo.specimens import QUALITY_SPECIMENS, QUICK, SPECIMENS, Specimen

from checkweigh.files import write_atomic

HERE = Path(__file__).resolve().parent
QUICK_CHECKS = ("perplexity", "bad-endings", "longer-replies", "answers-score")


def chosen(names: list[str], family: str | None, *, quick: bool) -> list[Specimen]:
    """The specimens asked for. SystemExit for a name that there is not."""
    known = {specimen.name: specimen for specimen in SPECIMENS}
    every = list(known) if family else [specimen.name for specimen in QUALITY_SPECIMENS]
    wanted = names or (list(QUICK) if quick else every)
    if unknown := sorted(set(wanted) - set(known)):
        raise SystemExit(f"no specimen {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted if family in (None, known[name].family)]


def fresh(specimen: Specimen, place: Zoo, path: Path) -> bool:
    """Whether the result that is there is of these very inputs. One that broke is tried again."""
    try:
        result = json.loads(path.read_text())
        return bool(result["verdict"] != "error" and result["inputs"] == inputs(specimen, place.rules))
    except (OSError, ValueError, KeyError):
        return False


def line(result: dict[str, Any]) -> str:
    """One result in one line."""
    mark = {True: "as it must", False: "NOT AS IT MUST", None: "open"}[result["met"]]
    why = ", ".join(result.get("caught", ())) or result.get("message", "").rpartition("\n")[2]
    return f"{result['verdict'].upper():13} {result['seconds']:6} s  {mark}  {why}"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--family", choices=sorted({s.family for s in SPECIMENS}))
    parser.add_argument("--quick", action="store_true", help="four specimens, on two of the sets")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="specimens at once [cores]")
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "runs" / "zoo")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    keep = QUICK_CHECKS if options.quick else ()
    places = {how: zoo(options.work.resolve(), keep, how) for how in ("", *TIMED)}
    todo = chosen(options.names, options.family, quick=options.quick)
    wrong, began = [], time.monotonic()

    def result_of(specimen: Specimen) -> dict[str, Any]:
        path, place = options.out / f"{specimen.name}.json", places[specimen.timed]
        if not fresh(specimen, place, path):
            write_atomic(path, (json.dumps(run(specimen, place), indent=1) + "\n").encode())
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def results() -> Iterator[dict[str, Any]]:
        """The first alone, for what it measures of the baseline is shared; then as many at once as asked for.

        One at a time where something is timed.
        """
        yield from map(result_of, todo[:1])
        with ThreadPoolExecutor(1 if any(s.timed for s in todo) else options.jobs) as pool:
            yield from pool.map(result_of, todo[1:])

    for number, result in enumerate(results(), 1):
        name = result["specimen"]
        print(
            f"[{number}/{len(todo)}, {time.monotonic() - began:.0f} s] {name:24} {line(result)}", flush=True
        )
        if result["met"] is False:
            wrong.append(name)
    if wrong:
        print(f"not as they must: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
