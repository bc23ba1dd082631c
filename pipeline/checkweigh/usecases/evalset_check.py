"""An evaluation set, examined before anything is measured with it: everything wrong or doubtful at once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkweigh.decision.evalset_audit import AuditFinding, audit_items, smallest_margin
from checkweigh.errors import BadInput, ExitCode, Problem
from checkweigh.progress import Progress
from checkweigh.records.evalset import EvalSet, Item, Text
from checkweigh.records.measurement import MeasurementSet, Scored
from checkweigh.scorers.score_items import item_scorer
from checkweigh.sources.cache import cache_root
from checkweigh.sources.evalsets.load_evalset import InspectedEvalSet, inspect_evalset, with_counts
from checkweigh.sources.pin import verify
from checkweigh.store import Store

SHOWN_IDS = 5


@dataclass(frozen=True, kw_only=True)
class EvalSetReport:
    """The findings on one set. ``digest`` is the one its card should state, ``content`` the one that verdicts bind."""

    name: str
    digest: str
    content: str
    pinned: bool
    items: int
    clusters: int
    strata: dict[str, int]
    margin: float | None
    findings: tuple[AuditFinding, ...]

    @property
    def exit_code(self) -> ExitCode:
        """2 with an error, else 0: warnings are for the reader to judge."""
        wrong = any(finding.severity == "error" for finding in self.findings)
        return ExitCode.BAD_INPUT if wrong else ExitCode.PASS

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"schema": "checkweigh/evalset-check@1", **asdict(self), "exit_code": int(self.exit_code)}

    def text(self) -> str:
        """For people: errors first."""
        order = ("error", "warning", "note")
        lines = [_line(f) for severity in order for f in self.findings if f.severity == severity]
        strata = ", ".join(f"{name} {count}" for name, count in self.strata.items())
        lines.append(f"{self.name}: {self.items} items in {self.clusters} clusters ({strata})")
        if self.margin is not None:
            lines.append(f"smallest margin on a score of 0 or 1: about {100 * self.margin:.1f} points")
        lines.append(f"digest: {self.digest}" + ("" if self.pinned else "   <- put this into card.yaml"))
        if self.exit_code is ExitCode.PASS:
            lines.append(f"where it is not at hand: --evalset {self.name}={self.content}")
        return "\n".join(lines)


def _line(finding: AuditFinding) -> str:
    ids = ", ".join(finding.items[:SHOWN_IDS]) + (", ..." if len(finding.items) > SHOWN_IDS else "")
    return f"{finding.severity}: {finding.text}" + (f" [{ids}]" if ids else "")


def check_evalset(folder: Path, baseline: Path | None, progress: Progress) -> EvalSetReport:
    """Examine the set in ``folder``.

    1. Read card and data; every problem is kept as a finding.
    2. Audit the items. Scores of a baseline are used where there are any: those stored for the manifest ``baseline``,
       else those that the card states.

    Raises BadInput when there is nothing to examine: no valid card, no data, a baseline that is not what is pinned.
    """
    evalset = inspect_evalset(folder, progress)
    errors = [_error_finding(problem) for problem in evalset.problems]
    loaded = EvalSet(card=evalset.card, items=evalset.items, folder=str(folder))
    try:
        item_scorer(loaded)
    except BadInput as error:
        errors.append(AuditFinding(severity="error", rule="scorer", text=str(error)))
    scores, notes = _baseline_scores(evalset, baseline, progress)
    items = evalset.items
    sized = items if items and not isinstance(items[0], Text) else ()
    card = with_counts(evalset.card, items) if items else evalset.card
    return EvalSetReport(
        name=card.name, digest=evalset.digest, content=loaded.content_digest(),
        pinned=evalset.digest == evalset.card.digest, items=len(items),
        clusters=len({item.cluster for item in items}), strata=dict(card.strata or {}) if items else {},
        margin=smallest_margin(sized) if sized else None,
        findings=(*errors, *audit_items(items, scores, card.scorer.name), *notes),
    )  # fmt: skip


def _error_finding(problem: Problem) -> AuditFinding:
    rule = {"digest": "digest", "id": "duplicates"}.get(problem.path, "unsound")
    if problem.expected == "items that are all different":
        rule = "duplicates"
    return AuditFinding(severity="error", rule=rule, text=str(problem))


def _baseline_scores(
    evalset: InspectedEvalSet, baseline: Path | None, progress: Progress
) -> tuple[dict[str, float], tuple[AuditFinding, ...]]:
    """Mean scores by stratum ('' for the whole set), and findings about where they come from."""
    if evalset.card.kind == "text":
        return {}, ()
    if baseline is None:
        stated = evalset.card.baseline
        if stated is None or "score" not in stated.metrics:
            return {}, ()
        return {"": stated.metrics["score"], **stated.by_stratum}, ()
    pins = verify(baseline, progress).pins.record_digest()
    card = with_counts(evalset.card, evalset.items)
    records = Store(cache_root() / "store").find_executions(
        pins=pins, evalset=card.digest, scorer=card.scorer
    )
    if not records:
        text = f"{baseline.stem} has not been measured on this set yet: nothing is known of floor and ceiling"
        return {}, (AuditFinding(severity="note", rule="not_measured", text=text),)
    return _stratum_means(records[0], evalset.items)


def _stratum_means(
    record: MeasurementSet, items: tuple[Item, ...]
) -> tuple[dict[str, float], tuple[AuditFinding, ...]]:
    stratum_of = {item.id: item.stratum for item in items}
    values: dict[str, list[float]] = defaultdict(list)
    failed = []
    for observation in record.observations:
        outcome = observation.outcome
        if isinstance(outcome, Scored) and "score" in outcome.values and observation.item in stratum_of:
            values[""].append(outcome.values["score"])
            values[stratum_of[observation.item]].append(outcome.values["score"])
        else:
            failed.append(observation.item)
    notes: tuple[AuditFinding, ...] = ()
    if failed:
        text = f"the baseline failed on {len(failed)} of {len(record.observations)} items"
        notes = (AuditFinding(severity="warning", rule="failed_items", text=text, items=tuple(failed)),)
    return {name: sum(scores) / len(scores) for name, scores in values.items()}, notes
