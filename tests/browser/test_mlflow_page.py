"""A gate in MLflow's own pages: found among the evaluation runs, its report and items shown, nothing executed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.browser.test_report_page import browser  # noqa: F401  (the fixture)
from tests.conftest import WriteManifest
from tests.mlflow_server import Api, kept, running
from tests.unit.report import sample

from checkweigh.sinks.mlflow_target import Target
from checkweigh.sources.pin import verify
from checkweigh.usecases.deliver.mlflow import send

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_MS = 90_000  # MLflow's page is 10 MB of script, and the machine may be busy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("mlflow")) as api:
        yield api


def opened(browser: Browser, url: str) -> Page:  # noqa: F811
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    return page


def test_the_verdict_and_its_evidence_are_seen_and_nothing_hostile_runs(
    browser: Browser,  # noqa: F811
    server: Api,
    tmp_path: Path,
    write_manifest: WriteManifest,
) -> None:
    arms = {role: verify(write_manifest(role)) for role in ("baseline", "candidate")}
    decision = sample.decision(hostile=True)
    items = [pair for pair in sample.pairs(hostile=True) if pair.id.startswith("evil")]
    delivery = send(kept(decision, items, arms, tmp_path, Target(server.url)), Target(server.url))
    assert delivery.sent, delivery.text
    run = server.runs(decision.record_digest(), "gate")[0]["info"]
    place = f"{server.url}/#/experiments/{run['experiment_id']}"

    page = opened(browser, f"{place}/evaluation-runs")
    row = page.get_by_text("BLOCK smollm2-135m-nf4")
    row.first.wait_for()
    page.screenshot(path=tmp_path / "evaluation-runs.png")
    page.close()

    page = opened(browser, delivery.text)
    page.get_by_text("BLOCK smollm2-135m-nf4").first.wait_for()
    page.get_by_text("checkweigh.verdict").first.wait_for()
    page.screenshot(path=tmp_path / "gate.png")
    assert page.evaluate("window.pwned") is None
    page.close()

    for path, seen in (("items.json", "evil-0"), ("summary.md", "BLOCK"), ("report.html", "")):
        page = opened(browser, f"{delivery.text}/artifacts/{path}")
        if seen:
            page.get_by_text(seen).first.wait_for()
        else:
            page.frame_locator("iframe").locator("#verdict").wait_for()
        page.screenshot(path=tmp_path / f"{path}.png")
        assert [frame.evaluate("window.pwned") for frame in page.frames] == [None] * len(page.frames), path
        page.close()

    page = opened(browser, f"{delivery.text}/artifacts/plots/forest.svg")
    page.wait_for_function(
        "() => [...document.images].some(i => /forest/.test(i.alt) && i.naturalWidth > 300)"
    )
    page.screenshot(path=tmp_path / "forest.png")
    page.close()
