"""Writes docs/zoo.md and its plot from the specimens' results: ``python -m benchmarks.zoo.page``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo.gating import TIMED, inputs, rules, timing_rules
from benchmarks.zoo.peers import table
from benchmarks.zoo.specimens import QUALITY_SPECIMENS, SPECIMENS, TIMING

from checkweigh.files import write_atomic
from checkweigh.report.html.svg import (
    Axis,
    dot,
    el,
    label,
    line,
    path,
    picture,
)

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PEERS = HERE / "peers.json"
ITSELF = HERE / "aa.json"
PAGE = HERE.parents[1] / "docs" / "zoo.md"
PLOT = HERE.parents[1] / "docs" / "images" / "zoo.svg"
FAMILIES = {
    "harmless": "Harmless changes",
    "weights": "Weights and quantization",
    "tokenizer": "Tokenizer and template",
    "sampling": "Sampling drift",
    "engine": "Engine",
    "bytes": "What is measured is what is pinned",
    "timing": "Latency and memory",
}
Result = dict[str, Any]
CELL, HEIGHT, MOST = 300.0, 150.0, 8.0  # a ladder's plot; the axis ends at so many margins
STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif } text { fill: #222 } .muted { fill: #666 }
.grid { stroke: #ddd } .limit { stroke: #b00020; stroke-dasharray: 4 3 } .trace { fill: none; stroke: #667 }
.block { fill: #b00020 } .refuse { fill: #b00020 } .pass { fill: #1a7f37 } .inconclusive { fill: #9a6700 }
.error { fill: #000 }
"""
HEAD = """# The regression zoo

Made by `python -m benchmarks.zoo.page` from [its results](../benchmarks/zoo/results); a test holds the two against
each other. `make zoo` runs what has changed, `make zoo-timing` what is timed. Each specimen is derived from the shipped
135M model, pinned, and gated by the command line under the checks of `gates/default.yaml` that do not measure time;
what is timed, under others. *must* was written down before the first run: block, refuse (a broken candidate that is not
even compared), pass, not-block (pass or inconclusive), or open: a dose at which the answer is not staked on. A verdict
counts only with the right cause: one of the checks named for the defect. Every third specimen (†) is held out: it is
not looked at when a margin is set. Harm is the worst check's estimate in margins.

Two defects passed at first, max-tokens-halved and stop-lost, because the sets of that time had short replies only. The
set open-ended and its two checks were made for them: of these checks stop-lost, held out, is no test any more.

"""
TIMED_HOW = """
Gated by the checks on time and memory of `gates/serving.yaml`, with its margins: on the embedded engine, which arm by
arm answers one request after the other, {pairs} pairs of requests and, until it is settled, up to {most}, without the
checks on tails; the tail by those of `gates/serving-p99.yaml`, in blocks of {tail}; what happens under load on vLLM,
under the load that `gates/serving.yaml` has. Engines that are slower or leak do so in their own process: no pin shows
it. At first a block was five requests, ten seconds, in which this machine alone moved two equal arms a fifth apart: the
standard error of twenty pairs was 3 to 5%, too much to tell 20% from a margin of 15%.

A leak is caught by `memory`, the most that was resident during a request: {memory:.0%} more in the typical pair. What
has not leaked that much in the middle of the pairs that settled it is inside the margin, whatever it would come to in a
day: a smaller leak takes more requests, and `pairs` says how many there are at least. `gates/default.yaml` only informs
of time and memory.
"""


def results() -> list[Result]:
    """What was measured, in the catalogue's order."""
    found = {p.stem: json.loads(p.read_text()) for p in RESULTS.glob("*.json")}
    return [found[s.name] for s in SPECIMENS if s.name in found]


def stale(found: Sequence[Result]) -> set[str]:
    """Those whose recipe, baseline, policy or sets have changed since."""
    specimens = {s.name: s for s in SPECIMENS}
    gates = {"": rules()} | {how: timing_rules(how) for how in TIMED}
    return {
        name
        for name, digest in ((r["specimen"], r["inputs"]) for r in found)
        if digest != inputs(specimens[name], gates[specimens[name].timed])
    }


def harm(result: Result) -> tuple[float, str] | None:
    """The worst check's loss in its margins, and that check; None where nothing was compared."""
    found = [
        (-row["comparison"]["effect"] / row["margin"], name)
        for name, row in result.get("checks", {}).items()
        if row["comparison"]["kind"] == "estimate" and row["margin"] > 0
    ]
    return max(found, default=None)


