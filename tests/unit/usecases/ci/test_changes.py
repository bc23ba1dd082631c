"""What a pull request changed: never "nothing" when that is not known, and a baseline as it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.scratch import Scratch
from tests.unit.usecases.gate_bench import GateBench

from checkweigh.errors import PinMismatch
from checkweigh.sources.documents import read_manifest
from checkweigh.sources.pin import pin, verify
from checkweigh.usecases.ci.changes import changes_since

SERVED = "manifests/served.yaml"


@pytest.fixture
def scratch(bench: GateBench) -> Scratch:
    return Scratch(bench)


def found(scratch: Scratch, *more: str) -> dict[str, Any]:
    """``changed --json`` against main; fails unless it exits 0."""
    assert scratch.bench.run("changed", "--base", "main", "--json", *more) == 0, scratch.bench.stderr
    value: dict[str, Any] = json.loads(scratch.bench.stdout)
    return value


def refused(scratch: Scratch, *more: str, base: str = "main") -> str:
    """What ``changed`` says when it exits 2, and prints nothing."""
    assert scratch.bench.run("changed", "--base", base, "--json", *more) == 2
    assert scratch.bench.stdout == ""
    return scratch.bench.stderr


def only(value: dict[str, Any], kind: str = "manifests") -> dict[str, Any]:
    (one,) = value[kind]
    return dict(one)


def test_nothing_changed(scratch: Scratch) -> None:
    (scratch.root / "README.md").write_text("hello")
    scratch.commit("words")
    value = found(scratch)
    assert (value["manifests"], value["policies"], value["evalsets"]) == ([], [], [])
    assert value["merge_base"] == scratch.git("rev-parse", "main")


def test_an_edited_manifest_is_gated_against_itself_at_the_merge_base(scratch: Scratch) -> None:
    scratch.manifest("served", {"bias_nats": 0.2})
    scratch.commit("edit")
    scratch.git("checkout", "-q", "main")
    scratch.manifest("served", {"bias_nats": 9.0})
    scratch.commit("main moved on")
    scratch.git("checkout", "-q", "change")
    one = only(found(scratch))
    assert (one["path"], one["status"], one["need"], one["baseline"]) == (SERVED, "modified", "gate", SERVED)
    with changes_since("main", None, scratch.root) as plan:
        before = verify(plan.trees.before / SERVED)
        assert "bias_nats" not in before.manifest.engine.options, "neither the change nor main's later one"
        assert before.pins.record_digest() == one["baseline_pins"]
        assert not (plan.trees.before / SERVED).stat().st_mode & 0o222
    assert not plan.trees.before.exists()


def test_what_is_not_committed_counts(scratch: Scratch) -> None:
    scratch.manifest("served", {"bias_nats": 0.2})
    assert only(found(scratch))["need"] == "gate"
    scratch.git("checkout", "-q", ".")
    scratch.manifest("other", {})
    assert "manifests/other.yaml: it is new; expected --baseline" in refused(scratch)


def test_a_pure_rename_needs_nothing(scratch: Scratch) -> None:
    for suffix in (".yaml", ".lock.json"):
        scratch.git("mv", f"manifests/served{suffix}", f"manifests/renamed{suffix}")
    scratch.edit("manifests/renamed.yaml", name="renamed", comment="another name, the same model")
    scratch.commit("rename")
    one = only(found(scratch))
    assert (one["path"], one["status"], one["need"]) == ("manifests/renamed.yaml", "renamed", "nothing")
    assert "renamed from manifests/served.yaml" in one["because"]


def test_files_that_are_looked_for_in_another_place_are_verified_there(
    scratch: Scratch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A place is no pin, so that the lock is still current; whether the files are there is not."""
    other = shutil.copytree(tiny_model_dir, tmp_path / "other-model")
    scratch.edit(SERVED, model={"source": f"path:{other}"})
    scratch.commit("another place")
    one = only(found(scratch))
    assert (one["need"], one["status"]) == ("verify", "modified")
    assert "looked for in another place" in one["because"]
    (scratch.root / "moved").mkdir()
    for suffix in (".yaml", ".lock.json"):
        scratch.git("mv", f"manifests/served{suffix}", f"moved/served{suffix}")
    scratch.commit("another folder")
    assert only(found(scratch))["need"] == "verify"


