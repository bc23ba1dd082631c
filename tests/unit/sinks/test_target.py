"""Where a gate is sent, and that no secret of an address or the environment is ever shown."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from checkweigh.errors import BadInput
from checkweigh.sinks.mlflow_target import (
    Target,
    artifact_root,
    masked,
    resolve_target,
    scrub,
)


def have(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """MLflow can be imported here, or cannot."""
    for name in ("mlflow", "sqlalchemy"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module if there else None)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("http://user:pass@host:5000/x", "http://host:5000/x"),
        ("http://host/x?token=abc#frag", "http://host/x"),
        ("postgresql://u:p%40ss@db/mlflow?password=abc", "postgresql://db/mlflow"),
        ("postgresql://u:p@s/s@db/mlflow", "postgresql://db/mlflow"),
        ("http://u:a\nb@host", "http://host"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_what_is_shown_has_no_secret(uri: str, shown: str) -> None:
    assert masked(uri) == Target(uri).shown == shown
    assert Target(uri).secret == (uri != shown)


def test_secrets_are_scrubbed_from_what_others_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-123456")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws/secret")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    uri = "http://me:p%40ss-word@host:5000?key=qwerty"
    text = f"\x1b[31mcannot reach {uri}: p@ss-word, p%40ss-word, qwerty\ntok-123456 aws/secret http://x:y@z parallel"
    shown = scrub(text, uri)
    assert shown.isprintable()
    assert not [s for s in ("ss-word", "qwerty", "tok-123456", "aws/secret", "x:y", "me:") if s in shown], (
        shown
    )
    assert "http://host:5000" in shown
    assert "parallel" in shown


def test_the_option_comes_first_then_mlflows_variable_then_this_machine(
    monkeypatch: pytest.MonkeyPatch, checkweigh_home: Path
) -> None:
    have(monkeypatch, True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    assert resolve_target("http://asked:5000") == Target("http://asked:5000")
    assert resolve_target("none") is None
    assert resolve_target(None) == Target("http://env:5000")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resolve_target(None) == Target(f"sqlite:///{checkweigh_home}/mlflow.db")


def test_a_relative_database_is_the_current_directorys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    have(monkeypatch, True)
    monkeypatch.chdir(tmp_path)
    assert resolve_target("sqlite:///runs.db") == Target(f"sqlite:///{tmp_path}/runs.db")


def test_without_mlflow_only_who_asks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_target(None) is None
    assert resolve_target("none") is None
    with pytest.raises(BadInput, match=r"MLflow is not installed here; pip install") as error:
        resolve_target("http://u:secret@host")
    assert "secret" not in str(error.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    assert resolve_target(None) == Target("http://env:5000"), "it waits until MLflow is installed"


@pytest.mark.parametrize("uri", ["", "host:5000", "/some/file", "ftp://host", "nonee"])
def test_what_is_no_address_is_bad_input(uri: str) -> None:
    with pytest.raises(BadInput, match=r"--mlflow: expected an address such as"):
        resolve_target(uri)


def test_artifacts_lie_beside_a_database_and_elsewhere_where_the_server_says(checkweigh_home: Path) -> None:
    assert artifact_root("sqlite:////data/x/mlflow.db") == "file:///data/x/mlartifacts"
    assert artifact_root("postgresql+psycopg://host/db") == (checkweigh_home / "mlartifacts").as_uri()
    assert artifact_root("http://host:5000") is None
    assert artifact_root("databricks") is None
