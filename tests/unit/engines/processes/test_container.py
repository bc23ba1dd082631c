"""A server in a container, with a docker of our own: one that keeps what it runs alive when its client dies."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.unit.engines.vllm.fake_vllm import write_environment, write_script
from tests.unit.engines.vllm.test_vllm import HELLO, QUICK, alive, make

from checkweigh.engines.processes.container import around, ending, runtime
from checkweigh.engines.spec import EngineSpec
from checkweigh.engines.vllm.engine import VllmEngine
from checkweigh.engines.vllm.server_launch import preflight
from checkweigh.errors import EngineDied, SourceError
from checkweigh.guard.supervision.launch_plan import vllm_plan
from checkweigh.records.manifest import EnvironmentSection

IMAGE = f"vllm/vllm-openai@sha256:{'ab' * 32}"
DOCKER = """#!{python}
import os, signal, subprocess, sys
from pathlib import Path
home = Path(__file__).parent
words = sys.argv[1:]
if words[:2] == ["image", "inspect"]:
    sys.exit(0 if words[2] == "{image}" else 1)
if words[0] == "inspect":
    print((home / words[-1]).read_text())
if words[:2] == ["rm", "--force"]:
    pid = int((home / words[2]).read_text()) if (home / words[2]).exists() else 0
    (home / words[2]).unlink(missing_ok=True)
    if pid and Path(f"/proc/{{pid}}").exists():
        os.kill(pid, signal.SIGKILL)
if words[0] == "run":
    at = words.index("{image}")
    (home / "options").write_text("\\n".join(words[:at]))
    command = [word if word != "0.0.0.0" else "127.0.0.1" for word in words[at + 1 :]]
    server = subprocess.Popen(["{inside}", *command], start_new_session=True)
    (home / words[words.index("--name") + 1]).write_text(str(server.pid))
    code = server.wait()
    (home / words[words.index("--name") + 1]).unlink(missing_ok=True)
    sys.exit(code)
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the docker that is found first."""
    write_environment(tmp_path / "env")
    folder = tmp_path / "docker"
    folder.mkdir()
    inside = tmp_path / "env" / "bin" / "python"
    script = folder / "docker"
    script.write_text(DOCKER.format(python=sys.executable, image=IMAGE, inside=inside))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield folder
    left = [p for p in psutil.process_iter() if alive(p) and str(inside) in " ".join(p.cmdline()[:1])]
    assert left == []


def spec_in(folder: Path, model: Path) -> EngineSpec:
    spec = make(folder.parent / "env", model)
    engine = spec.manifest.engine.model_copy(update={"environment": EnvironmentSection(image=IMAGE)})
    return replace(
        spec, manifest=spec.manifest.model_copy(update={"engine": engine}), python=None, image=IMAGE
    )


def test_a_container_serves_and_is_gone(docker: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    with VllmEngine(spec_in(docker, tiny_model_dir), log=tmp_path / "log", timeouts=QUICK) as engine:
        assert engine.render([HELLO])
        assert engine.resources().resident > 10 << 20
        (container,) = docker.glob("checkweigh-*")
        process = psutil.Process(int(container.read_text()))
        options = (docker / "options").read_text().splitlines()
        assert "never" in options  # it is not pulled
        assert any(word.startswith("127.0.0.1:") for word in options)
        assert engine.endpoint.key is not None
        assert not any(engine.endpoint.key in word for word in options)
    assert not alive(process)
    assert not container.exists()


def test_a_container_that_dies_is_named_and_gone(docker: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    write_script(docker.parent / "env", die="start", code=3, says="RuntimeError: no device")
    with pytest.raises(EngineDied, match="no device"), VllmEngine(
        spec_in(docker, tiny_model_dir), log=tmp_path / "log", timeouts=QUICK
    ):  # fmt: skip
        pass


def test_an_image_that_is_not_there_is_told_first(docker: Path, tiny_model_dir: Path) -> None:
    spec = replace(spec_in(docker, tiny_model_dir), image=IMAGE.replace("ab", "cd"))
    with pytest.raises(SourceError, match="docker pull"):
        preflight(spec)


def test_without_a_runtime_nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("docker") is None
    with pytest.raises(SourceError, match="docker or podman"):
        runtime()


def test_what_a_container_may_see(docker: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    spec = replace(spec_in(docker, tiny_model_dir), draft_dir=tmp_path / "draft")
    inner = ["python3", "-m", "m", "--host", "127.0.0.1", "--port", "7"]
    command = around(spec, inner, {"A": "1", "B": "2"}, "name", tmp_path / "t" / "chat.jinja")
    volumes = {command[i + 1] for i, word in enumerate(command) if word == "--volume"}
    assert volumes == {f"{p}:{p}:ro" for p in (tiny_model_dir, tmp_path / "draft", tmp_path / "t")}
    assert [command[i + 1] for i, word in enumerate(command) if word == "--env"] == ["A", "B"]
    assert command[command.index(IMAGE) + 1 :] == ["-m", "m", "--host", "0.0.0.0", "--port", "7"]


def test_it_sees_our_module_and_what_links_lead_to(
    docker: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "config.json").symlink_to(tiny_model_dir / "config.json")
    spec = replace(spec_in(docker, links), tokenizer_dir=links)
    inner, variables = (
        ["python3", "--host", "127.0.0.1", "--port", "7"],
        {"PYTHONPATH": str(tmp_path / "ours")},
    )
    command = around(spec, inner, variables, "name", tmp_path / "t" / "chat.jinja")
    volumes = {command[i + 1] for i, word in enumerate(command) if word == "--volume"}
    assert volumes == {f"{p}:{p}:ro" for p in (links, tiny_model_dir, tmp_path / "ours", tmp_path / "t")}


def test_the_plan_of_a_guarded_one_names_the_container(
    docker: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    plan = vllm_plan(spec_in(docker, tiny_model_dir), tmp_path / "log")()
    assert plan.container is not None
    assert plan.argv[plan.argv.index("--name") + 1] == plan.container
    assert plan.cleanup == tuple(ending(plan.container))
