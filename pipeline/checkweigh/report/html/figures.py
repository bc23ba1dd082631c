"""The report's plots as files of their own, for places that show pictures and no page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from markupsafe import Markup

from checkweigh.records.decision import Decision
from checkweigh.report import view
from checkweigh.report.html.page import plots_of
from checkweigh.report.worst_items import ItemPair


def figures(decision: Decision, pairs: Sequence[ItemPair]) -> dict[str, str]:
    """Name -> a whole SVG document with its own style."""
    return {
        f"{kind}-{number}" if len(plots) > 1 else kind: _alone(plot.wide)
        for kind, plots in plots_of(decision, view.check_rows(decision), pairs).items()
        for number, plot in enumerate(plots, 1)
    }


def _alone(plot: Markup) -> str:
    css = (files("checkweigh.report") / "templates" / "report.css").read_text()
    # The page's own ground: a viewer's may have the colour of the text.
    style = Markup("<style>{} svg {{ background: var(--card); }}</style>").format(css)
    head, end, rest = plot.partition(">")  # three Markups: joined to a str they would be escaped
    return str(head + end + style + rest)
