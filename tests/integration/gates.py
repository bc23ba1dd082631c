"""Gates as real processes that are disturbed: started, watched through their engines' diaries, killed, compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from tests.builders import check, evalset
from tests.unit.usecases.gate_bench import ENDINGS, PERPLEXITY, SCORE, TPOT, GateBench
from tests.waiting import InVain, until

from checkweigh.records.evalset import EvalSet

KL = check(id="kl", metric="kl", evalset=["prose"], direction="lower", margin=0.05, tier="advisory")
SIZES = {"prose": ("text", 320), "choices": ("choice", 320), "answers": ("generation", 320)}
ROLES = ("baseline", "candidate")


class Bench(GateBench):
    """A bench whose engines keep diaries, and whose items are named after their sets."""

    def prepare(self, **knobs: Any) -> list[str]:
        """All kinds of checks, both manifests; the gate's arguments."""
        for name, (kind, size) in SIZES.items():
            self.put(_named(evalset(kind, size, name=name)))
        timed = {"pairs": 6, "requests": 1, "output_tokens": 4, "max_seconds": 60}
        self.policy(PERPLEXITY, SCORE, ENDINGS, KL, TPOT, timing=timed)
        arms = [
            self.manifest(role, knobs | {"diary": str(self.folder / f"{role}.diary"), "divergence": size})
            for role, size in zip(ROLES, (0.0, 0.5), strict=True)
        ]
        return self.arguments(*arms)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """``python -m checkweigh`` in a process group of its own; what it says goes to ``said``."""
        with self.said.open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "checkweigh", *arguments],
                cwd=self.folder, stdout=said, stderr=said, start_new_session=True, **options,
            )  # fmt: skip

    @property
    def said(self) -> Path:
        """Output of the process that was started last."""
        return self.folder / "said.txt"

    def diary(self) -> list[tuple[str, str, str]]:
        """(role, call, item) of everything the engines have done, timing apart; each role's in order."""
        return [
            (role, call, item)
            for role, call, items in self._pages()
            for item in items
            if item.partition("/")[0] in SIZES
        ]  # fmt: skip

    def calls(self) -> int:
        """Calls of all engines so far, timing among them."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob("*.diary"))

    def _pages(self) -> Iterator[tuple[str, str, list[str]]]:
        for role in ROLES:
            path = self.folder / f"{role}.diary"
            for line in path.read_text().splitlines() if path.exists() else ():
                call, *items = line.split(" ")
                yield role, call, items

    def forget(self) -> None:
        """Empty diaries."""
        for role in ROLES:
            (self.folder / f"{role}.diary").unlink(missing_ok=True)

    def kept(self, addresses: dict[str, tuple[str, str]]) -> set[tuple[str, str, str]]:
        """(role, call, item) that a stored batch or record makes needless; ``addresses`` are a whole gate's."""
        found = set()
        for folder in (self.home / "store").glob("*/"):
            role, name = addresses[folder.name]
            roles = ROLES if role == "both" else (role,)
            calls = ("states", "divergence") if role == "both" else ("score", "generate")
            found |= {(r, call, item) for item in _items(folder, name) for r in roles for call in calls}
        return found

    def addresses(self) -> dict[str, tuple[str, str]]:
        """Folder in the store -> role and set of its record; ``both`` for a divergence."""
        roles = {
            digest.removeprefix("sha256:"): (role, name)
            for role in ROLES
            for name, digest in getattr(self.decision, role).measurements.items()
        }
        records = {
            folder.name: json.loads((folder / "record.json").read_bytes()) for folder in self.records()
        }
        return {name: roles.get(name, ("both", data["set_name"])) for name, data in records.items()}

    def steady(self) -> str:
        """The last decision as it stands on disk, without what time, and nothing else, may change."""
        data = json.loads((self.out / "decision.json").read_bytes())
        del data["provenance"], data["timing"], data["attempt"]["decided"], data["attempt"]["stored"]
        del data["attempt"]["first"]
        data["attempt"].pop("now", None)
        for look in data["looks"]["made"]:
            del look["seconds"]
        for stage in data["stages"]:
            del stage["seconds"], stage["stored"]
        for result in data["checks"]:
            if result["check"]["metric"] == "tpot":
                assert result["check"]["tier"] == "advisory"
                result |= {"comparison": None, "sentence": None, "outcome": None, "items_to_settle": None}
        return json.dumps(data, indent=1)

    def verify(self) -> str:
        """What ``store verify`` says of a store that must be sound."""
        command = [sys.executable, "-m", "checkweigh", "store", "verify", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr
        return done.stderr

    def orphans(self, seconds: float = 10.0) -> list[str]:
        """Processes of this bench that are still there after a while."""
        with suppress(InVain):
            until(lambda: not list(_inhabitants(self.folder)), seconds)
        return list(_inhabitants(self.folder))


def _named(source: EvalSet) -> EvalSet:
    items = [item.model_copy(update={"id": f"{source.card.name}/{item.id}"}) for item in source.items]
    return source.model_copy(update={"items": tuple(items)})


def _items(folder: Path, name: str) -> Iterator[str]:
    """Items of one record, or of the batches that are whole."""
    if (folder / "record.json").exists():
        yield from (f"{name}/i{i}" for i in range(SIZES[name][1]))
        return
    for path in folder.glob("batches/[0-9]*.json"):
        yield from (row["item"] for row in json.loads(path.read_bytes())["body"]["observations"])


def _inhabitants(folder: Path) -> Iterator[str]:
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.cwd() == str(folder)
            ):
                yield f"{process.pid} {' '.join(process.cmdline())}"
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The gate and its engines, which have groups of their own."""
    try:
        gate = psutil.Process(process.pid)
        return [gate, *gate.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process: subprocess.Popen[bytes], *, everyone: bool) -> None:
    """SIGKILL to the gate alone, or to it and its engines."""
    for one in family(process)[: None if everyone else 1]:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait(10)


def wait_until(
    process: subprocess.Popen[bytes], condition: Callable[[], bool], seconds: float = 60.0
) -> bool:
    """Whether the condition came true while the process ran."""
    came = False

    def over() -> bool:
        nonlocal came
        running = process.poll() is None
        came = running and condition()
        return came or not running

    until(over, seconds, "the condition or the process's end", look_s=0.002)
    return came
