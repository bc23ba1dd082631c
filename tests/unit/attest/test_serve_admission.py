"""``serve --require-attestation``: what passed is served; anything else starts nothing and says every reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.faults.test_serve_command import engine_of, served
from tests.signing import keys
from tests.unit.attest.conftest import Door, put_evalset
from tests.unit.attest.test_admit import flip, looser, repinned

from checkweigh.cli import main
from checkweigh.records.decision import Verdict
from checkweigh.sources.pin import pin

EXAMPLE = Path(__file__).resolve().parents[3] / "workflows/kubernetes/serving.yaml"


def words(door: Door, *more: str) -> list[str]:
    shown = {"--require-attestation": door.attestation, "--key": door.public, "--policy": door.policy}
    return [
        str(door.manifest),
        *(f"{k}={v}" for k, v in shown.items()),
        f"--logs={door.folder / 'logs'}",
        *more,
    ]


@pytest.fixture
def nothing_started(door: Door) -> Iterator[None]:
    """No process of ours is new, no engine has a log, nobody listens."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert not (door.folder / "logs").exists()


def test_what_passed_is_served(door: Door) -> None:
    with served(*words(door)) as (_, child, said):
        assert engine_of(child).is_running()
    assert child.returncode == 0, said
    assert f"checkweigh: ADMITTED: {door.manifest}" in said[0]
    assert (door.folder / "logs").exists()


def expired(door: Door) -> None:
    long_ago = "2020-01-01T00:00:00+00:00"
    made = door.decision()
    door.decide(provenance=made.provenance.model_copy(update={"started": long_ago, "ended": long_ago}))


def another_manifest(door: Door) -> None:
    document = yaml.safe_load(door.manifest.read_text())
    document["sampling"] = {"temperature": 0.7}
    door.manifest.write_text(yaml.safe_dump(document))
    pin(door.manifest)


def forged(door: Door) -> None:
    private, _ = keys(door.folder, name="other")
    door.sealed(lambda s: None, key=private)


def twice_wrong(door: Door) -> None:
    flip(door)
    looser(door)


REFUSED: dict[str, tuple[Callable[[Door], Any], tuple[str, ...]]] = {
    "other weights": (flip, ("files",)),
    "other weights, pinned": (repinned, ("subject",)),
    "another policy": (looser, ("policy",)),
    "expired": (expired, ("age",)),
    "another set": (lambda door: put_evalset(door.folder / "evalsets", items=5), ("evalsets",)),
    "another manifest": (another_manifest, ("subject",)),
    "another key": (forged, ("key",)),
    "no envelope": (lambda door: door.attestation.write_text("{}"), ("envelope",)),
    "a block": (lambda door: door.decide(Verdict.BLOCK), ("verdict",)),
    "an inconclusive gate": (lambda door: door.decide(Verdict.INCONCLUSIVE), ("verdict",)),
    "two reasons": (twice_wrong, ("files", "policy")),
}


