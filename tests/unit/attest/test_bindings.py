"""What a verdict rests on beside the candidate: baseline, anchor, sets, trace and tool are bound, and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.attest.conftest import Door, put_evalset
from tests.unit.attest.test_admit import OTHER, command, flip, predicate

from checkweigh import canonical
from checkweigh.attest.bindings import PolicyContent, content_refusals
from checkweigh.attest.keys import private_key
from checkweigh.cli import main
from checkweigh.errors import PinMismatch, SigningError
from checkweigh.records.attestation import Attested
from checkweigh.sources import digests
from checkweigh.sources.digests import file_digest
from checkweigh.sources.pin import pin, verify
from checkweigh.usecases.release.attest import attest
from checkweigh.usecases.release.policy_content import read_policy_content

ENDPOINT = ("weights", "configuration")


def texts(door: Door, **changes: Any) -> str:
    return "\n".join(str(refusal) for refusal in door.admit(**changes).refusals)


def other_items(door: Door) -> Path:
    return put_evalset(door.folder / "evalsets", items=4)


def other_scorer(door: Door) -> Path:
    return put_evalset(door.folder / "evalsets", scorer={"name": "choice_probability", "version": 2})


def two_places(door: Door) -> Path:
    """An equal copy in the other folder where a gate looks."""
    return put_evalset(door.policy.parent / "evalsets")


def gone(door: Door) -> Path:
    path = door.folder / "evalsets" / "sample-set" / "card.yaml"
    path.unlink()
    return path


def damaged(door: Door) -> Path:
    path = door.folder / "evalsets" / "sample-set" / "items.jsonl"
    path.write_text("{}")
    return path


@pytest.mark.parametrize("change", [other_items, other_scorer, two_places, gone, damaged])
def test_sets_of_another_content_than_those_beside_the_policy_are_refused(
    door: Door, change: Callable[[Door], Path]
) -> None:
    place = change(door)
    assert door.codes() == {"evalsets"}
    said = texts(door)
    if change in (other_items, other_scorer):
        assert "measured on other items or by another scorer" in said
    else:
        assert "--evalset sample-set=sha256:..." in said
        assert place.parent.name in said


def test_wording_and_format_of_a_set_are_not_what_is_bound(door: Door) -> None:
    put_evalset(door.folder / "evalsets", description="said in other words", version="2.0.0")
    items = door.folder / "evalsets" / "sample-set" / "items.jsonl"
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    data = "".join(json.dumps(row, indent=None, separators=(", ", " : ")) + "\n" for row in rows).encode()
    items.write_bytes(data)
    card = items.with_name("card.yaml")
    card.write_text(
        yaml.safe_dump(yaml.safe_load(card.read_text()) | {"digest": canonical.digest_bytes(data)})
    )
    assert door.admit().admitted


def test_without_the_sets_their_digests_can_be_stated(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    digest = door.evalset("sample-set").content_digest()
    assert main(["evalset", "check", str(door.folder / "evalsets/sample-set")]) == 0
    assert f"--evalset sample-set={digest}" in capsys.readouterr().err
    gone(door)
    assert main(command(door, "--evalset", f"sample-set={digest}")) == 0, capsys.readouterr().err
    assert main(command(door, "--evalset", f"sample-set={OTHER}")) == 1
    assert "refused: evalsets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([f"sample-set={OTHER}"] * 2, "expected once, found twice"),
        ([f"simple-set={OTHER}"], "expected one of sample-set"),
        (["sample-set"], "expected NAME=sha256:"),
        (["sample-set=sha256:12"], "expected NAME=sha256:"),
    ],
)
def test_a_digest_that_is_none_is_bad_input(
    door: Door, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(door, *(part for word in words for part in ("--evalset", word)))) == 2
    assert expected in capsys.readouterr().err


@pytest.fixture
def champion(door: Door) -> Path:
    """What serves now, and the attested baseline."""
    path = door.folder / "champion.yaml"
    document = yaml.safe_load(door.manifest.read_text()) | {"name": "champion"}
    path.write_text(yaml.safe_dump(document | {"sampling": {"max_tokens": 9}}))
    pin(path)
    door.measured_against(path)
    return path


def test_the_demanded_baseline_must_be_the_attested_one(
    door: Door, champion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(door, "--baseline", str(champion))) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(command(door, "--baseline", str(door.manifest))) == 1
    assert "refused: baseline: compared with " in capsys.readouterr().err
    assert main(command(door, "--baseline", "nowhere.yaml")) == 2
    assert main(command(door, "--baseline", "models:/m@champion", "--mlflow", "none")) == 2


def test_a_baseline_under_another_name_or_at_another_place_is_the_same(door: Door, champion: Path) -> None:
    document = yaml.safe_load(champion.read_text()) | {"name": "another"}
    (door.folder / "elsewhere").mkdir()
    moved = door.folder / "elsewhere" / "another.yaml"
    document["model"]["source"] = "path:../model"
    moved.write_text(yaml.safe_dump(document))
    pin(moved)
    assert door.admit(baseline=moved).admitted


def test_the_refusal_says_whether_settings_or_files_differ(door: Door, champion: Path) -> None:
    document = yaml.safe_load(champion.read_text())
    champion.write_text(yaml.safe_dump(document | {"limits": {"max_sequence": 256}}))
    pin(champion)
    assert "only the manifest's settings differ (pin 'manifest')" in texts(door, baseline=champion)
    champion.write_text(yaml.safe_dump(document))
    (door.model / "generation_config.json").write_text("{}")
    pin(champion)
    assert "settings are the same, files differ" in texts(door, baseline=champion)


def anchored(door: Door) -> Path:
    """The policy names an anchor; the verdict has it."""
    anchor = door.folder / "anchor.yaml"
    document = yaml.safe_load(door.manifest.read_text()) | {"name": "anchor", "sampling": {"max_tokens": 5}}
    anchor.write_text(yaml.safe_dump(document))
    pin(anchor)
    policy = yaml.safe_load(door.policy.read_text())
    policy["checks"][0]["against"] = "anchor"
    door.policy.write_text(yaml.safe_dump(policy | {"anchor": "../anchor.yaml"}))
    resolved, made = verify(anchor), door.decision()
    arm = made.baseline.model_copy(
        update={"name": "anchor", "pins": resolved.pins.record_digest(), "manifest": resolved.pins.manifest}
    )
    door.decide(anchor=arm)
    return anchor


def test_the_anchor_is_the_one_beside_the_policy(door: Door) -> None:
    anchor = anchored(door)
    assert door.admit().admitted, texts(door)
    assert any(line.startswith("anchor: anchor, pins ") for line in door.admit().lines(door.manifest))
    anchor.write_text(anchor.read_text().replace("max_tokens: 5", "max_tokens: 6"))
    pin(anchor)
    assert door.codes() == {"anchor"}
    anchor.unlink()
    assert door.codes() == {"anchor"}


def test_a_verdict_without_the_anchor_that_the_policy_names_is_refused(door: Door) -> None:
    anchored(door)
    door.decide()
    assert door.codes() == {"anchor"}


def test_a_trace_of_another_content_is_refused(door: Door) -> None:
    content = read_policy_content(door.policy, {})
    decision = door.decision(trace=OTHER)
    for trace, codes in ((OTHER, set()), (None, {"trace"}), ("sha256:" + "1" * 64, {"trace"})):
        ours = PolicyContent(policy=content.policy, evalsets=content.evalsets, trace=trace)
        found = content_refusals(decision, ours, accept_unverified=False)
        assert {refusal.code for refusal in found} == codes


@pytest.mark.parametrize("role", ["baseline", "candidate"])
def test_an_arm_that_nobody_could_verify_is_refused_unless_accepted(
    door: Door, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = getattr(door.decision(), role)
    door.decide(**{role: arm.model_copy(update={"unverified": ENDPOINT})})
    assert main(command(door)) == 1
    assert (
        f"refused: unverified: nobody could check the {role}'s weights, configuration"
        in capsys.readouterr().err
    )
    assert main(command(door, "--accept-unverified")) == 0
    assert "UNVERIFIED: weights, configuration" in capsys.readouterr().err


def test_a_pass_of_an_engine_whose_configuration_nobody_knows_is_refused(door: Door) -> None:
    assert predicate(lambda p: p["candidate"].update(identity=None))(door) == {"configuration"}
    assert predicate(lambda p: p["baseline"].update(identity=None))(door) == {"configuration"}


@pytest.mark.parametrize("field", sorted(f.alias or n for n, f in Attested.model_fields.items()))
def test_no_field_may_be_left_out(door: Door, field: str) -> None:
    door.sealed(lambda s: s["predicate"]["checkweigh"].pop(field))
    assert door.codes() == {"schema" if field == "schema" else "predicate"}


@pytest.mark.parametrize("field", ["pins", "manifest", "identity", "unverified", "unsafe", "measurements"])
@pytest.mark.parametrize("role", ["baseline", "candidate"])
def test_no_field_of_an_arm_may_be_left_out(door: Door, role: str, field: str) -> None:
    assert predicate(lambda p: p[role].pop(field))(door) == {"predicate"}


def test_the_tool_can_be_demanded(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    attested = door.admit().attested
    assert attested is not None
    assert main(command(door, "--tool", attested.tool.digest)) == 0
    assert main(command(door, "--tool", OTHER)) == 1
    assert "refused: tool: decided by" in capsys.readouterr().err


def test_a_change_without_effect_is_said_and_refused_where_the_policy_refuses_it(door: Door) -> None:
    door.decide(no_effect="engine.options changed and no output did")
    assert "engine.options changed and no output did" in door.admit().lines(door.manifest)
    policy = yaml.safe_load(door.policy.read_text())
    door.policy.write_text(yaml.safe_dump(policy | {"no_effect": "refuse"}))
    door.decide(no_effect="engine.options changed and no output did")
    assert door.codes() == {"no-effect"}


def test_admission_says_what_the_verdict_rests_on(
    door: Door, champion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(door, "--json")) == 0
    out, err = capsys.readouterr()
    ours = json.loads(out)
    attested = ours["attested"]
    for said in (
        f"baseline: {attested['baseline']['name']}, pins {attested['baseline']['pins'][7:19]}",
        f"sets: sample-set {attested['evalsets']['sample-set'][7:19]}",
        f"policy: release {attested['policy'][7:19]}",
        f"tool: {attested['tool']['version']} {attested['tool']['digest'][7:19]}",
        f"decided {attested['ended']}",
        "bytes read anew in ",
    ):
        assert said in err, said
    size = sum(path.stat().st_size for path in door.model.iterdir())
    assert 0 < ours["verified"]["bytes"] <= 2 * size
    assert ours["verified"]["seconds"] > 0


def deceive_memory(door: Door) -> None:
    """Flip a bit of the weights, and have the memory of digests say of them what it said before."""
    weights = next(door.model.glob("*.safetensors"))
    pinned = file_digest(weights)
    flip(door)
    remembered = digests._cache_file(digests._identity(weights, "file"))
    remembered.parent.mkdir(parents=True, exist_ok=True)
    remembered.write_text(pinned)
    assert file_digest(weights) == pinned


def test_a_deceived_memory_of_digests_admits_and_signs_nothing(door: Door) -> None:
    """The memory says of changed bytes what it said of the pinned ones, as after a write through a memory map."""
    resolved, decision = verify(door.manifest), door.decision()
    deceive_memory(door)
    assert verify(door.manifest).pins == resolved.pins, "deceived"
    assert main(["verify", str(door.manifest)]) == 2
    assert door.codes() == {"files"}
    door.attestation.unlink()
    with pytest.raises(PinMismatch, match=r"pins\.weights\.model\.safetensors"):
        attest(decision, [resolved], door.out, private_key(str(door.private)))
    assert not door.attestation.exists()


def test_what_was_pinned_again_meanwhile_is_not_signed(door: Door) -> None:
    resolved, decision = verify(door.manifest), door.decision()
    flip(door)
    pin(door.manifest)
    with pytest.raises(PinMismatch, match="pinned again meanwhile"):
        attest(decision, [resolved], door.out, private_key(str(door.private)))


def test_files_of_the_baseline_are_read_again_before_signing(door: Door, champion: Path) -> None:
    resolved = [verify(door.manifest), verify(champion)]
    document = yaml.safe_load(champion.read_text())
    champion.write_text(yaml.safe_dump(document | {"sampling": {"max_tokens": 10}}))
    with pytest.raises(PinMismatch, match=r"champion\.lock\.json"):
        attest(door.decision(), resolved, door.out, private_key(str(door.private)))


def test_a_decision_of_an_older_version_is_neither_signed_nor_waived_nor_promoted(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    made = door.decide()
    path = door.out / "decision.json"
    old = json.loads(path.read_text()) | {"schema_": "checkweigh/decision@1"}
    path.write_text(json.dumps({("schema" if k == "schema_" else k): v for k, v in old.items()}))
    with pytest.raises(SigningError, match="older version"):
        attest(
            made.model_copy(update={"schema_": "checkweigh/decision@1"}), [verify(door.manifest)], door.out,
            private_key(str(door.private)),
        )  # fmt: skip
    promote = [
        "promote",
        str(door.out),
        "--model",
        "m",
        "--policy",
        str(door.policy),
        "--mlflow",
        "http://127.0.0.1:1",
    ]
    assert main([*promote, "--first"]) == 1
    assert "refused: outdated: decided by an older version" in capsys.readouterr().err
    waive = ["waive", str(door.out), str(door.manifest), "--reason", "the other one burns", "--owner", "Ann"]
    assert main([*waive, "--key", str(door.private)]) == 2
    assert "decided by an older version" in capsys.readouterr().err


def test_a_verdict_on_other_intentions_is_refused(door: Door) -> None:
    """What the manifest declares to change decides which checks gate, and no pin holds it."""
    assert door.admit().admitted
    document = yaml.safe_load(door.manifest.read_text())
    door.manifest.write_text(yaml.safe_dump(document | {"intends": []}))
    said = "intends: judged was a candidate that intends shorter, this manifest intends nothing"
    assert said in texts(door)
