"""What a started vLLM server is: asked over HTTP, compared with its manifest, refused where it is something else.

Gate and guard both call ``identify`` once the server is healthy, so that they refuse the same servers.
"""

from __future__ import annotations

import json

from checkweigh.engines.http.client import Client
from checkweigh.engines.identity import identity_problems
from checkweigh.engines.spec import EngineSpec
from checkweigh.engines.vllm.account import Unaccounted
from checkweigh.engines.vllm.report import ServerReport, mismatches, read_report
from checkweigh.errors import PinMismatch, Problem
from checkweigh.records.measurement import EngineIdentity


async def identify(client: Client, spec: EngineSpec, log: str) -> tuple[ServerReport, EngineIdentity]:
    """What the server at ``client`` reports of itself. ``log``: all that it has logged since its start.

    Raises PinMismatch where it is not what the manifest says or does not account for what it loaded, EngineError where
    it does not say what it is.
    """
    endpoint = client.endpoint
    version = await client.get(f"{endpoint.root}/version")
    models = await client.get(f"{endpoint.url}/models")
    metrics = await client.get_text(f"{endpoint.root}/metrics")
    try:
        report = read_report(version, models, metrics, log, endpoint.key or "")
    except Unaccounted as error:
        expected = "the account of what it loaded from each of its workers"
        raise PinMismatch(
            [Problem(file=spec.manifest.name, line=None, path="engine", expected=expected, found=str(error))]
        ) from error
    identity = identity_of(spec, report)
    if problems := mismatches(spec.manifest, report) or identity_problems(spec.manifest, identity):
        raise PinMismatch(problems)
    return report, identity


def identity_of(spec: EngineSpec, report: ServerReport) -> EngineIdentity:
    """The identity of the server that reports ``report``."""
    return EngineIdentity(
        kind="vllm", version=report.version, dtype=report.dtype, device=report.device,
        quantization=report.quantization, threads=len(report.cores) or spec.manifest.engine.threads,
        max_sequence=report.max_sequence, vocabulary_size=vocabulary_size(spec), eos=report.eos,
        packages=dict(spec.packages), settings=report.settings, effective=report.effective,
    )  # fmt: skip


def vocabulary_size(spec: EngineSpec) -> int:
    """Tokens of the model's vocabulary, as its configuration has it."""
    config = json.loads((spec.model_dir / "config.json").read_text(encoding="utf-8"))
    return int((config.get("text_config") or config)["vocab_size"])


def end_ids(spec: EngineSpec) -> tuple[int, ...]:
    """Ids that end a reply, as the model's own configuration has them; nothing else of it is used."""
    for name in ("generation_config.json", "config.json"):
        path = spec.model_dir / name
        if not path.is_file():
            continue
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        if value is not None:
            return tuple(int(token) for token in (value if isinstance(value, list) else [value]))
    return ()
