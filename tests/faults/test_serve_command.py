"""``checkweigh serve`` as a user runs it: a stock client, a killed engine, a killed guard, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from tests.conftest import WriteManifest
from tests.waiting import until

from checkweigh.cli import main

PIPELINE = Path(__file__).resolve().parents[2] / "pipeline"


@contextmanager
def served(*words: str, wait_s: float = 60.0) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """The address once it is ready, the process, and (after its end) what it said on stderr."""
    child = subprocess.Popen(
        [sys.executable, "-m", "checkweigh", "serve", *words, "--port", "0"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(PIPELINE)},
    )  # fmt: skip
    said: list[str] = []
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        assert line, child.stderr.read() if child.stderr else ""
        url = json.loads(line)["url"]
        until(lambda: status(url) == 200, wait_s, "readiness")
        yield url, child, said
    finally:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(30)
        child.kill()
        _, words_ = child.communicate()
        said.append(words_)


def status(url: str) -> int:
    with suppress(urllib.error.HTTPError, OSError):
        return int(urllib.request.urlopen(url.removesuffix("/v1") + "/readyz", timeout=2).status)
    return 503


def engine_of(child: subprocess.Popen[str]) -> psutil.Process:
    """The mock that the guard supervises."""
    below = psutil.Process(child.pid).children(recursive=True)
    (engine,) = [p for p in below if "mock-engine" in p.cmdline() and "-I" not in p.cmdline()]
    return engine


def chat(client: openai.OpenAI, tokens: int = 8) -> list[Any]:
    return list(
        client.chat.completions.create(
            model="served", messages=[{"role": "user", "content": "hello"}], max_tokens=tokens, stream=True
        )
    )


def test_a_stock_client_survives_a_killed_engine_and_nothing_is_left(write_manifest: WriteManifest) -> None:
    manifest = write_manifest("served", {"token_latency_s": 0.05})
    with served(str(manifest), "--logs", str(manifest.parent / "logs")) as (url, child, said):
        client = openai.OpenAI(base_url=url, api_key="unused", max_retries=0)
        assert [model.id for model in client.models.list()] == ["served"]
        assert len(chat(client)) >= 8
        stream = client.chat.completions.create(
            model="served", messages=[{"role": "user", "content": "hello"}], max_tokens=400, stream=True
        )
        next(iter(stream))
        engine = engine_of(child)
        engine.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(openai.APIError):
            list(stream)
        assert time.monotonic() - killed < 1
        until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 15)
        until(
            lambda: status(url) != 200, max(0.0, killed + 1 - time.monotonic()), "readiness tells the truth"
        )
        until(lambda: status(url) == 200, 15)
        assert len(chat(client)) >= 8
        again = engine_of(child)
    assert child.returncode == 0, said
    assert not again.is_running()
    assert "was killed by signal 9 (SIGKILL)" in said[0]
    assert "UNSAFE: served allows fake_engine" in said[0]
    assert re.search(r"admission: 75% of the KV cache the engine reports, 16 requests inside", said[0])


def test_a_killed_guard_leaves_no_engine(write_manifest: WriteManifest) -> None:
    manifest = write_manifest("served")
    with served(str(manifest), "--logs", str(manifest.parent / "logs")) as (_, child, _said):
        engine = engine_of(child)
        child.kill()
        child.wait()
        engine.wait(10)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--split", "90/10"], "expected two manifests"),
        (["MANIFEST", "MANIFEST"], "expected one manifest or two, found 3"),
        (["MANIFEST"], "either --split or --shadow"),
        (["MANIFEST", "--split", "90/20"], "sum to 100"),
        (["--host", "0.0.0.0"], "expected surface.keys"),
        (["--limits", "LIMITS"], "did you mean 'headroom'?"),
        (["--limits", "KEYS"], "CHECKWEIGH_NO_SUCH_KEY"),
    ],
)
def test_bad_input_is_exit_2_and_says_what(
    words: list[str], expected: str, write_manifest: WriteManifest, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest("served")
    limits, keys = manifest.parent / "guard.yaml", manifest.parent / "keys.yaml"
    limits.write_text("admission:\n  hedroom: 0.3\n  queue: many\n")
    keys.write_text("surface:\n  keys: {CHECKWEIGH_NO_SUCH_KEY: bulk}\n")
    given = [{"MANIFEST": str(manifest), "LIMITS": str(limits), "KEYS": str(keys)}.get(w, w) for w in words]
    assert main(["serve", str(manifest), *given]) == 2
    assert expected in capsys.readouterr().err


def test_an_engine_that_cannot_be_supervised_is_refused(
    write_manifest: WriteManifest, capsys: pytest.CaptureFixture[str]
) -> None:
    version = metadata.version("transformers")
    manifest = write_manifest("served", engine={"kind": "transformers", "version": version, "options": {}})
    assert main(["serve", str(manifest)]) == 2
    assert "expected vllm" in capsys.readouterr().err


def test_an_unpinned_manifest_is_refused(write_manifest: WriteManifest) -> None:
    assert main(["serve", str(write_manifest("served", pinned=False))]) == 2


def test_the_schema_of_a_guard_policy_can_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "guard"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["admission"]
