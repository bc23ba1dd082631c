"""``admit``: the honest attestation is accepted, and each tampering is refused for its own reason."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.signing import keys
from tests.unit.attest.conftest import Door

from checkweigh.cli import main
from checkweigh.records.attestation import Attested, TestResult
from checkweigh.records.decision import Verdict
from checkweigh.sources.pin import pin

LATER = timedelta(days=400)
Tamper = Callable[[Door], set[str]]


def predicate(change: Callable[[dict[str, Any]], None]) -> Tamper:
    """A change of our part of the predicate, and of what follows from it, signed with the right key."""

    def changed(statement: dict[str, Any]) -> None:
        ours = statement["predicate"]["checkweigh"]
        change(ours)
        with suppress(ValueError):  # nothing follows from what is no attestation
            attested = Attested.model_validate_json(json.dumps(ours))
            statement["predicate"] = TestResult.of(attested).model_dump(mode="json", by_alias=True)

    def tampered(door: Door) -> set[str]:
        door.sealed(changed)
        return door.codes()

    return tampered


def statement(change: Callable[[dict[str, Any]], None]) -> Tamper:
    """A change of the statement, signed with the right key."""

    def tampered(door: Door) -> set[str]:
        door.sealed(change)
        return door.codes()

    return tampered


def envelope(change: Callable[[dict[str, Any]], None]) -> Tamper:
    """A change of the envelope, by somebody without a key."""

    def tampered(door: Door) -> set[str]:
        door.envelope(change)
        return door.codes()

    return tampered


def files(change: Callable[[Door], object]) -> Tamper:
    """A change of what is to be served."""

    def tampered(door: Door) -> set[str]:
        change(door)
        return door.codes()

    return tampered


def flip(door: Door) -> None:
    path = next(door.model.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def repinned(door: Door) -> None:
    """Other weights, honestly pinned, under the old attestation."""
    flip(door)
    pin(door.manifest)


def renamed_set(door: Door) -> None:
    text = door.policy.read_text().replace("sample-set", "another-set")
    door.policy.write_text(text)


def looser(door: Door) -> None:
    policy = yaml.safe_load(door.policy.read_text())
    policy["checks"][0]["margin"] *= 2
    door.policy.write_text(yaml.safe_dump(policy))


def by_another(door: Door) -> set[str]:
    private, _ = keys(door.folder, name="other")
    door.sealed(lambda s: None, key=private)
    return door.codes()


def of_another_kind(door: Door) -> set[str]:
    _, public = keys(door.folder, "ed25519", name="other")
    return door.codes(key=public)


def forged_keyid(door: Door) -> set[str]:
    """Signed by another key that says it is the right one."""
    keyid = json.loads(door.attestation.read_text())["signatures"][0]["keyid"]
    by_another(door)
    door.envelope(lambda e: e["signatures"][0].update(keyid=keyid))
    return door.codes()


def verdict_of(verdict: Verdict) -> Tamper:
    def judged(door: Door) -> set[str]:
        door.decide(verdict)
        return door.codes()

    return judged


def other_payload(e: dict[str, Any]) -> None:
    import base64

    payload = base64.b64decode(e["payload"]).replace(b'"verdict":"pass"', b'"verdict":"pasS"')
    e["payload"] = base64.b64encode(payload).decode()


def swapped_signature(door: Door) -> set[str]:
    (door.out / "weights.sig").write_text("{}")
    return door.codes()


def removed_signature(door: Door) -> set[str]:
    (door.out / "weights.sig").unlink()
    return door.codes()


def broken(s: dict[str, Any]) -> None:
    s["predicate"]["result"] = "FAILED"
    s["predicate"]["checkweigh"]["verdict"] = "error"


OTHER = "sha256:" + "0" * 64
TAMPERINGS: dict[str, tuple[Tamper, set[str]]] = {
    "no envelope": (files(lambda d: d.attestation.write_text("{}")), {"envelope"}),
    "half an envelope": (files(lambda d: d.attestation.write_bytes(d.attestation.read_bytes()[:200])), {"envelope"}),
    "empty": (files(lambda d: d.attestation.write_bytes(b"")), {"envelope"}),
    "a key twice": (
        files(lambda d: d.attestation.write_text(d.attestation.read_text().replace("{", '{"payload": "e30=",', 1))),
        {"envelope"},
    ),
    "more in the envelope": (envelope(lambda e: e.update(extra=1)), {"envelope"}),
    "another payload type": (envelope(lambda e: e.update(payloadType="text/plain")), {"payload-type", "signature"}),
    "no signature": (envelope(lambda e: e.update(signatures=[])), {"unsigned"}),
    "a changed signature": (
        envelope(lambda e: e["signatures"][0].update(sig="MEUCIQ" + e["signatures"][0]["sig"][6:-8] + "AAAAAAA=")),
        {"signature"},
    ),
    "a changed payload": (envelope(other_payload), {"signature", "predicate"}),
    "another key": (by_another, {"key"}),
    "a key of another kind": (of_another_kind, {"key", "weights-signature"}),
    "another key under the right name": (forged_keyid, {"signature"}),
    "another statement type": (
        statement(lambda s: s.update(_type="https://in-toto.io/Statement/v0.1")), {"statement-type"},
    ),
    "another predicate type": (
        statement(lambda s: s.update(predicateType="https://slsa.dev/provenance/v1")), {"predicate-type"},
    ),
    "a later version": (predicate(lambda p: p.update(schema="checkweigh/attestation@3")), {"schema"}),
    "an older version": (predicate(lambda p: p.update(schema="checkweigh/attestation@1")), {"outdated"}),
    "without our part": (statement(lambda s: s["predicate"].pop("checkweigh")), {"schema"}),
    "an unknown field": (predicate(lambda p: p.update(override=True)), {"predicate"}),
    "a subject left out": (statement(lambda s: s["subject"].pop(0)), {"subject"}),
    "a subject added": (
        statement(lambda s: s["subject"].append({"name": "x", "digest": {"sha256": "0" * 64}})), {"subject"},
    ),
    "a subject of another digest": (
        statement(lambda s: s["subject"][0].update(digest={"sha256": "0" * 64})), {"subject"},
    ),
    "a subject twice": (statement(lambda s: s["subject"].append(s["subject"][0])), {"subject"}),
    "another candidate": (predicate(lambda p: p["candidate"].update(pins=OTHER)), {"candidate"}),
    "another manifest": (predicate(lambda p: p["candidate"].update(manifest=OTHER)), {"manifest"}),
    "an older policy": (predicate(lambda p: p.update(policy=OTHER)), {"policy"}),
    "the policy loosened since": (files(looser), {"policy"}),
    "a set without digest": (predicate(lambda p: p.update(evalsets={})), {"evalsets"}),
    "the policy on other sets": (files(renamed_set), {"policy", "evalsets"}),
    "a set that the policy does not name": (
        predicate(lambda p: p["evalsets"].update(more=OTHER)), {"evalsets"},
    ),
    "a set twice": (
        statement(lambda s: s["predicate"]["configuration"].append(s["predicate"]["configuration"][-1])), {"result"},
    ),
    "another baseline for other readers": (
        statement(lambda s: s["predicate"]["configuration"][1]["digest"].update(sha256="0" * 64)), {"result"},
    ),
    "a failed check among the passed": (
        statement(lambda s: s["predicate"]["passedTests"].append("memory")), {"result"},
    ),
    "no digest of the tool": (predicate(lambda p: p["tool"].pop("digest")), {"predicate"}),
    "a check left out": (predicate(lambda p: p["checks"].pop(0)), {"checks"}),
    "the implicit check left out": (predicate(lambda p: p["checks"].pop()), {"checks"}),
    "a pass with a blocked check": (predicate(lambda p: p["checks"][0].update(outcome="blocked")), {"contradiction"}),
    "a result that is not the verdict's": (
        statement(lambda s: s["predicate"].update(result="FAILED")), {"result"},
    ),
    "an unknown result": (statement(lambda s: s["predicate"].update(result="GREAT")), {"predicate"}),
    "a block": (verdict_of(Verdict.BLOCK), {"verdict"}),
    "inconclusive": (verdict_of(Verdict.INCONCLUSIVE), {"verdict"}),
    "an error made a verdict": (
        statement(broken),
        {"verdict"},
    ),
    "too old": (lambda d: d.codes(max_age=timedelta(0)), {"age"}),
    "from the future": (lambda d: d.codes(now=datetime.now(UTC) - LATER), {"future"}),
    "no time": (predicate(lambda p: p.update(ended="yesterday")), {"time"}),
    "a time without zone": (predicate(lambda p: p.update(ended="2026-01-01T00:00:00")), {"time"}),
    "a bit of the weights": (files(flip), {"files"}),
    "weights gone": (files(lambda d: next(d.model.glob("*.safetensors")).rename(d.model / "x.safetensors")), {"files"}),
    "another chat template": (files(lambda d: (d.model / "chat_template.jinja").write_text("{{ 1 }}")), {"files"}),
    "other weights, pinned anew": (files(repinned), {"subject", "candidate", "weights-signature"}),
    "one file more beside the weights": (
        files(lambda d: (d.model / "notes.txt").write_text("hello")), {"files"},
    ),
    "another model signature": (swapped_signature, {"weights-signature"}),
    "no model signature": (removed_signature, {"weights-signature"}),
}  # fmt: skip


def test_the_honest_one_is_admitted_in_under_a_second(door: Door) -> None:
    assert door.admit().admitted  # and everything is imported and hashed
    started = time.perf_counter()
    found = door.admit()
    seconds = time.perf_counter() - started
    assert found.admitted
    assert found.refusals == ()
    assert seconds < 1, seconds


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampering_is_refused_for_its_own_reason(door: Door, name: str) -> None:
    tamper, codes = TAMPERINGS[name]
    assert tamper(door) == codes


def test_everything_wrong_is_listed_at_once(door: Door) -> None:
    looser(door)
    flip(door)
    assert door.codes(max_age=timedelta(0)) == {"policy", "files", "age"}


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384", "p521"])
def test_each_kind_of_key_signs_and_verifies(door: Door, kind: str) -> None:
    door.private, door.public = keys(door.folder, kind, name=kind)
    (door.out / "weights.sig").unlink()
    door.decide()
    assert (door.out / "weights.sig").exists() == (kind != "ed25519")
    assert door.admit().admitted, door.admit().refusals


def command(door: Door, *more: str) -> list[str]:
    return [
        "admit", str(door.manifest), "--attestation", str(door.attestation), "--key", str(door.public),
        "--policy", str(door.policy), *more,
    ]  # fmt: skip


def test_the_command_says_why_and_exits_so(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(door, "--json")) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["admitted"] is True
    assert "ADMITTED" in err
    assert "UNSAFE" in err, "the fake engine is said"
    looser(door)
    flip(door)
    assert main(command(door, "--json")) == 1
    out, err = capsys.readouterr()
    assert {r["code"] for r in json.loads(out)["refusals"]} == {"policy", "files"}
    assert err.count("refused: ") == 3, "the file, the weights as a whole, and the policy"
    assert "REFUSED" in err


@pytest.mark.parametrize("gone", ["manifest", "attestation", "public", "policy"])
def test_what_the_operator_names_must_be_there(
    door: Door, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = getattr(door, gone)
    path.unlink()
    assert main(command(door)) == 2
    assert path.name in capsys.readouterr().err


def test_a_private_key_is_no_key_to_verify_with(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    door.public = door.private
    assert main(command(door)) == 2
    assert "which no verifier should hold" in capsys.readouterr().err


@pytest.mark.parametrize("age", ["", "30", "-1d", "0d", "1y", "d", "1d2h"])
def test_an_age_that_is_none(door: Door, age: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(door, "--max-age", age)) == 2
    assert "--max-age" in capsys.readouterr().err
