"""One specimen through the whole product: its files made, pinned, gated by the command line, and what came of it.

Each specimen has a home of its own, in which nothing of another candidate lies: the baseline's measurements are linked
into it, and taken out of it once they were made.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks.zoo.specimens import Specimen

from checkweigh import canonical
from checkweigh.decision.pairing import pair
from checkweigh.decision.verdict import JUDGING
from checkweigh.measure import host_facts
from checkweigh.measure.paired_blocks import ARMS
from checkweigh.records.decision import Decision
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import PROTOCOL, MeasurementSet
from checkweigh.records.metrics import METRICS
from checkweigh.sources.cache import cache_root
from checkweigh.sources.documents import read_policy
from checkweigh.sources.evalsets.load_evalset import evalset_roots, find_evalset, load_evalset
from checkweigh.sources.pin import read_pinned, verify
from checkweigh.store import Store
from checkweigh.usecases.read_decision import read_decision, read_measurements

ROOT = Path(__file__).resolve().parents[2]
# Of the user's cache: what is fetched, converted and installed.
SHARED = ("packages", "derived", "datasets", "digests", "engines")
EXITS = {0: "pass", 1: "block", 2: "refuse", 3: "inconclusive"}
BURNER = "while True: sum(i * i for i in range(10**6))"
LINES = 12  # of a refusal that are kept
TAILS = ("p90", "p99")  # which one request has not
PROMPTS = "bad-endings"  # the check whose set's prompts are sent while timing
# How -> the shipped policy whose timing checks gate, and what of its timing plan is another here. Without a load
# requests go one after the other, as the embedded engine can: the arms in turn at every request, for what a machine
# does for ten seconds moves them apart by a fifth. A p99 needs 4,000 of them: replies as short as can be.
TIMED: dict[str, tuple[str, dict[str, Any]]] = {
    "single": (
        "serving",
        {"load": None, "requests": 1, "output_tokens": 8, "pairs": 40, "grow_to": 200, "max_seconds": 900},
    ),
    "tail": ("serving-p99", {"load": None, "output_tokens": 2}),
    "load": ("serving", {}),
}


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """Where everything lies: ``work`` for what can be thrown away, ``policy`` for what gates."""

    work: Path
    policy: Path
    rules: Mapping[str, Any]

    @property
    def store(self) -> Path:
        """Measurements of baselines, for every specimen."""
        return self.work / "baseline-store"


def rules(keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """The default policy without what it measures of time: that is another zoo's. ``keep``: only these checks."""
    document = yaml.safe_load((ROOT / "gates" / "default.yaml").read_text())
    del document["timing"]
    checks = [c for c in document["checks"] if METRICS[c["metric"]].estimator != "blocks"]
    return document | {"name": "zoo", "checks": [c for c in checks if not keep or c["id"] in keep]}


def timing_rules(how: str) -> dict[str, Any]:
    """The checks on time and memory of a shipped policy, with the margins and tiers that are shipped.

    Of its checks on quality one is left, supporting: the prompts of its set are what is sent.
    """
    name, changes = TIMED[how]
    document = yaml.safe_load((ROOT / "gates" / f"{name}.yaml").read_text())
    timing = {key: value for key, value in (document["timing"] | changes).items() if value is not None}
    metrics = {check["id"]: METRICS[check["metric"]] for check in document["checks"]}
    checks = [
        check | {"min_items": timing["pairs"] * timing["requests"]}
        for check in document["checks"]
        if metrics[check["id"]].estimator == "blocks"
        and ("load" in timing or not metrics[check["id"]].loaded)
        and (timing["requests"] > 1 or check.get("statistic") not in TAILS)
    ]
    prompts = [check for check in document["checks"] if check["id"] == PROMPTS]
    changed = {"name": f"zoo-timing-{how}", "looks": [1.0], "timing": timing, "checks": checks + prompts}
    return document | changed


def zoo(work: Path, keep: tuple[str, ...] = (), how: str = "") -> Zoo:
    """A place to work in, with the policy beside links to the sets; ``how`` for those that are timed."""
    work.mkdir(parents=True, exist_ok=True)
    found = timing_rules(how) if how else rules(keep)
    policy = work / (f"policy-{how}.yaml" if how else "policy.yaml")
    policy.write_text(yaml.safe_dump(found, sort_keys=False))
    link(ROOT / "evalsets", work / "evalsets")
    return Zoo(work=work, policy=policy, rules=found)


