"""Gates whose files are exchanged while they run: bad input, and nothing of it is kept.

``Swaps.at`` acts when the gate tells of a moment: ``("baseline: prose", 0)`` before its first batch, ``("candidate:
starting the engine", 1)`` when an engine has loaded.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.builders import check
from tests.unit.usecases.gate_bench import ENDINGS, PERPLEXITY, TPOT, GateBench, measured_files
from tests.waiting import until

from checkweigh.progress import Progress
from checkweigh.sources import pinned_files
from checkweigh.usecases import run_gate
from checkweigh.usecases.gate.arms.engine_session import EngineSession

WEIGHTS = "model.safetensors"
KL = check(
    id="kl", metric="kl", evalset=["prose"], direction="lower", margin=0.5, min_items=40, min_clusters=40,
    tier="advisory",
)  # fmt: skip
ROLES = ("baseline", "candidate")
START, PROSE, TIMING = "starting the engine", "prose", "timing, both arms"
Act = Callable[[], None]


class Swaps:
    """A bench whose arms have models of their own, and what happens to them meanwhile."""

    def __init__(self, bench: GateBench, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.acts: dict[tuple[str, int], Act] = {}
        for role in ROLES:
            shutil.copytree(tiny, self.model(role))
        bench.policy(PERPLEXITY, ENDINGS)
        real = run_gate.gate

        def watched(inputs: Any, out: Path, progress: Progress, *more: Any, **options: Any) -> Any:
            def tell(label: str, done: int, total: int) -> None:
                progress(label, done, total)
                if act := self.acts.pop((label, done), None):
                    act()

            return real(inputs, out, tell, *more, **options)

        monkeypatch.setattr(run_gate, "gate", watched)

    def model(self, role: str) -> Path:
        return self.bench.folder / "models" / role

    def at(self, label: str, done: int, act: Act) -> None:
        self.acts[label, done] = act

    def gate(self, *more: str, **knobs: Any) -> int:
        paths = [
            self.bench.manifest(role, knobs.get(role), model={"source": f"path:{self.model(role)}"})
            for role in ROLES
        ]
        code = self.bench.run(*self.bench.arguments(*paths, *more))
        assert not self.acts, "every moment came"
        return code

    def refused(self, role: str, *named: str, kept: int = 0, **knobs: Any) -> None:
        """The gate is bad input that names the file; ``kept`` records are there, no batch and no spent attempt."""
        assert self.gate(**knobs) == 2, self.bench.stderr
        said = self.bench.stderr.replace("\n", "")
        for name in named or (f"{self.model(role)}/{WEIGHTS}",):
            assert name.replace(" ", "") in said.replace(" ", "")
        assert "home/served" not in said
        assert len(self.bench.records()) == kept
        assert not list((self.bench.home / "store").glob("*/batches/[0-9]*.json"))
        assert not (self.bench.out / "decision.json").exists()
        for entry in (self.bench.home / "attempts").rglob("[0-9]*.json"):
            body = json.loads(entry.read_bytes())["body"]
            assert (body["looks"], body["decision"]) == ([], None)


@pytest.fixture
def swaps(bench: GateBench, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Swaps:
    return Swaps(bench, tiny_model_dir, monkeypatch)


def overwrite(path: Path) -> None:
    """Other bytes in the same file, as ``cp`` writes them."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def put_back(path: Path) -> None:
    """Overwritten, and the bytes and times put back."""
    whole, stat = path.read_bytes(), path.stat()
    overwrite(path)
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def swap_by_rename(path: Path) -> None:
    """Another for a moment."""
    path.rename(path.with_name("kept"))
    path.mkdir() if path.with_name("kept").is_dir() else path.touch()
    path.rmdir() if path.is_dir() else path.unlink()
    path.with_name("kept").rename(path)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("moment", [(START, 1), (PROSE, 0)])
def test_weights_that_are_overwritten_are_bad_input(swaps: Swaps, role: str, moment: tuple[str, int]) -> None:
    """Between loading and measuring, and while its first batch is measured: the baseline of a passing gate stays."""
    swaps.at(f"{role}: {moment[0]}", moment[1], lambda: overwrite(swaps.model(role) / WEIGHTS))
    swaps.refused(role, kept=2 if role == "candidate" else 0)


def test_candidate_overwritten_while_the_baseline_is_measured(swaps: Swaps) -> None:
    swaps.at("baseline: prose", 0, lambda: overwrite(swaps.model("candidate") / WEIGHTS))
    swaps.refused("candidate", "expected sha256:", kept=2)


@pytest.mark.parametrize(
    ("name", "act", "named"),
    [
        (WEIGHTS, put_back, WEIGHTS),
        (WEIGHTS, swap_by_rename, WEIGHTS),
        ("tokenizer_config.json", put_back, "tokenizer_config.json"),
        ("quantize_config.json", Path.touch, "expected no such file"),
        (".", swap_by_rename, "expected the folder that was verified"),
    ],
)
def test_what_is_put_back_was_there_all_the_same(
    swaps: Swaps, name: str, act: Callable[[Path], None], named: str
) -> None:
    swaps.at("baseline: answers", 0, lambda: act(swaps.model("baseline") / name))
    swaps.refused("baseline", named)