def page(found: Sequence[Result]) -> str:
    """The whole page."""
    text = HEAD + "\n".join(summary(found)) + "\n\n![Dose and response](images/zoo.svg)\n"
    for family, title in FAMILIES.items():
        mine = [r for r in found if r["family"] == family]
        if mine:
            text += f"\n## {title}\n{timed_how() if family == 'timing' else ''}"
            text += "\n| specimen | what | must | verdict | caught by | harm | items | seconds |\n"
            text += "|---|---|---|---|---|---|---|---|\n" + "".join(map(row, mine))
    text += "\n## What was not settled\n\n" + "".join(unsettled(found))
    return text + "".join(beside_peers(found)) + "".join(against_itself())


def beside_peers(found: Sequence[Result]) -> Iterator[str]:
    """What other gates say of the very items on which this one decided, where they were asked."""
    if not PEERS.exists():
        return
    asked = json.loads(PEERS.read_text())
    mine = {r["specimen"]: r for r in found if r["specimen"] in asked["specimens"] and r["must"] != "refuse"}
    says = {
        name: {"checkweigh": r["verdict"]} | asked["specimens"][name]["verdicts"] for name, r in mine.items()
    }
    rows = table((name, "any" if r["must"] == "open" else r["must"], says[name]) for name, r in mine.items())
    yield PEERS_HEAD.format(count=len(mine))
    for row in rows:
        yield (
            f"| {row['peer']} {asked['versions'].get(row['peer'], '')} | {row['detected']} of {row['must_block']} "
            f"| {len(row['unsettled_defects'])} | {row['passed']} of {row['must_pass']} "
            f"| {len(row['falsely_blocked'])} | {len(row['unsettled_harmless'])} |\n"
        )


def against_itself() -> Iterator[str]:
    """How often equal arms were passed or blocked, where it was tried."""
    if not ITSELF.exists():
        return
    found = json.loads(ITSELF.read_text())
    yield ITSELF_HEAD.format(minutes=found["seconds"] / 60, runs=len(found["executions"]))
    for name, title in (("greedy", "temperature 0"), ("temperature_0.7", "temperature .7, two seeds")):
        trial = found[name]
        verdicts = (f"{trial['verdicts'].get(word, 0):.1%}" for word in ("pass", "inconclusive", "block"))
        shares = ", ".join(f"{one} {share:.0%}" for one, share in trial["differing_share"].items())
        yield f"| {title} | {trial['pairs']} | {' | '.join(verdicts)} | {shares} |\n"


ITSELF_HEAD = """
## The baseline against itself

`make zoo-aa` ({minutes:.0f} minutes): {runs} executions of larger sets with other batch plans and threads, each in an
engine of its own, and two at temperature .7; slices as large as the shipped sets, drawn across executions, through the
code that decides. There is no more of open-ended, which is whole in every slice.

| replies | pairs of slices | pass | inconclusive | block | outputs that differ |
|---|---|---|---|---|---|
"""
PEERS_HEAD = """
## Beside other gates

The same {count} candidates, the same items on both arms, in one run of `python -m benchmarks.zoo.peers`: each gate as
its documentation says, with its defaults, on each metric that it can do; it blocks a candidate when it blocks on any.
The rules are in `benchmarks/zoo/peers.py`. The items are those on which Checkweigh decided: half of each set where it
blocked at its first look. Specimens that are refused before anything is measured are left out.

| gate | defects blocked | defects unsettled | harmless passed | harmless blocked | harmless unsettled |
|---|---|---|---|---|---|
"""


def timed_how() -> str:
    """What the timing family is gated by."""
    single, tail = timing_rules("single"), timing_rules("tail")
    timing = single["timing"]
    margins = {check["id"]: check["margin"] for check in single["checks"]}
    return TIMED_HOW.format(
        pairs=timing["pairs"], most=timing["grow_to"], tail=tail["timing"]["requests"], memory=margins["memory"],
    )  # fmt: skip


def summary(found: Sequence[Result]) -> Iterator[str]:
    """Counts of quality, overall and of the held-out third, and of what is timed."""
    timed = [r for r in found if r["family"] == "timing"]
    rest = [r for r in found if r["family"] != "timing"]
    yield from counts(rest)
    missing = [s.name for s in QUALITY_SPECIMENS if s.name not in {r["specimen"] for r in rest}]
    if rest:
        yield minutes(rest)
    if missing:
        yield f"- Not measured yet: {', '.join(missing)}."
    if timed:
        yield from timed_counts(timed)
        yield minutes(timed)
    if missing := [s.name for s in TIMING if s.name not in {r["specimen"] for r in timed}]:
        yield f"- Not timed yet: {', '.join(missing)}."
    if old := stale(found):
        yield f"- Measured before their inputs changed, to be run again: {', '.join(sorted(old))}."


def minutes(found: Sequence[Result]) -> str:
    """How long it took, and where."""
    whole = sum(r["seconds"] for r in found) / 60
    where = found[0]["provenance"]["hardware"]
    return f"- {whole:.0f} minutes in all, each specimen's own although two may run at once, on {where}."