def link(target: Path, place: Path) -> None:
    """A symbolic link, made anew."""
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def inputs(specimen: Specimen, rules: Mapping[str, Any]) -> str:
    """Digest of all that decides a specimen's result: itself with its code, the baseline, the policy and its sets,
    and the rules of measuring and judging.

    Why a margin is what it is decides nothing.
    """
    baseline = ROOT / "manifests" / f"{specimen.manifest}.yaml"
    checks = [{key: value for key, value in check.items() if key != "because"} for check in rules["checks"]]
    names = sorted({name for check in checks for name in check.get("evalset", ())})
    parts: list[Any] = [
        specimen.changes, specimen.baseline, specimen.busy, defect_source(specimen.defect), recipe_source(specimen),
        _content(baseline), checks, rules["looks"], [_set_digest(name) for name in names],
        PROTOCOL, JUDGING,
    ]  # fmt: skip
    if specimen.timed:
        parts.append(rules["timing"])
    if specimen.tampers:
        parts.append(
            [[when, _source(Path(inspect.getfile(how)), how.__name__)] for when, how in specimen.tampers]
        )
    return canonical.digest(json.loads(json.dumps(parts)))


@cache
def _content(manifest: Path) -> str:
    """Digest of what a manifest serves: its settings and the bytes of its files, however its lock writes them down."""
    manifest_, lock = read_pinned(manifest)
    pins = lock.pins
    return canonical.digest(
        [
            manifest_.settings(),
            pins.weights,
            pins.tokenizer,
            pins.chat_template,
            pins.vocabulary,
            pins.environment,
        ]
    )


@cache
def _set_digest(name: str) -> str:
    return load_evalset(ROOT / "evalsets" / name).card.digest


def recipe_source(specimen: Specimen) -> list[Any]:
    """A recipe's code and its dose."""
    recipe: Any = specimen.recipe
    if recipe is None:
        return []
    function = getattr(recipe, "func", recipe)
    return [*_source(Path(inspect.getfile(function)), function.__name__), getattr(recipe, "keywords", {})]


def defect_source(defect: str) -> list[str]:
    """A defect's code and its dose; read, because importing it would strike this process."""
    if not defect:
        return []
    return [defect, *_source(Path(__file__).parent / "engine" / "sitecustomize.py", defect.split()[0])]


@cache
def _source(path: Path, name: str) -> tuple[str, ...]:
    """The code of a module's name, and of every name of the module that it uses, directly or not."""
    text = path.read_text()
    code: dict[str, ast.stmt] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            code[node.name] = node
        else:
            names = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            code |= {n.id: node for n in names}
    if name not in code:
        raise KeyError(f"{path} has no {name}")
    used, todo = set[str](), [name]
    while todo:
        if (found := todo.pop()) in code and found not in used:
            used.add(found)
            todo += [n.id for n in ast.walk(code[found]) if isinstance(n, ast.Name)]
    return tuple(ast.get_source_segment(text, code[known]) or "" for known in sorted(used))