def test_after_a_refusal_the_same_gate_is_the_first_attempt(swaps: Swaps) -> None:
    swaps.at("baseline: answers", 0, lambda: put_back(swaps.model("baseline") / WEIGHTS))
    swaps.refused("baseline")
    assert swaps.gate() == 0, "nothing was spent, and nothing poisoned"
    assert swaps.bench.decision.attempt is not None
    assert swaps.bench.decision.attempt.number == 1


def test_the_last_moment_before_a_record_counts(swaps: Swaps) -> None:
    """After the last batch was stored: its record is pending, its batches go."""
    swaps.at("baseline: answers", 320, lambda: put_back(swaps.model("baseline") / WEIGHTS))
    swaps.refused("baseline")


@contextmanager
def dirty_map(path: Path) -> Iterator[mmap.mmap]:
    """A map of a file whose last page waits to be written: writing to it once more changes no time."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[-1] = mapped[-1]
        yield mapped


def test_a_write_that_changes_no_time_is_read_at_the_end(swaps: Swaps) -> None:
    path = swaps.model("baseline") / WEIGHTS
    times: list[int] = []

    def write() -> None:
        times.append(path.stat().st_ctime_ns)
        mapped[-1] ^= 1
        times.append(path.stat().st_ctime_ns)

    with dirty_map(path) as mapped:

        def dirty() -> None:
            mapped[-1] = mapped[-1]

        swaps.at("baseline: starting the engine", 0, dirty)
        swaps.at("baseline: answers", 0, write)
        swaps.refused("baseline")
    if times[0] != times[1]:
        pytest.skip("this kernel wrote the page back in the same moment")
    assert "expected sha256:" in swaps.bench.stderr


def test_timing_of_files_that_changed_is_no_evidence(swaps: Swaps) -> None:
    """Quality was settled before and stays; the look, the timing and the verdict never were."""
    swaps.bench.policy(PERPLEXITY, ENDINGS, TPOT)
    swaps.at(TIMING, 3, lambda: put_back(swaps.model("candidate") / WEIGHTS))
    swaps.refused("candidate", kept=4)


@pytest.mark.parametrize("role", ROLES)
def test_divergence_of_files_that_changed_is_not_kept(swaps: Swaps, role: str) -> None:
    """Either arm's; the candidate's quality waits for its second start, and is lost with the divergence."""
    swaps.bench.policy(PERPLEXITY, ENDINGS, KL)
    swaps.at("candidate: prose KL", 0, lambda: put_back(swaps.model(role) / WEIGHTS))
    swaps.refused(role, kept=4 if role == "baseline" else 2)


def test_a_candidate_that_dies_of_exchanged_files_is_no_block(swaps: Swaps) -> None:
    swaps.at("candidate: prose", 0, lambda: overwrite(swaps.model("candidate") / WEIGHTS))
    swaps.refused("candidate", kept=2, candidate={"crash_at": 1})


def test_every_file_is_read_at_most_five_times(swaps: Swaps, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look with divergence and timing, the reading that verifies included, which may be remembered."""
    swaps.bench.policy(PERPLEXITY, ENDINGS, KL, TPOT)
    read: Counter[Path] = Counter()
    real = pinned_files.fresh_digests

    def counted(files: Any, *more: Any) -> dict[str, str]:
        read.update(path for path, _ in files.values())
        return real(files, *more)

    monkeypatch.setattr(pinned_files, "fresh_digests", counted)
    assert swaps.gate() == 0, swaps.bench.stderr
    assert {read[swaps.model(role) / WEIGHTS] for role in ROLES} == {4}
    verified = [json.loads((f / "record.json").read_bytes())["verified"] for f in swaps.bench.records()]
    size = sum(path.stat().st_size for path in swaps.model("baseline").iterdir())
    assert {v["bytes"] for v in verified} == {size}
    assert all(v["seconds"] > 0 for v in verified)


def test_a_verdict_on_files_that_nobody_read_again_is_an_error(
    swaps: Swaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineSession, "settle", EngineSession.close)
    assert swaps.gate() == 4
    assert "files were not read again after its engine had measured" in swaps.bench.reasons
    assert swaps.bench.records() == []


@pytest.mark.parametrize("touched", [False, True])
def test_batches_are_used_again_with_the_very_files_only(swaps: Swaps, touched: bool) -> None:
    """A killed gate goes on from its batches; where a file was written meanwhile, if only to the same, it does not."""
    bench = swaps.bench
    paths = [
        bench.manifest(role, {"latency_s": 0.05}, model={"source": f"path:{swaps.model(role)}"})
        for role in ROLES
    ]
    process = bench.spawn(*bench.arguments(*paths))
    until(lambda: len(_batches(bench)) >= 3 or process.poll() is not None)
    process.kill()
    said = process.communicate()[1].decode()
    kept = measured_files(_batches(bench))
    assert len(kept) >= 3, said
    weights = swaps.model("baseline") / WEIGHTS
    if touched:
        weights.write_bytes(weights.read_bytes())
    seen: dict[str, tuple[int, bytes]] = {}
    swaps.at("baseline: prose", 320, lambda: seen.update(measured_files(_batches(bench))))
    assert swaps.gate(baseline={"latency_s": 0.05}, candidate={"latency_s": 0.05}) == 0
    same = {path for path in kept if seen[path] == kept[path]}
    assert same == (set() if touched else set(kept))


def _batches(bench: GateBench) -> list[Path]:
    return sorted((bench.home / "store").glob("*/batches/[0-9]*.json"))
