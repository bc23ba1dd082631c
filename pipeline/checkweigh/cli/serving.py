"""Guarded serving, and the mock engine to try it on."""

from __future__ import annotations

from typing import Annotated

import typer

from checkweigh.cli.common import app, say


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

    from checkweigh.engines.mock.knobs import Knobs
    from checkweigh.engines.mock.serve import serve
    from checkweigh.records.document import parse

    lines = [f"{name}: {value}" for name, _, value in (word.partition("=") for word in sets or [])]
    knobs = parse(Knobs, "\n".join(lines or ["{}"]).encode(), "--set")
    say("checkweigh: a mock engine; it answers without a model")
    asyncio.run(serve(knobs, port=port, key=key))