def run(specimen: Specimen, zoo: Zoo) -> dict[str, Any]:
    """The result of one specimen, as it is kept. ``items.json`` beside its reports holds what both arms measured."""
    folder = zoo.work / specimen.name
    shutil.rmtree(folder, ignore_errors=True)
    home = _home(folder, zoo)
    baseline, candidate = _manifests(specimen, folder)
    environment = {
        **os.environ,
        "CHECKWEIGH_HOME": str(home),
        "CHECKWEIGH_MLFLOW": "none",
        "PYTHONPATH": _path(),
    }
    burners = [_spawn(BURNER) for _ in range(os.cpu_count() or 1)] if specimen.busy else []
    started, load = time.monotonic(), os.getloadavg()[0]
    log = folder / "log"
    try:
        with log.open("w") as out:
            code = 0
            for manifest in (baseline, candidate):
                if code == 0 and manifest.is_relative_to(folder):
                    code = _checkweigh(specimen, ["pin", str(manifest)], environment, out)
            if code == 0:
                for how in (how for when, how in specimen.tampers if not when):
                    how(folder / "model")
                asked = [
                    "gate",
                    str(baseline),
                    str(candidate),
                    "--policy",
                    str(zoo.policy),
                    "--out",
                    str(folder),
                ]
                with _tampering(specimen, folder):
                    code = _checkweigh(specimen, asked, environment, out)
    finally:
        for burner in burners:
            burner.kill()
    seconds = time.monotonic() - started
    text = log.read_text(errors="replace")
    result = {
        "specimen": specimen.name, "kind": specimen.kind, "dose": specimen.dose, "size": specimen.size,
        "family": specimen.family, "what": specimen.what, "must": specimen.must, "held_out": specimen.held_out,
        "inputs": inputs(specimen, zoo.rules), "exit": code, "verdict": EXITS.get(code, "error"),
        "seconds": round(seconds, 1), "load_average_before": load, "traceback": "Traceback" in text,
        "provenance": host_facts.provenance_of_tree(host_facts.now()).model_dump(mode="json"),
    }  # fmt: skip
    try:
        if code in (0, 1, 3):
            decision = read_decision(folder)
            result |= judged(specimen, decision)
            result["reasons"] = [_without_paths(reason, zoo) for reason in result["reasons"]]
            if specimen.timed:
                result["timing"] = _timing(decision)
            else:
                _keep_items(specimen, decision, zoo, home, folder)
            _keep_baseline(decision, home, zoo)
        else:
            words = [line for line in text.splitlines() if line.strip()][-LINES:]
            result["message"] = _without_paths("\n".join(words), zoo)
            result["right_cause"] = bool(specimen.words) and specimen.words in result["message"]
    finally:
        shutil.rmtree(home)
        shutil.rmtree(folder / "model", ignore_errors=True)
    result["met"] = met(specimen, result)
    return result


@contextmanager
def _tampering(specimen: Specimen, folder: Path) -> Iterator[None]:
    """Each tamper once the gate's output holds its text, in their order, as long as the gate runs."""
    ended = threading.Event()

    def watch() -> None:
        for when, how in (tamper for tamper in specimen.tampers if tamper[0]):
            while when not in (folder / "log").read_text(errors="replace"):
                if ended.wait(0.02):
                    return
            how(folder / "model")

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _without_paths(text: str, zoo: Zoo) -> str:
    """A text to be kept, without the places of this machine."""
    return text.replace(str(zoo.work), "ZOO").replace(str(ROOT), "")


def met(specimen: Specimen, result: Mapping[str, Any]) -> bool | None:
    """Whether the gate did what it must, for the right cause; None for an open specimen on which it gave a verdict."""
    if result["traceback"] or result["verdict"] == "error":
        return False
    if specimen.must == "open":
        return None
    asked = {
        "pass": ("pass",), "block": ("block", "refuse"), "refuse": ("refuse",), "not-block": ("pass", "inconclusive"),
    }[specimen.must]  # fmt: skip
    harmless = specimen.must in ("pass", "not-block") and not specimen.words
    right = harmless or bool(result.get("right_cause"))
    return result["verdict"] in asked and right


def judged(specimen: Specimen, decision: Decision) -> dict[str, Any]:
    """What a decision says, and whether it blocked for a cause that fits."""
    caught = [r.check.id for r in decision.checks if r.outcome == "blocked"]
    fits = bool(set(caught) & set(specimen.causes))
    told = (decision.no_effect, *decision.reasons)
    fits = fits or (bool(specimen.words) and any(specimen.words in reason for reason in told))
    return {
        "caught": caught, "right_cause": fits, "reasons": list(decision.reasons),
        "looks": len(decision.looks.made) if decision.looks else 1,
        "items": sum(stage.items for stage in decision.stages if stage.arm == "candidate"),
        "checks": {
            r.check.id: {
                "outcome": r.outcome, "margin": r.margin, "comparison": r.comparison.model_dump(mode="json"),
                "items_to_settle": r.items_to_settle, "sentence": r.sentence,
            }
            for r in decision.checks
        },
    }  # fmt: skip


def _timing(decision: Decision) -> dict[str, Any] | None:
    """How it was timed, and how memory went from block to block; None where it was not."""
    run = decision.timing
    if run is None:
        return None
    return {
        "pairs": len(run.blocks), "requests": run.blocks[0].requests if run.blocks else 0, "load": run.load,
        "seconds": round(run.seconds, 1), "notes": list(run.notes), "swapped": run.swapped,
        "peak_memory": {arm: [int(getattr(b, arm)["peak_memory"]) for b in run.blocks] for arm in ARMS},
    }  # fmt: skip


