"""Evaluation data from a hub, through ``datasets``, against a server of the test's own."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from checkweigh import canonical

COMMIT = "0123456789abcdef0123456789abcdef01234567"
README = b"---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: test, path: data/test.jsonl}\n---\n"
SOURCE = f"hf:owner/data@{COMMIT}"
CARD = {
    "schema": "checkweigh/evalset@1", "name": "hubs", "version": "1.0.0", "kind": "generation", "licence": "CC0",
    "description": "d", "source": SOURCE, "config": "main", "split": "test", "digest": "sha256:" + "0" * 64,
    "scorer": {"name": "reply_check", "version": 1}, "columns": {"prompt": "q", "references": "a"},
}  # fmt: skip


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as one small data set at one commit asks for."""

    files: dict[str, bytes] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        path, base = self.path.split("?")[0], "/api/datasets/owner/data/"
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.files.items()
        ]
        if path.startswith(f"{base}revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(json.dumps({"id": "owner/data", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"{base}tree/{COMMIT}"):
            below = path.removeprefix(f"{base}tree/{COMMIT}").strip("/")
            self.answer(json.dumps([e for e in entries if str(e["path"]).startswith(below)]).encode())
        elif (name := path.removeprefix(f"/datasets/owner/data/resolve/{COMMIT}/")) in self.files:
            self.answer(self.files[name])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    rows = [{"q": f"question {i}?", "a": f"answer {i}", "more": i} for i in range(5)]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    Hub.files = {"README.md": README, "data/test.jsonl": data}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def check(endpoint: str, home: Path, **card: object) -> tuple[int, str, str]:
    """``evalset check`` of a set with that card, in a process of its own: settings are read at import."""
    folder = home / "hubs"
    folder.mkdir(parents=True, exist_ok=True)
    document = {key: value for key, value in (CARD | card).items() if value is not None}
    (folder / "card.yaml").write_text(yaml.safe_dump(document))
    environment = os.environ | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "CHECKWEIGH_HOME": str(home / "own"),
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "checkweigh", "evalset", "check", str(folder), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_hub_data_is_pinned_by_its_rows_and_read_again_offline(hub: str, tmp_path: Path) -> None:
    code, out, _ = check(hub, tmp_path)
    found = json.loads(out)
    assert (code, found["pinned"], found["items"]) == (2, False, 5)
    expected = [
        {
            "id": f"row-{i + 1:06d}", "cluster": f"row-{i + 1:06d}", "stratum": "all",
            "messages": [{"role": "user", "content": f"question {i}?"}],
            "check": {"kind": "phrase", "values": [f"answer {i}"]},
        }
        for i in range(5)
    ]  # fmt: skip
    assert found["digest"] == canonical.digest(expected)
    code, out, err = check("http://127.0.0.1:9", tmp_path, digest=found["digest"])  # nobody listens there
    assert (code, json.loads(out)["items"]) == (0, 5), err
    Hub.files["data/test.jsonl"] = Hub.files["data/test.jsonl"].replace(b"answer 3", b"answer 4")
    code, out, _ = check(hub, tmp_path / "fresh", digest=found["digest"])
    moved = json.loads(out)
    assert code == 2
    assert moved["digest"] != found["digest"]
    assert moved["findings"][0]["text"].endswith(f"expected {found['digest']}, found {moved['digest']}")


def test_without_a_hub_there_is_no_set(tmp_path: Path) -> None:
    code, out, err = check("http://127.0.0.1:9", tmp_path)
    assert (code, out) == (2, "")
    assert f"{SOURCE}: not in the local cache, and the hub cannot be reached" in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"source": f"hf:owner/other@{COMMIT}"}, "cannot be fetched ("),
        ({"split": "train"}, "cannot be loaded ("),
        ({"config": "small"}, "cannot be loaded ("),
        ({"columns": {"prompt": "qq", "references": "a"}}, "columns.prompt: expected one of q, a, more, found 'qq'"),
    ],
)  # fmt: skip
def test_what_the_hub_does_not_have(hub: str, tmp_path: Path, card: dict[str, object], words: str) -> None:
    code, out, err = check(hub, tmp_path, **card)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())
    assert "Traceback" not in err


def test_hub_rows_with_null_cells(hub: str, tmp_path: Path) -> None:
    Hub.files["data/test.jsonl"] += b'{"q": "question 5?", "a": null, "more": 5}\n'
    code, out, err = check(hub, tmp_path)
    assert (code, out) == (2, "")
    assert f"{SOURCE}:6: a: expected a value, found null" in " ".join(err.split())