def test_a_rename_that_changes_the_model_is_gated_against_the_old_name(scratch: Scratch) -> None:
    for suffix in (".yaml", ".lock.json"):
        scratch.git("mv", f"manifests/served{suffix}", f"manifests/renamed{suffix}")
    scratch.edit("manifests/renamed.yaml", sampling={"max_tokens": 8})
    pin(scratch.root / "manifests/renamed.yaml")
    scratch.commit("rename and edit")
    one = only(found(scratch))
    assert (one["status"], one["need"], one["baseline"]) == ("renamed", "gate", SERVED)


def test_a_deleted_manifest_is_told_and_needs_nothing(scratch: Scratch) -> None:
    scratch.git("rm", "-q", SERVED, "manifests/served.lock.json")
    scratch.commit("gone")
    one = only(found(scratch))
    assert (one["status"], one["need"]) == ("deleted", "nothing")


def test_renamed_to_what_is_no_manifest_is_deleted(scratch: Scratch) -> None:
    scratch.git("mv", SERVED, "manifests/served.yaml.disabled")
    scratch.commit("disabled")
    one = only(found(scratch))
    assert (one["path"], one["status"]) == (SERVED, "deleted")


def test_a_new_manifest_is_gated_against_the_declared_baseline_as_it_was(scratch: Scratch) -> None:
    scratch.manifest("next", {"bias_nats": 0.2})
    scratch.manifest("served", {"bias_nats": 9.0})  # the same change may not move its own baseline
    scratch.commit("new")
    value = found(scratch, "--baseline", f"./{SERVED}")
    by_path = {one["path"]: one for one in value["manifests"]}
    one = by_path["manifests/next.yaml"]
    assert (one["status"], one["need"], one["baseline"]) == ("added", "gate", SERVED)
    assert one["baseline_pins"] == by_path[SERVED]["baseline_pins"]
    assert "found no manifests/none.yaml" in refused(scratch, "--baseline", "manifests/none.yaml")


def test_the_first_baseline_is_verified_and_a_copy_of_it_too(scratch: Scratch) -> None:
    scratch.git("checkout", "-q", "--orphan", "empty")
    scratch.git("rm", "-rfq", ".")
    base = scratch.commit("nothing yet")
    scratch.git("checkout", "-q", "-b", "first")
    scratch.git("checkout", "-q", "main", "--", ".")
    scratch.commit("first")
    assert scratch.bench.run("changed", "--base", base, "--baseline", SERVED, "--json") == 0
    assert only(json.loads(scratch.bench.stdout))["need"] == "verify"
    scratch.git("checkout", "-q", "change")
    scratch.manifest("copy", {})
    scratch.commit("copy")
    one = only(found(scratch, "--baseline", SERVED))
    assert (one["need"], one["because"]) == ("verify", f"its pins are those of {SERVED}")


def test_a_missing_and_a_stale_lock_are_bad_input_and_told_together(scratch: Scratch) -> None:
    scratch.manifest("second", {})
    scratch.git("checkout", "-q", "main")
    scratch.commit("two")
    scratch.git("checkout", "-q", "-B", "change", "main")
    scratch.edit(SERVED, sampling={"max_tokens": 8})
    (scratch.root / "manifests/second.lock.json").unlink()
    scratch.commit("careless")
    said = refused(scratch)
    assert "manifests/served.lock.json: pins.manifest: expected sha256:" in said
    assert "second.lock.json: expected the lock of second.yaml" in said


def test_a_changed_lock_alone_is_gated(scratch: Scratch) -> None:
    lock = scratch.root / "manifests/served.lock.json"
    value = json.loads(lock.read_text())
    value["pins"]["weights"] = dict.fromkeys(value["pins"]["weights"], "sha256:" + "0" * 64)
    lock.write_text(json.dumps(value))
    scratch.commit("other weights")
    assert only(found(scratch))["need"] == "gate"


def test_a_manifest_that_was_not_pinned_before_is_as_new(scratch: Scratch) -> None:
    scratch.git("checkout", "-q", "main")
    (scratch.root / "manifests/served.lock.json").unlink()
    scratch.commit("unpinned")
    scratch.git("checkout", "-q", "-B", "change", "main")
    pin(scratch.root / SERVED)
    scratch.commit("pinned")
    assert "served.yaml: it was not pinned before; expected --baseline" in refused(scratch)


def test_a_manifest_that_stops_being_one_is_bad_input(scratch: Scratch) -> None:
    (scratch.root / SERVED).write_text("name: nothing of yours\n")
    scratch.commit("hide it")
    assert "manifests/served.yaml:1: schema: expected this key" in refused(scratch)


