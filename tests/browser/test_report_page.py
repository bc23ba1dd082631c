"""The report in a real browser: it loads silently, asks the network for nothing and runs nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from tests.unit.report import sample

from checkweigh.records.decision import Verdict
from checkweigh.report import write_all

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
ARGS = ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        if os.environ.get("CHECKWEIGH_REQUIRE_ALL") == "1":
            pytest.fail(f"CHECKWEIGH_REQUIRE_ALL=1 and {CHROMIUM} is missing")
        pytest.skip(f"{CHROMIUM} is missing: the report was not looked at in a browser")
    from playwright.sync_api import sync_playwright

    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*ARGS, *root])
        yield found
        found.close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves one directory without writing to the test's output."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def opened(browser: Browser, url: str, width: int, scheme: str) -> tuple[Page, list[str], list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url, wait_until="networkidle")
    return page, said, asked


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_hostile_report_is_inert(
    browser: Browser, server: str, tmp_path: Path, width: int, scheme: str
) -> None:
    items = [p for p in sample.pairs(hostile=True) if p.id.startswith("evil")]
    write_all(sample.decision(Verdict.BLOCK, hostile=True), items, tmp_path)
    url = f"{server}/report.html"
    page, said, asked = opened(browser, url, width, scheme)
    for fold in page.locator("details").all():
        fold.evaluate("node => node.open = true")
    page.screenshot(path=tmp_path / f"report-{width}-{scheme}.png", full_page=True)
    assert said == []
    assert asked in ([url], [url, "data:,"])
    assert page.evaluate("window.pwned") is None
    assert page.locator("script, iframe, img, object, embed, form").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("width", [1200, 400])
def test_the_first_screen_says_verdict_reason_and_magnitude(
    browser: Browser, server: str, tmp_path: Path, verdict: Verdict, width: int
) -> None:
    decision = sample.decision(verdict)
    write_all(decision, sample.pairs(), tmp_path)
    page, said, _ = opened(browser, f"{server}/report.html", width, "light")
    assert said == []
    seen = [page.locator("#verdict"), page.get_by_text(decision.reasons[0], exact=True).first]
    if verdict is not Verdict.ERROR:
        seen.append(page.locator(".figure b").first)
    for place in seen:
        box = place.bounding_box()
        assert place.is_visible()
        assert box is not None
        assert box["y"] + box["height"] <= 900
    assert verdict.value.upper() in page.locator("#verdict").inner_text()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, server: str, tmp_path: Path, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for every text, against the nearest opaque background."""
    write_all(sample.decision(Verdict.BLOCK), sample.pairs(), tmp_path)
    page, _, _ = opened(browser, f"{server}/report.html", 1200, scheme)
    assert page.evaluate(CONTRAST) == []
    page.close()


CONTRAST = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = node => { for (; node; node = node.parentElement) {
    const c = rgb(getComputedStyle(node).backgroundColor);
    if (c.length === 3) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
    if (!own || node.closest('title') || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const ink = rgb(node.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    const who = `${node.tagName}.${node.getAttribute('class')}`;
    if (ratio < 4.5) bad.push(`${who} ${ratio.toFixed(2)} ${node.textContent.slice(0, 30)}`);
  }
  return bad;
}"""
