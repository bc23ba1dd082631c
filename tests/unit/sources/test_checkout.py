"""The repository that a gate speaks of: that of its documents, under a public name, and which of them it lacks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from checkweigh.sources.repository.checkout import Checkout, checkout_of, public_name


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "protocol.file.allow=always")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def put(path: Path, text: str = "x\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def repository(folder: Path) -> Path:
    """A repository whose one commit holds manifests/a.yaml and gates/p.yaml."""
    put(folder / "manifests/a.yaml")
    put(folder / "gates/p.yaml")
    put(folder / ".gitignore", "ignored/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return repository(tmp_path / "models")


def checkout(document: Path) -> Checkout:
    found = checkout_of(document)
    assert found is not None
    return found


def test_it_is_the_documents_repository_and_not_the_current_directory_s(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository(tmp_path / "here"))
    found = checkout(models / "manifests/a.yaml")
    assert found.name == "models"
    assert found.commit == git(models, "rev-parse", "HEAD")
    assert found.shown(models / "manifests/a.yaml") == "manifests/a.yaml"
    assert found.shown(Path("manifests/a.yaml")) == "a.yaml (elsewhere)"
    assert checkout_of(put(tmp_path / "outside/a.yaml")) is None


def test_a_hook_s_variables_name_no_other_repository(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(repository(tmp_path / "hooked") / ".git"))
    assert checkout(models / "manifests/a.yaml").name == "models"


def test_only_what_was_read_makes_it_dirty(models: Path) -> None:
    found = checkout(models / "manifests/a.yaml")
    read = [models / "manifests/a.yaml", models / "gates/p.yaml"]
    put(models / "notes.txt")
    put(models / "manifests/other.yaml")
    assert found.uncommitted(read) == ()
    put(models / "gates/p.yaml", "looser\n")
    assert found.uncommitted(read) == ("gates/p.yaml",)
    assert found.uncommitted([]) == ()


def test_untracked_and_ignored_documents_that_were_read_are_named(models: Path) -> None:
    found = checkout(models / "manifests/a.yaml")
    read = [
        put(models / "ignored/p.yaml"),
        put(models / "gates/new policy.yaml"),
        models / "manifests/a.yaml",
    ]
    assert found.uncommitted(read) == ("gates/new policy.yaml", "ignored/p.yaml")


def test_an_index_that_hides_a_change_hides_nothing(models: Path) -> None:
    git(models, "update-index", "--assume-unchanged", "gates/p.yaml")
    policy = put(models / "gates/p.yaml", "looser\n")
    assert git(models, "status", "--porcelain") == ""
    assert checkout(models / "manifests/a.yaml").uncommitted([policy]) == ("gates/p.yaml",)


def test_what_is_committed_while_a_gate_runs_was_not_read_from_that_commit(models: Path) -> None:
    found = checkout(models / "manifests/a.yaml")
    put(models / "gates/p.yaml", "looser\n")
    git(models, "commit", "-q", "-a", "-m", "later")
    assert found.commit != git(models, "rev-parse", "HEAD")
    assert found.uncommitted([models / "gates/p.yaml"]) == ("gates/p.yaml",)


def test_a_submodule_is_another_repository(models: Path, tmp_path: Path) -> None:
    git(models, "submodule", "add", "-q", str(repository(tmp_path / "sets")), "sets")
    git(models, "commit", "-q", "-m", "sets")
    found = checkout(models / "manifests/a.yaml")
    changed = put(models / "sets/gates/p.yaml", "another\n")
    assert found.uncommitted([changed]) == ()
    assert found.shown(changed) == "p.yaml (elsewhere)"


def test_a_link_leads_to_the_document_that_was_read(models: Path) -> None:
    link = models / "manifests/prod.yaml"
    link.symlink_to("a.yaml")
    found = checkout(link)
    assert found.shown(link) == "manifests/a.yaml"
    assert found.uncommitted([link]) == ()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/acme/models.git", "github.com/acme/models"),
        ("https://x-access-token:ghs_S3cret@github.com/acme/models", "github.com/acme/models"),
        ("https://S3cret@dev.azure.com/o/p/_git/r", "dev.azure.com/o/p/_git/r"),
        ("https://git.example.org:8443/a/b.git?private_token=S3cret#S3cret", "git.example.org:8443/a/b"),
        ("ssh://git:S3cret@example.org:22/a/b.git", "example.org:22/a/b"),
        ("git@github.com:acme/models.git", "github.com/acme/models"),
        ("user:S3cret@host.org:a/b", ""),
        ("https://host.org/user:S3cret@a/b", ""),
        ("https://[S3cret", ""),
        ("https://host.org:S3cret/a", ""),
        ("/srv/S3cret/models.git", ""),
        ("file:///srv/S3cret/models.git", ""),
        ("../models.git", ""),
        ("C:\\S3cret\\models", ""),
        ("ext::sh -c S3cret", ""),
        ("https://host.org/a\x1b[31m/b", ""),
        ("", ""),
    ],
)
def test_a_remote_s_name_has_no_secret_and_no_path_of_the_machine(url: str, name: str) -> None:
    assert public_name(url) == name


def test_the_remote_names_the_repository_and_else_its_folder(models: Path) -> None:
    git(models, "remote", "add", "fork", "git@example.org:fork/models.git")
    assert checkout(models / "manifests/a.yaml").name == "example.org/fork/models"
    git(models, "remote", "add", "origin", "https://me:S3cret@example.org/acme/models.git")
    assert checkout(models / "manifests/a.yaml").name == "example.org/acme/models"
    git(models, "remote", "set-url", "origin", str(models))
    assert checkout(models / "manifests/a.yaml").name == "models"