@pytest.mark.parametrize(
    "disguise",
    [
        '{name: "x", "\\x73chema": "\\x63heckweigh/manifest@1"}',
        "name: a\nschema:   'checkweigh/manifest@1'\n",
        "schema: checkweigh/manifest@1\nname: [\n",
    ],
)
def test_a_manifest_in_disguise_is_seen(scratch: Scratch, disguise: str) -> None:
    (scratch.root / "elsewhere.yml").write_text(disguise)
    scratch.commit("disguise")
    assert "elsewhere.yml" in refused(scratch)


def test_what_only_speaks_of_manifests_is_none(scratch: Scratch) -> None:
    embedded = "kind: ConfigMap\ndata: {served.yaml: 'schema: checkweigh/manifest@1'}\n"
    (scratch.root / "deploy.yaml").write_text(f"{embedded}---\n{embedded}")
    (scratch.root / "notes.md").write_text("schema: checkweigh/manifest@1\n")
    (scratch.root / "folder.yaml").mkdir()
    scratch.commit("words about it")
    assert found(scratch)["manifests"] == []


def test_a_copy_is_new_whatever_git_is_set_to(scratch: Scratch) -> None:
    scratch.git("config", "diff.renames", "copies")
    for suffix in (".yaml", ".lock.json"):
        shutil.copy(scratch.root / f"manifests/served{suffix}", scratch.root / f"manifests/copy{suffix}")
    scratch.edit(SERVED, comment="touched, so that git looks for copies")
    scratch.commit("copy")
    value = found(scratch, "--baseline", SERVED)
    assert {one["path"]: one["status"] for one in value["manifests"]} == {
        "manifests/copy.yaml": "added",
        SERVED: "modified",
    }


def test_a_template_that_a_manifest_names_affects_it(scratch: Scratch) -> None:
    template = scratch.root / "templates" / "chat.jinja"
    template.parent.mkdir()
    model = Path(read_manifest(scratch.root / SERVED).model.source.removeprefix("path:"))
    shutil.copy(model / "chat_template.jinja", template)
    scratch.git("checkout", "-q", "main")
    scratch.edit(SERVED, prompts={"chat_template": "path:../templates/chat.jinja"})
    pin(scratch.root / SERVED)
    scratch.commit("a template of its own")
    scratch.git("checkout", "-q", "-B", "change", "main")
    template.write_text(template.read_text() + " ")
    scratch.commit("edit the template alone")
    one = only(found(scratch))
    assert (one["need"], one["because"]) == (
        "verify",
        "the pins are the same, though templates/chat.jinja changed",
    )
    pin(scratch.root / SERVED)
    scratch.commit("pin it")
    one = only(found(scratch))
    assert (one["need"], one["because"]) == ("gate", "its pins differ, and templates/chat.jinja changed")
    with changes_since("main", None, scratch.root) as plan:
        verify(plan.trees.before / SERVED)  # with the template as it was


def test_weights_that_git_does_not_hold_are_found_again(scratch: Scratch) -> None:
    model = Path(read_manifest(scratch.root / SERVED).model.source.removeprefix("path:"))
    scratch.git("checkout", "-q", "main")
    shutil.copytree(model, scratch.root / "models" / "tiny")
    (scratch.root / ".gitignore").write_text("/home/\n/out/\n*.safetensors\n")
    scratch.edit(SERVED, model={"source": "path:../models/tiny"})
    pin(scratch.root / SERVED)
    scratch.commit("weights beside the repository's files")
    scratch.git("checkout", "-q", "-B", "change", "main")
    scratch.edit(SERVED, sampling={"max_tokens": 8})
    pin(scratch.root / SERVED)
    scratch.commit("edit")
    with changes_since("main", None, scratch.root) as plan:
        assert (plan.trees.before / "models/tiny").is_symlink(), "nothing in it has changed"
        assert verify(plan.trees.before / SERVED).pins.record_digest() == plan.manifests[0].baseline_pins


