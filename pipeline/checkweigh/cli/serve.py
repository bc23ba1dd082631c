"""Guarded serving, and the mock engine to try it on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from checkweigh.cli.common import AcceptUnverified, StatedEvalset, app, bars, duration, say

if TYPE_CHECKING:
    from checkweigh.usecases.release.admit import Proof


@app.command()
def serve(
    manifests: Annotated[
        list[Path],
        typer.Argument(metavar="MANIFEST [CANDIDATE]", help="what serves; with a second, two arms"),
    ],
    split: Annotated[
        str | None,
        typer.Option(metavar="90/10", help="percent of sessions for either arm, sticky by session"),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="copy requests to the second; nobody sees its answers")
    ] = False,
    limits: Annotated[
        Path | None,
        typer.Option(metavar="GUARD", help="guard policy; default: the defaults of docs/serving.md"),
    ] = None,
    host: Annotated[str, typer.Option(help="beyond loopback only with API keys")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    logs: Annotated[Path, typer.Option(metavar="DIR", help="the engines' logs")] = Path("runs/serve"),
    require_attestation: Annotated[
        list[Path] | None,
        typer.Option(metavar="F", help="serve only what this attestation.json admits; one a manifest"),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="K", envvar="CHECKWEIGH_PUBLIC_KEY", help="PEM of the public key, for that"),
    ] = None,
    policy: Annotated[
        list[Path] | None,
        typer.Option(metavar="P", help="the gate's policy, for that; one, or one a manifest"),
    ] = None,
    max_age: Annotated[
        list[str] | None,
        typer.Option(metavar="D", help="such as 12h or 30d (default), for that; one, or one a manifest"),
    ] = None,
    evalset: StatedEvalset = None,
    accept_unverified: AcceptUnverified = False,
) -> None:
    """Serve one manifest or two, guarded, until SIGTERM: then running requests are finished. Says where on stdout."""
    import json

    from checkweigh.errors import BadInput
    from checkweigh.usecases.serving import ServeRequest
    from checkweigh.usecases.serving import serve as run

    if len(manifests) > 2:
        raise BadInput(f"serve: expected one manifest or two, found {len(manifests)}")
    if not require_attestation and (policy or max_age or evalset or accept_unverified):
        options = "--policy, --max-age, --evalset and --accept-unverified"
        raise BadInput(f"{options}: expected --require-attestation with them, found none")
    proofs = _proofs(len(manifests), require_attestation or [], key, policy or [], max_age or ["30d"])
    if proofs:
        from checkweigh.usecases.release.policy_content import stated_evalsets

        stated = stated_evalsets(evalset or [], policy or [])
        proofs = tuple(replace(p, evalsets=stated, accept_unverified=accept_unverified) for p in proofs)
    request = ServeRequest(
        manifests=tuple(manifests), limits=limits, split=split, shadow=shadow, host=host, port=port, logs=logs,
        proofs=proofs,
    )  # fmt: skip
    bar = bars()

    def tell(url: str) -> None:
        bar.__exit__(None, None, None)
        print(json.dumps({"url": url}), flush=True)

    bar.__enter__()
    raise typer.Exit(run(request, bar.update, lambda line: say(f"checkweigh: {line}"), tell))


def _proofs(
    manifests: int, attestations: list[Path], key: Path | None, policies: list[Path], ages: list[str]
) -> tuple[Proof, ...]:
    """One proof for each manifest, in their order; none where no attestation is named. Raises BadInput."""
    if not attestations:
        return ()
    from checkweigh.errors import BadInput
    from checkweigh.usecases.release.admit import Proof

    if key is None or not policies:
        raise BadInput("--require-attestation: expected --key and --policy with it")
    if len(attestations) != manifests:
        raise BadInput(
            f"--require-attestation: expected one a manifest, {manifests}, found {len(attestations)}"
        )
    for option, values in (("--policy", policies), ("--max-age", ages)):
        if len(values) not in (1, manifests):
            raise BadInput(f"{option}: expected one, or one a manifest, found {len(values)}")
    return tuple(
        Proof(
            attestation=attestations[i], key=key, policy=policies[i % len(policies)],
            max_age=duration("--max-age", ages[i % len(ages)]),
        )
        for i in range(manifests)
    )  # fmt: skip


@app.command("mock-engine")
def mock_engine(
    port: Annotated[int, typer.Option(min=0, max=65535, help="on 127.0.0.1; 0 takes a free one")] = 0,
    key: Annotated[
        str | None, typer.Option(envvar="CHECKWEIGH_MOCK_KEY", help="asked of clients when given")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KNOB=VALUE", help="latency, slots, faults; docs/serving.md lists them"
        ),
    ] = None,
) -> None:
    """Serve a mock of an OpenAI-compatible engine that queues, batches and fails as told. Says where on stdout."""
    import asyncio

    from checkweigh.engines.mock.mock_knobs import MockKnobs
    from checkweigh.engines.mock.serve import serve
    from checkweigh.records.yaml.document import parse

    lines = [f"{name}: {value}" for name, _, value in (word.partition("=") for word in sets or [])]
    knobs = parse(MockKnobs, "\n".join(lines or ["{}"]).encode(), "--set")
    say("checkweigh: a mock engine; it answers without a model")
    asyncio.run(serve(knobs, port=port, key=key))
