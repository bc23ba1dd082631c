"""A/A: the baseline against itself, slice after slice, through the code that decides.

    python -m benchmarks.zoo.aa [--pairs 200] [--work runs/zoo/aa] [--out benchmarks/zoo/aa.json]

1. Pools: choices and answers from three seeds of their generators, so that a row of a table comes in up to three
   variants; prose with prose-more (no more prose is at hand, so that its slices share more documents); open-ended as it
   is, whole in every slice, for there is no more of it.
2. Four executions of the pools, each with an engine of its own: three batch plans with other neighbours and padding, on
   one thread and on two. Two executions of answers and open-ended at temperature .7, with two seeds.
3. Each pair: a slice as large as the shipped sets (a variant of each row, half of the works of prose), on two
   executions drawn for it, at every look of the policy. The share of values that differ is told beside.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks.zoo.gating import ROOT, changed, rules
from benchmarks.zoo.specimens import BASELINE

from checkweigh.decision.compare import compare
from checkweigh.decision.looks import looks_for_sets
from checkweigh.decision.pairing import pair
from checkweigh.decision.slices import restrict_items, slice_items
from checkweigh.decision.verdict import all_checks, decide, hypothesis_count
from checkweigh.files import write_atomic
from checkweigh.measure import host_facts
from checkweigh.records.decision import Verdict
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementSet
from checkweigh.records.policy import Policy
from checkweigh.sources.cache import cache_root
from checkweigh.sources.digests import file_digest
from checkweigh.sources.documents import read_policy
from checkweigh.sources.evalsets.load_evalset import load_evalset
from checkweigh.sources.pin import Resolved, pin, verify
from checkweigh.store import Store
from checkweigh.usecases.gate.arms.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.arms.engine_session import EngineSession

SETS = ("prose", "choices", "answers", "open-ended")
REPLIES = SETS[2:]
VARIANTS = 3
EXECUTIONS = ((0, 2), (1, 2), (0, 1), (2, 1))  # seed of the batch plan, threads
DRAWN = (0, 1)  # seeds of replies at temperature .7
LEAST = 120  # documents of a slice of prose: the works differ in how many they have
Records = dict[str, MeasurementSet]


def pools(work: Path) -> list[EvalSet]:
    """The larger sets, written as sets are and loaded as sets are."""
    varied = {"prose": _prose(work)} | {name: _generated(name, work) for name in ("choices", "answers")}
    return [varied.get(name) or load_evalset(ROOT / "evalsets" / name) for name in SETS]


def _generated(name: str, work: Path) -> EvalSet:
    """Three variants of each row; those of the second and third seed have a prefix."""
    spec = importlib.util.spec_from_file_location(f"zoo_{name}", ROOT / "evalsets" / name / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    rows, seen, seed = [], set(), module.SEED
    for variant in range(VARIANTS):
        module.SEED = seed + variant
        for row in module.build():
            asked = json.dumps({key: value for key, value in row.items() if key not in ("id", "cluster")})
            if asked not in seen:  # a row that draws nothing is the same in every variant
                rows.append(
                    row | {"id": f"v{variant}.{row['id']}", "cluster": f"v{variant}.{row['cluster']}"}
                )
            seen.add(asked)
    return _written(name, work, [json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows])


def _prose(work: Path) -> EvalSet:
    files = [ROOT / "evalsets" / name / "items.jsonl" for name in ("prose", "prose-more")]
    return _written("prose", work, [line for file in files for line in file.read_text().splitlines()])


def _written(name: str, work: Path, lines: Sequence[str]) -> EvalSet:
    folder = work / "evalsets" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "items.jsonl").write_text("".join(f"{line}\n" for line in lines))
    rows = [json.loads(line) for line in lines]
    card = yaml.safe_load((ROOT / "evalsets" / name / "card.yaml").read_text())
    card.pop("baseline", None)
    card |= {
        "digest": file_digest(folder / "items.jsonl"), "items": len(rows),
        "clusters": len({row["cluster"] for row in rows}), "strata": dict(Counter(str(row["stratum"]) for row in rows)),
    }  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return load_evalset(folder)


def execute(resolved: Resolved, sets: Sequence[EvalSet], batches: int, threads: int, role: str) -> Records:
    """One execution, in an engine of its own, through the store."""
    engine = resolved.manifest.engine.model_copy(update={"threads": threads})
    served = replace(resolved, manifest=resolved.manifest.model_copy(update={"engine": engine}))
    session = EngineSession(role=role, resolved=served, logs=Path("runs/zoo/aa/logs"), progress=_progress)
    arm = ArmMeasurement(
        session=session,
        store=Store(cache_root() / "store"),
        deadline=time.monotonic() + 7200,
        batches=batches,
    )
    records: Records = {}
    try:
        arm.measure_all(sets, records)
        session.settle()
    finally:
        session.close()
    return records


def _progress(label: str, done: int, total: int) -> None:
    if done == total:
        print(f"{label}: {total}", flush=True)


def sliced(sets: Sequence[EvalSet], rng: np.random.Generator) -> list[EvalSet]:
    """As many items as are shipped: a variant of each row, and whole works of prose."""
    found = []
    for evalset in sets:
        groups: dict[str, list[str]] = defaultdict(list)
        for cluster in sorted({item.cluster for item in evalset.items}):
            alone = evalset.card.name in ("prose", "open-ended")
            groups[cluster if alone else cluster.partition(".")[2]].append(cluster)
        if evalset.card.name == "prose":
            chosen = set(rng.permutation(sorted(groups))[: len(groups) * 207 // len(evalset.items)].tolist())
        else:
            chosen = {variants[rng.integers(len(variants))] for variants in groups.values()}
        found.append(restrict_items(evalset, [item for item in evalset.items if item.cluster in chosen]))
    return found


def judged(policy: Policy, sets: Sequence[EvalSet], first: Records, second: Records) -> tuple[Verdict, int]:
    """The verdict at the look where a gate would have stopped, and that look."""
    checks = all_checks(policy)
    looks = looks_for_sets(policy, checks, sets, hypothesis_count(policy))
    ordered = [slice_items(evalset, policy.looks, policy.seed) for evalset in sets]
    for look in looks:
        seen = [
            restrict_items(evalset, [item for items in parts[: look.number] for item in items])
            for evalset, parts in zip(sets, ordered, strict=True)
        ]
        comparisons = {
            check.id: compare(
                check,
                pair(
                    check.metric,
                    [s for s in seen if s.card.name in check.evalset],
                    first,
                    second,
                    where=check.where,
                ),
                alpha=look.levels[check.id],
            )
            for check in checks
        }
        verdict = decide(policy, comparisons, (), look).verdict
        if verdict is not Verdict.INCONCLUSIVE or look.last:
            return verdict, look.number
    raise AssertionError("the last look stops")


def differing(sets: Sequence[EvalSet], first: Records, second: Records) -> dict[str, float]:
    """Set -> share of items whose raw outputs are not equal."""
    found = {}
    for one in sets:
        arms = [{o.item: o.raw for o in records[one.card.name].observations} for records in (first, second)]
        found[one.card.name] = float(np.mean([arms[0][item.id] != arms[1][item.id] for item in one.items]))
    return found


def trial(
    policy: Policy, sets: Sequence[EvalSet], executions: Sequence[Records], pairs: int, seed: int
) -> dict[str, Any]:
    """Verdicts of many pairs of slices, and how unlike the executions were."""
    rng = np.random.default_rng(seed)
    verdicts: Counter[str] = Counter()
    looks: Counter[int] = Counter()
    shares: dict[str, list[float]] = defaultdict(list)
    for _ in range(pairs):
        chosen = sliced(sets, rng)
        one, two = rng.choice(len(executions), 2, replace=False)
        verdict, look = judged(policy, chosen, _cut(chosen, executions[one]), _cut(chosen, executions[two]))
        verdicts[verdict] += 1
        looks[look] += 1
        for name, share in differing(chosen, executions[one], executions[two]).items():
            shares[name].append(share)
    return {
        "pairs": pairs, "verdicts": {name: count / pairs for name, count in sorted(verdicts.items())},
        "stopped_at_look": dict(looks), "differing_share": {name: float(np.mean(v)) for name, v in shares.items()},
    }  # fmt: skip


def _cut(sets: Sequence[EvalSet], records: Records) -> Records:
    """The records of the slice's items, as if nothing else had been measured."""
    found = {}
    for one in sets:
        ids = {item.id for item in one.items}
        record = records[one.card.name]
        kept = tuple(o for o in record.observations if o.item in ids)
        found[one.card.name] = record.model_copy(update={"observations": kept, "planned": len(kept)})
    return found


