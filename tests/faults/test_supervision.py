"""Which engine is served, and when one stays down: pins, crash loops of slow starters, plans that fail, containers."""

from __future__ import annotations

import asyncio
import math

from prometheus_client.parser import text_string_to_metric_families
from tests.faults.harness import Running, client, guarded

from checkweigh.engines.mock.knobs import Knobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.guard.host import Reading

START_S = 120.0  # machines are shared


def gauges(run: Running) -> dict[str, float]:
    """What the guard exports without labels."""

    async def read() -> str:
        async with client() as session, session.get(run.url + "/metrics") as answer:
            return await answer.text()

    families = text_string_to_metric_families(asyncio.run(read()))
    return {
        sample.name: sample.value for family in families for sample in family.samples if not sample.labels
    }


def test_free_memory_is_exported_and_nan_where_nobody_knows() -> None:
    gpu = [None, 0.125]
    with (
        in_thread(Knobs()) as (endpoint, _),
        guarded(
            endpoint,
            read_host=lambda: Reading(free_share=0.5, gpu_free_share=gpu[0], swap_bytes=0.0),
        ) as run,
    ):
        run.until(lambda: gauges(run)["checkweigh_memory_free_share"] == 0.5, 10)
        assert math.isnan(gauges(run)["checkweigh_gpu_memory_free_share"])
        del gpu[0]
        run.until(lambda: gauges(run)["checkweigh_gpu_memory_free_share"] == 0.125, 10)
