"""The regression zoo: every specimen through the real gate.

    python -m benchmarks.zoo [NAME ...] [--family F] [--quick] [--work runs/zoo] [--out benchmarks/zoo/results]

One JSON a specimen; one whose inputs have not changed since is not run again. Ends with exit code 1 when a specimen
did not come out as it must, and names it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.zoo.gating import Zoo, inputs, run, zoo
from benchmarks.zoo.specimens import QUICK, SPECIMENS, Specimen

from checkweigh.files import write_atomic

HERE = Path(__file__).resolve().parent
QUICK_CHECKS = ("perplexity", "bad-endings", "longer-replies", "answers-score")


def chosen(names: list[str], family: str | None, *, quick: bool) -> list[Specimen]:
    """The specimens asked for. SystemExit for a name that there is not."""
    known = {specimen.name: specimen for specimen in SPECIMENS}
    wanted = names or (list(QUICK) if quick else list(known))
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
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "runs" / "zoo")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    place = zoo(options.work.resolve(), QUICK_CHECKS if options.quick else ())
    todo = chosen(options.names, options.family, quick=options.quick)
    wrong, began = [], time.monotonic()
    for number, specimen in enumerate(todo, 1):
        path = options.out / f"{specimen.name}.json"
        if fresh(specimen, place, path):
            result = json.loads(path.read_text())
        else:
            result = run(specimen, place)
            write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
        print(
            f"[{number}/{len(todo)}, {time.monotonic() - began:.0f} s] {specimen.name:24} {line(result)}",
            flush=True,
        )
        if result["met"] is False:
            wrong.append(specimen.name)
    if wrong:
        print(f"not as they must: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
