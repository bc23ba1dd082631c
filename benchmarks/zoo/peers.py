"""What other gates say of the items on which Checkweigh's gate decided, side by side.

    python -m benchmarks.zoo.peers ITEMS.json ... --peers PYTHON [--out peers.json]

PYTHON is the interpreter of the environment described in ``benchmarks/decision.py``. Every peer is used as its
documentation says, with its own defaults, one metric at a time, without a correction over metrics: none makes one. It
blocks a candidate when it blocks on any metric that it can do. None knows clusters. An item that failed on either arm
has no value and is left out, as these tools leave it out. The rule from a peer's own words to a verdict:

- lm-eval: the z-test of ``scripts/model_comparator.py``, (a - b) / sqrt(se_a^2 + se_b^2) on unpaired means with the
  harness's standard errors. Blocks where p < .05, two-sided, and the candidate is worse.
- tolerance-5%, tolerance-2%: as in CI templates. Blocks where the reported number is worse than the baseline's by more
  than so much of it; for texts that number is the perplexity, for 0/1 metrics where lower is better the pass rate.
- mlflow: ``compare_evaluations``'s statistics. It asserts only improvement; blocks where the same rule finds the
  opposite: p < .05 and the mean difference to the worse. Too few pairs are inconclusive.
- statgate: SHIP, BLOCK or INCONCLUSIVE at its margin of .02: two points, .02 nats (2% of perplexity); lengths are
  divided by the baseline's mean, so that it is 2% of the length.
- nemo-evaluator, nel-compare: ``compare_results`` with the library's least effect (.005) and the command line's (.05).
  BLOCK and PASS as they are; WARN and INCONCLUSIVE, exit code 2 of the command line, are inconclusive.
- llm-evalgate: ``RegressionGate`` at its threshold of .02. FAIL blocks; PASS passes, also with a warning: it exits 0.

The last three know only scores between 0 and 1, higher being better; where lower is better they get one minus it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from benchmarks.decision_peers import QUIET
from scipy.stats import norm

from checkweigh.measure import host_facts

ROOT = Path(__file__).resolve().parents[2]
ALPHA = 0.05
TOLERANCES = {"tolerance-5%": 0.05, "tolerance-2%": 0.02}
ELSEWHERE = ("mlflow", "statgate", "nemo-evaluator", "nel-compare", "llm-evalgate")
PEERS = ("lm-eval", *TOLERANCES, *ELSEWHERE)
OURS = {"lm-eval": "0.4.13, by its script's formula", **dict.fromkeys(TOLERANCES, "a rule, no package")}
TOO_FEW = "fewer than two items were measured on both arms"
NOWHERE = "no environment of the peers was given"
NEMO: Mapping[str, Verdict] = {
    "PASS": "pass", "BLOCK": "block", "WARN": "inconclusive", "INCONCLUSIVE": "inconclusive"
}  # fmt: skip
WORDS: Mapping[str, Mapping[str, Verdict]] = {
    "statgate": {"SHIP": "pass", "BLOCK": "block", "INCONCLUSIVE": "inconclusive"},
    "nemo-evaluator": NEMO,
    "nel-compare": NEMO,
    "llm-evalgate": {"PASS": "pass", "FAIL": "block"},
}
# Of a metric, by its unit or by the name of Checkweigh's metric; everything else is a score
KINDS = {"nats/token": "nats", "log_perplexity": "nats", "tokens": "tokens", "log_length": "tokens"}
KEYS = {"id", "metric", "set", "direction", "unit", "items", "clusters", "baseline", "candidate"}

Verdict = Literal["block", "pass", "inconclusive", "cannot"]
Must = Literal["block", "pass", "any"]
Kind = Literal["score", "nats", "tokens"]
Says = dict[str, Any]


class BadItems(ValueError):
    """A file of items that is not one: where, and what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of one specimen. ``baseline`` and ``candidate``: a value for each item measured on both arms."""

    id: str
    kind: Kind
    lower: bool  # is better
    baseline: np.ndarray
    candidate: np.ndarray
    failed: int  # items left out

    @property
    def reported(self) -> tuple[float, float]:
        """Baseline's and candidate's number as a tool reports it: perplexity, tokens, or a rate of passes."""
        before, after = float(self.baseline.mean()), float(self.candidate.mean())
        if self.kind == "nats":
            return math.exp(before), math.exp(after)
        return (1 - before, 1 - after) if self.lower and self.kind == "score" else (before, after)

    @property
    def worse_higher(self) -> bool:
        """Whether a higher reported number is worse."""
        return self.lower and self.kind != "score"

    @property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """The values for tools to which higher is better."""
        if not self.lower:
            return self.baseline, self.candidate
        if self.kind == "score":
            return 1 - self.baseline, 1 - self.candidate
        unit = (float(self.baseline.mean()) or 1.0) if self.kind == "tokens" else 1.0
        return -self.baseline / unit, -self.candidate / unit


@dataclass(frozen=True, kw_only=True)
class Items:
    """What both arms of one specimen measured."""

    specimen: str
    metrics: tuple[Metric, ...]


# Reading


def read_items(path: Path) -> Items:
    """A file of items. BadItems with the place and what is wrong there."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadItems(f"{path}: {error}") from error
    try:
        if not isinstance(document, dict) or set(document) != {"specimen", "metrics"}:
            raise BadItems("an object with specimen and metrics was expected")
        if not isinstance(document["specimen"], str) or not document["specimen"]:
            raise BadItems("specimen: a name was expected")
        if not isinstance(document["metrics"], list) or not document["metrics"]:
            raise BadItems("metrics: at least one was expected")
        metrics = tuple(_metric(f"metrics[{i}]", raw) for i, raw in enumerate(document["metrics"]))
        if len({metric.id for metric in metrics}) < len(metrics):
            raise BadItems("metrics: an id is there twice")
    except BadItems as error:
        raise BadItems(f"{path}: {error}") from None
    return Items(specimen=document["specimen"], metrics=metrics)