def _home(folder: Path, zoo: Zoo) -> Path:
    """A home with what the user's cache has fetched, and the baseline's measurements."""
    home = folder / "home"
    home.mkdir(parents=True)
    for name in SHARED:
        (cache_root() / name).mkdir(parents=True, exist_ok=True)
        link(cache_root() / name, home / name)
    zoo.store.mkdir(exist_ok=True)
    shutil.copytree(zoo.store, home / "store", copy_function=os.link)
    return home


def _manifests(specimen: Specimen, folder: Path) -> tuple[Path, Path]:
    """The baseline's and the candidate's manifest; what is below ``folder`` is to be pinned."""
    shipped = ROOT / "manifests" / f"{specimen.manifest}.yaml"
    document = changed(yaml.safe_load(shipped.read_text()), specimen.baseline)
    if "environment" in document["engine"]:  # its lock is named relative to the manifest
        link(shipped.parent / "engines", folder / "engines")
    baseline, candidate = shipped, folder / "candidate.yaml"
    if specimen.baseline:
        baseline = folder / "baseline.yaml"
        baseline.write_text(yaml.safe_dump(document, sort_keys=False))
    document = changed(document, specimen.changes) | {"name": f"zoo-{specimen.name}"}
    if specimen.recipe is not None:
        (folder / "model").mkdir()
        specimen.recipe(verify(shipped).model_dir, folder / "model")
        document["model"] = {"source": "path:model"}
    candidate.write_text(yaml.safe_dump(document, sort_keys=False))
    return baseline, candidate


def changed(document: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A manifest with keys of its sections changed."""
    return {
        **document,
        **{section: {**document.get(section, {}), **keys} for section, keys in changes.items()},
    }


def _path() -> str:
    return os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)])


def _spawn(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def _checkweigh(specimen: Specimen, arguments: list[str], environment: Mapping[str, str], out: Any) -> int:
    command = ["-m", "checkweigh", *arguments]
    if specimen.defect:
        name = yaml.safe_load(Path(arguments[-1] if arguments[0] == "pin" else arguments[2]).read_text())[
            "name"
        ]
        command = ["-m", "benchmarks.zoo.infected", name, specimen.defect, *arguments]
    return subprocess.call(
        [sys.executable, *command], env=dict(environment), stdout=out, stderr=out, cwd=ROOT
    )


def _keep_items(specimen: Specimen, decision: Decision, zoo: Zoo, home: Path, folder: Path) -> None:
    """What both arms measured, item by item, for the peers: a row for each metric on each choice of sets."""
    records, _ = read_measurements(Store(home / "store"), decision)
    rows: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for check in read_policy(zoo.policy).checks:
        if (check.metric, check.evalset) in rows:
            continue
        sets = [
            _seen(find_evalset(name, evalset_roots(zoo.policy)), records["candidate"])
            for name in check.evalset
        ]
        sample = pair(check.metric, sets, records["baseline"], records["candidate"])
        arms = [sample.baseline, sample.candidate]
        arms = [np.exp(arm) if check.metric == "log_length" else arm / sample.size for arm in arms]
        baseline, candidate = ([None if np.isnan(v) else float(v) for v in arm] for arm in arms)
        rows[check.metric, check.evalset] = {
            "id": check.id, "metric": check.metric, "set": "+".join(check.evalset), "direction": check.direction,
            "items": [item.id for one in sets for item in one.items], "clusters": list(sample.clusters),
            "baseline": baseline, "candidate": candidate,
        }  # fmt: skip
    (folder / "items.json").write_text(
        json.dumps({"specimen": specimen.name, "metrics": list(rows.values())})
    )


def _seen(evalset: EvalSet, records: Mapping[str, MeasurementSet]) -> EvalSet:
    """The part of a set that was measured."""
    record = records.get(evalset.card.name)
    ids = {o.item for o in record.observations} if record else set()
    return evalset.model_copy(update={"items": tuple(item for item in evalset.items if item.id in ids)})


def _keep_baseline(decision: Decision, home: Path, zoo: Zoo) -> None:
    """Measurements of the baseline that are new, for the next specimen: whole, or not there."""
    for digest in decision.baseline.measurements.values():
        name = digest.removeprefix("sha256:")
        if (home / "store" / name).is_dir() and not (zoo.store / name).exists():
            with tempfile.TemporaryDirectory(dir=zoo.work) as half:
                shutil.copytree(home / "store" / name, Path(half) / name)
                with suppress(OSError):  # another specimen was first
                    (Path(half) / name).rename(zoo.store / name)