def timed_counts(timed: Sequence[Result]) -> Iterator[str]:
    """Counts of what is timed."""
    slow = [r for r in timed if r["must"] == "block"]
    sound = [r for r in timed if r["must"] in ("pass", "not-block")]
    yield (
        f"- **timed**: {sum(bool(r['met']) for r in slow)} of {len(slow)} defects blocked for the right cause; of "
        f"{len(sound)} that must not be blocked {sum(r['verdict'] == 'pass' for r in sound)} passed, "
        f"{sum(r['verdict'] == 'block' for r in sound)} blocked."
    )


def counts(found: Sequence[Result]) -> Iterator[str]:
    """Counts of quality."""
    for title, part in (("all", found), ("held out", [r for r in found if r["held_out"]])):
        defects = [r for r in part if r["must"] in ("block", "refuse")]
        harmless = [r for r in part if r["must"] == "pass"]
        yield (
            f"- **{title}**: {sum(bool(r['met']) for r in defects)} of {len(defects)} defects stopped for the right "
            f"cause; {sum(r['verdict'] == 'pass' for r in harmless)} of {len(harmless)} harmless changes passed, "
            f"{sum(r['verdict'] in ('block', 'refuse') for r in harmless)} blocked."
        )


def row(result: Result) -> str:
    """One line of the table."""
    worst = harm(result)
    mark = {True: "", False: " **✗**", None: ""}[result["met"]]
    stopped = {"block": "unservable", "refuse": "refused"}.get(result["verdict"], "–")
    caught = ", ".join(result.get("caught", ())) or stopped
    cells = [
        f"{result['specimen']}{' †' if result['held_out'] else ''}", result["what"], result["must"],
        f"{result['verdict']}{mark}", caught, "–" if worst is None else f"{worst[0]:.1f} ({worst[1]})",
        str(result.get("items", "–")), f"{result['seconds']:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def unsettled(found: Sequence[Result]) -> Iterator[str]:
    """Every inconclusive result with what would settle it, and every specimen that is not as it must."""
    chosen = [r for r in found if r["verdict"] == "inconclusive" or r["met"] is False]
    if not chosen:
        yield "Nothing.\n"
    for result in chosen:
        more = {
            name: c["items_to_settle"] for name, c in result.get("checks", {}).items() if c["items_to_settle"]
        }
        needed = "; ".join(f"{name} with {count:,} items" for name, count in more.items())
        why = result.get("reasons") or str(result.get("message", "")).splitlines()[-1:]
        told = [*why, f"would be settled: {needed}"] if needed else why
        yield f"- **{result['specimen']}**\n" + "".join(f"  - {reason}\n" for reason in told)


def plot(found: Sequence[Result]) -> str:
    """Dose and response of every ladder: the harm in margins, coloured by the verdict."""
    ladders: dict[str, list[Result]] = defaultdict(list)
    for result in found:
        if result["size"] is not None and harm(result):
            ladders[result["kind"]].append(result)
    drawn = {kind: sorted(rows, key=lambda r: r["size"]) for kind, rows in ladders.items() if len(rows) > 1}
    parts = [el("style", STYLE)]
    for number, (kind, rows) in enumerate(drawn.items()):
        parts += ladder(kind, rows, CELL * (number % 3), HEIGHT * (number // 3))
    rows = -(-len(drawn) // 3)
    return (
        str(picture("zoo", "Dose and response of the zoo's ladders", 3 * CELL, HEIGHT * max(rows, 1), parts))
        + "\n"
    )


def ladder(kind: str, rows: Sequence[Result], left: float, top: float) -> Iterator[Any]:
    """One kind's doses from the left to the right."""
    x = Axis(0, len(rows) - 1, left + 55, left + CELL - 45)
    y = Axis(0, MOST, top + HEIGHT - 32, top + 28)
    yield label(left + 8, top + 16, kind)
    for tick in (0, 2, 4, 6, 8):
        yield line(x(0) - 12, y(tick), x.p1 + 12, y(tick), "grid")
        yield label(left + 34, y(tick) + 4, str(tick), "muted", "end")
    yield line(x(0) - 12, y(1), x.p1 + 12, y(1), "limit")
    harms = [worst[0] for r in rows if (worst := harm(r))]
    yield path([(x(i), y(value)) for i, value in enumerate(harms)], "trace")
    for i, (result, value) in enumerate(zip(rows, harms, strict=True)):
        yield dot(
            x(i),
            y(value),
            5,
            result["verdict"],
            f"{result['specimen']}: {value:.1f} margins, {result['verdict']}",
        )
        yield label(x(i), top + HEIGHT - 12, result["dose"], "muted", "middle", limit=14)


if __name__ == "__main__":
    measured = results()
    write_atomic(PAGE, page(measured).encode())
    write_atomic(PLOT, plot(measured).encode())