def _metric(where: str, raw: Any) -> Metric:
    if not isinstance(raw, dict):
        raise BadItems(f"{where}: an object was expected")
    if unknown := sorted(set(raw) - KEYS):
        raise BadItems(f"{where}.{unknown[0]}: no such key")
    if missing := sorted({"id", "direction", "items", "baseline", "candidate"} - set(raw)):
        raise BadItems(f"{where}.{missing[0]}: missing")
    if raw["direction"] not in ("lower", "higher"):
        raise BadItems(f"{where}.direction: lower or higher was expected, not {raw['direction']!r}")
    if not isinstance(raw["items"], list) or not raw["items"]:
        raise BadItems(f"{where}.items: at least one was expected")
    arms = [_values(f"{where}.{arm}", raw[arm], len(raw["items"])) for arm in ("baseline", "candidate")]
    kind = KINDS.get(raw.get("unit", "")) or KINDS.get(raw.get("metric", "")) or "score"
    both = ~np.isnan(arms[0]) & ~np.isnan(arms[1])
    measured = np.stack([arm[both] for arm in arms])
    if kind == "score" and measured.size and not (measured.min() >= 0 and measured.max() <= 1):
        raise BadItems(f"{where}: values beyond 0 and 1, and neither unit nor metric says of what")
    if kind != "score" and raw["direction"] != "lower":
        raise BadItems(f"{where}.direction: lower was expected of {kind}")
    return Metric(
        id=raw["id"], kind=kind, lower=raw["direction"] == "lower",  # type: ignore[arg-type]
        baseline=measured[0], candidate=measured[1], failed=int((~both).sum()),
    )  # fmt: skip


def _values(where: str, raw: Any, count: int) -> np.ndarray:
    """Numbers, NaN where an item failed (null)."""
    if not isinstance(raw, list) or len(raw) != count:
        raise BadItems(f"{where}: {count} values were expected, one an item")
    for i, value in enumerate(raw):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise BadItems(f"{where}[{i}]: a finite number or null was expected, not {value!r}")
    return np.array([math.nan if value is None else value for value in raw], dtype=float)


# Asking


def z_test(metric: Metric) -> Says:
    """lm-eval's comparison of two models: unpaired means, their standard errors, two-sided p."""
    before, after = metric.baseline, metric.candidate
    error = math.hypot(*(float(arm.std(ddof=1)) / math.sqrt(len(arm)) for arm in (before, after)))
    difference = float(after.mean() - before.mean())
    z = difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
    p = float(2 * norm.sf(abs(z)))
    return {
        "verdict": "✓" if p > ALPHA else "×", "p": p, "difference": difference,
        "worse": difference > 0 if metric.lower else difference < 0,
    }  # fmt: skip


def tolerance(metric: Metric, share: float) -> Says:
    """The reported numbers, and how far the candidate's may go."""
    before, after = metric.reported
    limit = before * (1 + share if metric.worse_higher else 1 - share)
    beyond = after > limit if metric.worse_higher else after < limit
    return {"baseline": before, "candidate": after, "limit": limit, "beyond": beyond}


def judged(peer: str, says: Says) -> Verdict:
    """A peer's own words as a verdict, by the rule in the module's docstring. ValueError for words that are new."""
    if "cannot" in says:
        return "cannot"
    if peer in TOLERANCES:
        return "block" if says["beyond"] else "pass"
    if peer == "lm-eval":
        return "block" if says["worse"] and says["p"] < ALPHA else "pass"
    if peer == "mlflow":
        if says["status"] != "ok":
            return "inconclusive"
        return "block" if says["difference"] < 0 and says["p"] < ALPHA else "pass"
    try:
        return WORDS[peer][says["verdict"]]
    except KeyError:
        raise ValueError(f"{peer} says {says.get('verdict')!r}, which no rule covers") from None