def test_weights_beside_a_changed_file_are_found_again_with_the_file_as_it_was(scratch: Scratch) -> None:
    model = Path(read_manifest(scratch.root / SERVED).model.source.removeprefix("path:"))
    scratch.git("checkout", "-q", "main")
    shutil.copytree(model, scratch.root / "models/tiny")
    (scratch.root / ".gitignore").write_text("/home/\n/out/\n*.safetensors\n")
    scratch.edit(SERVED, model={"source": "path:../models/tiny"})
    pin(scratch.root / SERVED)
    scratch.commit("weights beside the repository's files")
    scratch.git("checkout", "-q", "-B", "change", "main")
    template = scratch.root / "models/tiny/chat_template.jinja"
    before = template.read_text()
    template.write_text("{{ messages[0].content }}")
    pin(scratch.root / SERVED)
    scratch.commit("another template")
    with changes_since("main", None, scratch.root) as plan:
        old = plan.trees.before / "models/tiny"
        assert not old.is_symlink()
        assert not (old / "model.safetensors").is_symlink()
        assert (old / "chat_template.jinja").read_text() == before
        assert verify(plan.trees.before / SERVED).pins.record_digest() == plan.manifests[0].baseline_pins


def test_weights_outside_of_the_repository_are_found_again(
    scratch: Scratch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = Path(read_manifest(scratch.root / SERVED).model.source.removeprefix("path:"))
    outside = tmp_path_factory.mktemp("outside") / "model"
    shutil.copytree(model, outside)
    scratch.git("checkout", "-q", "main")
    scratch.edit(SERVED, model={"source": f"path:{os.path.relpath(outside, scratch.root / 'manifests')}"})
    pin(scratch.root / SERVED)
    scratch.commit("weights outside")
    scratch.git("checkout", "-q", "-B", "change", "main")
    scratch.edit(SERVED, sampling={"max_tokens": 8})
    pin(scratch.root / SERVED)
    scratch.commit("edit")
    with changes_since("main", None, scratch.root) as plan:
        assert verify(plan.trees.before / SERVED).pins.record_digest() == plan.manifests[0].baseline_pins
        (outside / "tokenizer_config.json").write_text("{}")
        with pytest.raises(PinMismatch, match="tokenizer_config"):
            verify(plan.trees.before / SERVED)


def test_policies_and_sets(scratch: Scratch) -> None:
    policy = scratch.root / "gates/test.yaml"
    rules = yaml.safe_load(policy.read_text())
    rules["checks"][0]["margin"] = 0.5
    policy.write_text(yaml.safe_dump(rules))
    shutil.copy(policy, scratch.root / "gates/new.yaml")
    items = scratch.root / "evalsets/prose/items.jsonl"
    items.write_text(items.read_text().replace("document", "Document", 1))
    scratch.commit("edit")
    value = found(scratch)
    needs = {one["path"]: (one["status"], one["need"]) for one in value["policies"]}
    assert needs == {"gates/test.yaml": ("modified", "policy diff"), "gates/new.yaml": ("added", "nothing")}
    one = only(value, "evalsets")
    assert (one["path"], one["need"]) == ("evalsets/prose/card.yaml", "evalset check")
    assert "evalsets/prose/items.jsonl changed" in one["because"]


def test_what_cannot_be_known_is_never_nothing(
    scratch: Scratch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert "expected a commit, branch or tag" in refused(scratch, base="no-such-branch")
    assert "found '--output=x'" in refused(scratch, base="--output=x")
    scratch.git("checkout", "-q", "--orphan", "stranger")
    scratch.commit("another history")
    scratch.git("checkout", "-q", "change")
    assert "they have no common history" in refused(scratch, base="stranger")
    outside = tmp_path_factory.mktemp("outside")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(outside)
        assert "not a git repository" in refused(scratch)
        patch.setenv("PATH", str(outside))
        assert "git is not installed here" in refused(scratch)


def test_a_shallow_clone_is_refused_unless_the_base_is_an_ancestor(
    scratch: Scratch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = scratch.git("rev-parse", "main")
    scratch.manifest("served", {"bias_nats": 0.2})
    scratch.commit("one")
    scratch.commit("two")
    for depth, code, said in (
        (1, 2, "this clone is shallow"),
        (2, 2, "this clone is shallow"),
        (3, 0, "gate"),
    ):
        clone = tmp_path_factory.mktemp(f"depth-{depth}")
        source = f"file://{scratch.root}"
        scratch.git("clone", "-q", "--depth", str(depth), "-b", "change", source, str(clone))
        if depth == 2:
            scratch.git("fetch", "-q", "--depth", "1", "origin", "main:main", cwd=clone)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(clone)
            assert scratch.bench.run("changed", "--base", base, "--json") == code
            assert said in scratch.bench.stderr + scratch.bench.stdout