def policies(work: Path) -> tuple[Policy, Policy]:
    """The zoo's policy with room for slices of prose, and the part of it that asks about replies."""
    document = rules()
    for check in document["checks"]:
        if check["metric"] == "log_perplexity":
            check["min_items"] = LEAST
    found = []
    for name, checks in (
        ("aa", document["checks"]),
        ("aa-drawn", [c for c in document["checks"] if set(c["evalset"]) <= set(REPLIES)]),
    ):
        path = work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document | {"name": name, "checks": checks}, sort_keys=False))
        found.append(read_policy(path))
    return found[0], found[1]


def drawn(work: Path, seed: int) -> Resolved:
    """The baseline at temperature .7."""
    document = yaml.safe_load((ROOT / "manifests" / f"{BASELINE}.yaml").read_text())
    document = changed(document, {"sampling": {"temperature": 0.7, "seed": seed}}) | {
        "name": f"aa-drawn-{seed}"
    }
    path = work / f"drawn-{seed}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    pin(path)
    return verify(path)


def main() -> int:
    """Exit code 0 when at most 2% were blocked, at least 80% passed, and the executions were not all equal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "zoo" / "aa")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    greedy, of_replies = policies(options.work)
    sets = pools(options.work)
    replies = [one for one in sets if one.card.name in REPLIES]
    baseline = verify(ROOT / "manifests" / f"{BASELINE}.yaml")
    executions = [execute(baseline, sets, *how, f"execution {n}") for n, how in enumerate(EXECUTIONS, 1)]
    replayed = [
        execute(drawn(options.work, seed), replies, 0, 2, f"drawn with seed {seed}") for seed in DRAWN
    ]
    found = {
        "what": "the baseline against itself, by slices", "pools": {one.card.name: len(one.items) for one in sets},
        "executions": [{"batches": b, "threads": t} for b, t in EXECUTIONS], "seconds": time.monotonic() - started,
        "greedy": trial(greedy, sets, executions, options.pairs, 1),
        "temperature_0.7": trial(of_replies, replies, replayed, options.pairs, 2),
        "provenance": host_facts.provenance_of_tree(host_facts.now()).model_dump(mode="json"),
    }  # fmt: skip
    write_atomic(options.out, (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps({name: found[name] for name in ("greedy", "temperature_0.7")}, indent=1))
    verdicts, shares = found["greedy"]["verdicts"], found["greedy"]["differing_share"]
    sound = verdicts.get("block", 0) <= 0.02 and verdicts.get("pass", 0) >= 0.8 and max(shares.values()) > 0
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