@pytest.mark.usefixtures("nothing_started")
@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_starts_nothing(name: str, door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    change, codes = REFUSED[name]
    change(door)
    assert main(["serve", *words(door, "--port", "0")]) == 1
    told = capsys.readouterr()
    assert told.out == "", "no address"
    for code in codes:
        assert f"checkweigh: refused: {code}" in told.err
    assert f"REFUSED: {door.manifest}" in told.err


@pytest.mark.usefixtures("nothing_started")
@pytest.mark.parametrize(
    ("drop", "add", "expected"),
    [
        ("--key", (), "expected --key and --policy"),
        ("--policy", (), "expected --key and --policy"),
        ("--require-attestation", (), "expected --require-attestation"),
        ("", ("--max-age", "soon"), "--max-age: expected a number"),
        ("", ("--max-age", "1d", "--max-age", "2d"), "--max-age: expected one, or one a manifest"),
        ("--key", ("--key", "/nowhere.pub"), "/nowhere.pub"),
        ("--policy", ("--policy", "/nowhere.yaml"), "/nowhere.yaml"),
        ("--require-attestation", ("--require-attestation", "/nowhere.json"), "/nowhere.json"),
        ("", ("--evalset", "sample-set=12"), "--evalset: expected NAME=sha256:"),
        ("", ("CANDIDATE", "--split", "90/10"), "expected one a manifest, 2, found 1"),
    ],
)
def test_what_cannot_be_checked_is_bad_input(
    drop: str, add: tuple[str, ...], expected: str, door: Door, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("CHECKWEIGH_PUBLIC_KEY", raising=False)
    kept = [word for word in words(door) if not drop or not word.startswith(drop)]
    added = [word.replace("CANDIDATE", str(door.manifest)) for word in add]
    assert main(["serve", *kept, *added]) == 2
    assert expected in capsys.readouterr().err


@pytest.fixture
def baseline(door: Door) -> dict[str, Path]:
    """What served before: another manifest, with the attestation of its own gate, by its own policy."""
    manifest, out, policy = (door.folder / name for name in ("old.yaml", "old", "old-policy.yaml"))
    document = yaml.safe_load(door.manifest.read_text()) | {"name": "old"}
    manifest.write_text(yaml.safe_dump(document | {"limits": {"max_sequence": 256}}))
    pin(manifest)
    shutil.copy(door.policy, policy)
    Door(door.folder, manifest, door.model, policy, door.private, door.public, out).decide()
    looser(door)
    door.decide()
    return {"manifest": manifest, "attestation": out / "attestation.json", "policy": policy}


def test_both_arms_of_a_split_need_their_own(
    door: Door, baseline: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    own = [f"--policy={baseline['policy']}", f"--require-attestation={baseline['attestation']}"]
    both = [str(baseline["manifest"]), *own, *words(door, "--split", "50/50")]
    with served(*both) as (_, child, said):
        pass
    assert child.returncode == 0, said
    assert said[0].count("ADMITTED: ") == 2
    shutil.rmtree(door.folder / "logs")
    swapped = [str(door.manifest), *own, *words(door, "--split", "50/50")[1:], str(baseline["manifest"])]
    assert main(["serve", *swapped]) == 1
    told = capsys.readouterr().err
    assert told.count("REFUSED: ") == 2
    assert told.count("refused: subject") >= 2
    door.decide(Verdict.BLOCK)
    assert main(["serve", *both]) == 1, "one refusal is enough"
    assert capsys.readouterr().err.count("REFUSED: ") == 1
    assert not (door.folder / "logs").exists()


def test_the_deployment_serves_only_what_passed(
    door: Door, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment, _ = yaml.safe_load_all(EXAMPLE.read_text())
    (guard,) = deployment["spec"]["template"]["spec"]["containers"]
    mounted, scratch = door.folder / "admission", door.folder / "scratch"
    mounted.mkdir()
    for source, name in (
        (door.manifest, "candidate.yaml"), (door.manifest.with_suffix(".lock.json"), "candidate.lock.json"),
        (door.attestation, "attestation.json"), (door.out / "weights.sig", "weights.sig"),
        (door.policy, "policy.yaml"), (door.public, "key.pub"),
    ):  # fmt: skip
        shutil.copy(source, mounted / name)
    (mounted / "guard.yaml").write_text("surface:\n  keys: {CHAT_KEY: interactive}\n")
    monkeypatch.setenv("CHAT_KEY", "k" * 32)
    places = {"/admission": str(mounted), "/scratch": str(scratch), "0.0.0.0": "127.0.0.1"}
    places["SET=DIGEST"] = f"sample-set={door.evalset('sample-set').content_digest()}"
    command = [*guard["command"], *guard["args"]]
    for old, new in places.items():
        command = [word.replace(old, new) for word in command]
    assert command[:2] == ["checkweigh", "serve"]
    with served(*command[2:]) as (_, child, said):
        pass
    assert child.returncode == 0, said
    flip(door)
    assert main(command[1:]) == 1
    assert "refused: files" in capsys.readouterr().err