def whole(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict for a candidate: the worst of its metrics; a metric that cannot be done takes no part."""
    found = set(verdicts)
    return next((v for v in ("block", "inconclusive", "pass") if v in found), "cannot")  # type: ignore[return-value]


def ask(specimens: Sequence[Items], python: Path | None) -> dict[str, Any]:
    """Every peer on every metric of every specimen. Without ``python`` those of the other environment cannot.

    ``{"versions": {peer: ...}, "specimens": {specimen: {"verdicts": {peer: ...}, "metrics": {metric:
    {"items", "failed", "peers": {peer: {"is": verdict, ...its own words}}}}}}}``.
    """
    if len({one.specimen for one in specimens}) < len(specimens):
        raise BadItems("a specimen is there twice")
    elsewhere: dict[str, Any] = _elsewhere(specimens, python) if python else {"versions": {}, "says": {}}
    found = {}
    for one in specimens:
        theirs = elsewhere["says"].get(one.specimen, {})
        metrics = {
            metric.id: {
                "items": len(metric.baseline), "failed": metric.failed,
                "peers": _answers(metric, theirs.get(metric.id, {})),
            }
            for metric in one.metrics
        }  # fmt: skip
        verdicts = {peer: whole(m["peers"][peer]["is"] for m in metrics.values()) for peer in PEERS}
        found[one.specimen] = {"verdicts": verdicts, "metrics": metrics}
    return {"versions": {**OURS, **elsewhere["versions"]}, "specimens": found}


def _answers(metric: Metric, theirs: Mapping[str, Says]) -> dict[str, Says]:
    """All peers on one metric; ``theirs``: what those of the other environment said."""
    if len(metric.baseline) < 2:
        says: dict[str, Says] = {peer: {"cannot": TOO_FEW} for peer in PEERS}
    else:
        says = {peer: theirs.get(peer, {"cannot": NOWHERE}) for peer in ELSEWHERE}
        says["lm-eval"] = z_test(metric)
        says |= {name: tolerance(metric, share) for name, share in TOLERANCES.items()}
    return {peer: {"is": judged(peer, says[peer]), **says[peer]} for peer in PEERS}


def _elsewhere(specimens: Sequence[Items], python: Path) -> dict[str, Any]:
    """The peers with an environment of their own, all metrics in one process. CalledProcessError if it failed."""
    values = {
        one.specimen: {
            metric.id: {
                "kind": metric.kind,
                **dict(zip(("baseline", "candidate"), (v.tolist() for v in metric.scores), strict=True)),
            }
            for metric in one.metrics
            if len(metric.baseline) > 1
        }
        for one in specimens
    }
    done = subprocess.run(
        [str(python), "-m", "benchmarks.zoo.peers_run"], input=json.dumps(values), stdout=subprocess.PIPE,
        text=True, check=True, cwd=ROOT, env={"PATH": os.environ["PATH"], **QUIET},
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


# Telling


def table(rows: Iterable[tuple[str, Must, Mapping[str, Verdict]]]) -> list[dict[str, Any]]:
    """A row for each peer over candidates whose truth is known: (specimen, what it must be, verdicts by peer).

    Names are kept where a peer was wrong or did not say; ``any`` counts nowhere. A defect is detected by a block only,
    and an inconclusive or impossible answer is never right. Of what the peers said, so any gate's verdicts fit in.
    """
    known = list(rows)
    if bad := [must for _, must, _ in known if must not in get_args(Must)]:
        raise ValueError(f"{bad[0]!r} is none of {', '.join(get_args(Must))}")
    found = []
    for peer in dict.fromkeys(name for _, _, verdicts in known for name in verdicts):

        def those(must: Must, said: Verdict, peer: str = peer) -> list[str]:
            return [n for n, m, verdicts in known if m == must and verdicts.get(peer, "cannot") == said]

        found.append(
            {
                "peer": peer,
                "must_block": sum(m == "block" for _, m, _ in known), "detected": len(those("block", "block")),
                "missed": those("block", "pass"), "unsettled_defects": those("block", "inconclusive"),
                "cannot_defects": those("block", "cannot"),
                "must_pass": sum(m == "pass" for _, m, _ in known), "passed": len(those("pass", "pass")),
                "falsely_blocked": those("pass", "block"), "unsettled_harmless": those("pass", "inconclusive"),
                "cannot_harmless": those("pass", "cannot"),
            }
        )  # fmt: skip
    return found


def main() -> int:
    """Read, ask, write; a line for each specimen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", nargs="+", type=Path, metavar="ITEMS.json")
    parser.add_argument("--peers", type=Path, required=True, help="python of an environment with the peers")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    started = time.monotonic()
    try:
        found = ask([read_items(path) for path in options.items], options.peers)
    except BadItems as error:
        print(error, file=sys.stderr)
        return 2
    document = {
        "date": host_facts.now(), "hardware": host_facts.hardware(), "load_average": os.getloadavg(),
        "seconds": round(time.monotonic() - started, 1), **found,
    }  # fmt: skip
    options.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for specimen, said in found["specimens"].items():
        print(specimen, *(f"{peer}: {verdict}" for peer, verdict in said["verdicts"].items()), sep="  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
