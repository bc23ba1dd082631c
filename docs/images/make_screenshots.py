"""Screenshots of a gate in MLflow's own pages, from a real server and a real browser: ``docs/images/mlflow-*.png``.

    .venv/bin/python docs/images/make_screenshots.py [BASELINE CANDIDATE]

Gates the two manifests (the shipped baseline and nf4 unless others are named), sends the gate to an MLflow server of
its own, opens each page of ``views`` in Debian's chromium and keeps what was seen. It fails
when a page does not show what it should. Fonts: fonts-liberation, and fonts-noto-color-emoji for the sign of a verdict.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHROMIUM = Path("/usr/bin/chromium")
ARGS = ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"]
SIZE = {"width": 1280, "height": 800}
PATIENCE_MS = 90_000  # MLflow's page is 10 MB of script, and the machine may be busy
COLOURS = 256
NO_ASSISTANT = (
    "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"  # a panel over a quarter
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A gate that MLflow holds."""

    server: str
    experiment: str
    run: str
    name: str

    @property
    def place(self) -> str:
        """The experiment's page."""
        return f"{self.server}/#/experiments/{self.experiment}"

    @property
    def page(self) -> str:
        """The run's page."""
        return f"{self.place}/runs/{self.run}"


def views(shown: Shown) -> dict[str, tuple[str, str]]:
    """Name -> (address, what must be seen there: a text, or a selector after ``css=``, in a frame after ``frame=``)."""
    return {
        "mlflow-runs": (f"{shown.place}/runs", shown.name),
        "mlflow-gate": (shown.page, "checkweigh.verdict"),
        "mlflow-report": (f"{shown.page}/artifacts/report.html", "frame=#verdict"),
        "mlflow-plot": (f"{shown.page}/artifacts/plots/forest.svg", "css=img[alt*=forest]"),
        "mlflow-items": (f"{shown.page}/artifacts/items.json", "worse_by"),
        "mlflow-traces": (f"{shown.page}/traces", '"candidate":'),
    }


def look(browser: Browser, address: str, wanted: str) -> Page:
    """Open a page and wait until ``wanted`` is seen. The page, to be closed by the caller."""
    page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
    page.set_default_timeout(PATIENCE_MS)
    page.add_init_script(NO_ASSISTANT)
    page.goto(address)
    if wanted.startswith("frame="):
        page.frame_locator("iframe").locator(wanted.removeprefix("frame=")).wait_for()
    elif wanted.startswith("css="):
        page.locator(wanted).first.wait_for()
        page.wait_for_function("() => [...document.images].some(i => i.naturalWidth > 300)")
    else:
        page.get_by_text(wanted).first.wait_for()
    page.wait_for_timeout(1500)  # spinners and charts
    return page


def keep(page: Page, path: Path) -> None:
    """What is seen, as a small PNG."""
    from PIL import Image

    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's chromium without a window."""
    from playwright.sync_api import sync_playwright

    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*ARGS, *root])
        try:
            yield browser
        finally:
            browser.close()


def shown_of(api: Any, decision: str, name: str) -> Shown:
    """Where a decision is to be seen, asked of the server."""
    (run,) = api.runs(decision, "gate")
    experiment = run["info"]["experiment_id"]
    return Shown(server=api.url, experiment=experiment, run=run["info"]["run_id"], name=name)


def main(arguments: list[str]) -> int:
    """Gate, look, keep. Exit 4 when the gate broke."""
    sys.path[:0] = [str(ROOT), str(ROOT / "pipeline")]
    from tests.mlflow_server import running

    from checkweigh.cli import main as checkweigh
    from checkweigh.records.decision import Decision

    manifests = arguments or ["manifests/smollm2-135m.yaml", "manifests/smollm2-135m-nf4.yaml"]
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "mlflow") as api:
        out = Path(folder) / "run"
        code = checkweigh(["gate", *manifests, "--out", str(out), "--mlflow", api.url])
        if code not in (0, 1, 3):
            return 4
        decision = Decision.model_validate_json((out / "decision.json").read_bytes())
        name = json.loads((out / "decision.json").read_text())["verdict"].upper()
        shown = shown_of(api, decision.reached, f"{name} {decision.candidate.name}")
        with chromium() as browser:
            for file, (address, wanted) in views(shown).items():
                page = look(browser, address, wanted)
                keep(page, HERE / f"{file}.png")
                page.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
