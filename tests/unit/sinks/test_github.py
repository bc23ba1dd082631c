"""One comment, ours, in place; and nothing of the token anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.github_server import BOT, FakeGithub, running

from checkweigh.cli import main
from checkweigh.errors import BadInput
from checkweigh.report.pull_request import marker
from checkweigh.sinks.github import Github, GithubError

TOKEN = "ghs_notForAnyone0123456789"
STRANGER = {"login": "mallory", "type": "User"}
MARK = marker("checkweigh")


@pytest.fixture
def fake() -> Iterator[FakeGithub]:
    with running(TOKEN) as fake:
        yield fake


def client(fake: FakeGithub) -> Github:
    return Github(repository="o/r", token=TOKEN, api=fake.url, pause_s=0.01)


def test_a_second_run_updates_the_comment_of_the_first(fake: FakeGithub) -> None:
    for i in range(250):  # on the third page
        fake.add(7, f"comment {i}", STRANGER)
    first = client(fake).put_comment(7, MARK, f"{MARK}\none")
    second = client(fake).put_comment(7, MARK, f"{MARK}\ntwo")
    assert first == second == fake.comments[7][250]["html_url"]
    assert [c["body"] for c in fake.comments[7][250:]] == [f"{MARK}\ntwo"]


def test_comments_of_other_jobs_and_of_strangers_are_left_alone(fake: FakeGithub) -> None:
    fake.add(7, f"{MARK}\n## ✅ checkweigh: pass", STRANGER)
    fake.add(7, f"{marker('other')}\nanother job's", BOT)
    fake.add(7, f"quoted: {MARK}", BOT)
    client(fake).put_comment(7, MARK, f"{MARK}\nours")
    assert [c["body"] for c in fake.comments[7]][-1] == f"{MARK}\nours"
    assert len(fake.comments[7]) == 4


def test_a_person_s_token_updates_that_person_s_comment() -> None:
    me = {"login": "release-manager", "type": "User"}
    with running(TOKEN, me) as fake:
        fake.add(7, f"{MARK}\na bot's", BOT)
        fake.add(7, f"{MARK}\nmine", me)
        client(fake).put_comment(7, MARK, f"{MARK}\nnew")
        assert [c["body"] for c in fake.comments[7]] == [f"{MARK}\na bot's", f"{MARK}\nnew"]


def test_nothing_is_made_where_nothing_is_to_be_said(fake: FakeGithub) -> None:
    assert client(fake).put_comment(7, MARK, f"{MARK}\nnothing", create=False) == ""
    assert fake.comments == {}


def test_a_server_that_is_busy_is_asked_again_and_a_refusal_is_not(fake: FakeGithub) -> None:
    fake.answers = [500, 502]
    client(fake).put_comment(7, MARK, f"{MARK}\none")
    assert len(fake.comments[7]) == 1
    fake.answers = [403, 403]
    with pytest.raises(GithubError, match=r"GitHub refused GET /repos/o/r/issues/7/comments: 403") as caught:
        client(fake).put_comment(7, MARK, "x")
    assert TOKEN not in str(caught.value) + repr(client(fake))


def test_a_redirect_is_not_followed(fake: FakeGithub) -> None:
    fake.answers = [403, 302]
    with pytest.raises(GithubError, match="302"):
        client(fake).put_comment(7, MARK, "x")
    assert not any("elsewhere" in request for request in fake.seen)


def test_a_server_that_is_not_there() -> None:
    github = Github(repository="o/r", token=TOKEN, api="http://127.0.0.1:9", pause_s=0.0)
    with pytest.raises(GithubError, match="GitHub did not take GET"):
        github.put_comment(7, MARK, "x")


def test_what_is_missing_in_the_environment_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REPOSITORY", "TOKEN", "API_URL"):
        monkeypatch.delenv(f"GITHUB_{name}", raising=False)
    with pytest.raises(BadInput, match=r"(?s)GITHUB_REPOSITORY.*GITHUB_TOKEN"):
        Github.from_environment()
    monkeypatch.setenv("GITHUB_API_URL", "file:///etc")
    with pytest.raises(BadInput, match="GITHUB_API_URL"):
        Github.from_environment()


def test_the_command_never_leaves_an_old_pass_beside_a_run_that_broke(
    fake: FakeGithub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_API_URL", fake.url)
    monkeypatch.setenv("GITHUB_REPOSITORY", "o/r")
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    monkeypatch.delenv("GITHUB_RUN_ID", raising=False)
    arguments = ["ci", "comment", "--pull-request", "7", "--out", str(tmp_path)]
    (tmp_path / "comment.md").write_text(f"{MARK}\n## ✅ pass\n")
    (tmp_path / "ci.json").write_text(json.dumps({"outcomes": [1]}))
    assert main(arguments) == 0
    assert fake.comments[7][0]["body"] == f"{MARK}\n## ✅ pass\n"
    (tmp_path / "ci.json").unlink()
    assert main(arguments) == 0
    assert "ended without results, which is no pass" in fake.comments[7][0]["body"]
    (tmp_path / "ci.json").write_text(json.dumps({"outcomes": []}))
    assert main(["ci", "comment", "--pull-request", "8", "--out", str(tmp_path)]) == 0
    assert list(fake.comments) == [7]
    fake.answers = [403] * 9
    assert main(arguments) == 4
    assert TOKEN not in "".join(capsys.readouterr())
