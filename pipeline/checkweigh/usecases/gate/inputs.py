"""What a gate is given, read and verified before the first second of compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from checkweigh.decision.noise_floor import below_floor, floor_of
from checkweigh.decision.verdict import FAILURE_ITEMS
from checkweigh.engines.launch import check_engine
from checkweigh.errors import BadDocument, BadInput, Problem, UndeclaredDrift
from checkweigh.measure import host_facts
from checkweigh.progress import Progress
from checkweigh.records.calibration import Calibration
from checkweigh.records.decision import Names
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import Provenance
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Policy
from checkweigh.scorers.score_items import item_scorer
from checkweigh.sources.documents import read_policy
from checkweigh.sources.evalsets.load_evalset import evalset_roots, find_evalset
from checkweigh.sources.load_trace import TraceRequest, read_trace
from checkweigh.sources.pin import Resolved, lock_path, read_pinned, verify
from checkweigh.sources.repository.checkout import checkout_of
from checkweigh.sources.undeclared import undeclared_differences
from checkweigh.usecases.calibration_store import for_pins
from checkweigh.usecases.gate.arms.open_engine import engine_spec
from checkweigh.usecases.gate.comparability import inestimable_checks, refuse_critical, without_estimate

EMBEDDED = ("transformers", "fake")  # engines that answer this process only
TEMPLATE_TOKENS = 64  # of a chat template around one message, at most
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that was read and verified before the first second of compute."""

    baseline: Resolved
    candidate: Resolved
    policy: Policy
    evalsets: tuple[EvalSet, ...]
    calibrations: tuple[Calibration, ...] = ()
    anchor: Resolved | None = None
    trace: tuple[TraceRequest, ...] = ()
    sweep: bool = False
    notes: tuple[str, ...] = ()  # what every output must say of how they were found
    provenance: Provenance  # as of the start: what is edited or committed while a gate runs was not read
    inestimable: Mapping[str, str] = field(default_factory=dict)  # check -> why; none of them critical

    @property
    def names(self) -> Names:
        """What everything is called now."""
        return Names(
            baseline=self.baseline.manifest.name, candidate=self.candidate.manifest.name,
            anchor=None if self.anchor is None else self.anchor.manifest.name, policy=self.policy.name,
            provenance=self.provenance,
        )  # fmt: skip


def read_inputs(
    baseline: Path, candidate: Path, policy: Path, progress: Progress, *, calibrated: bool = True
) -> Inputs:
    """Policy, sets and manifests, verified. Raises BadInput with everything that is wrong, all at once."""
    started, checkout = host_facts.now(), checkout_of(candidate)
    errors: list[BadInput] = []
    rules = _collect(errors, lambda: read_policy(policy))
    sets = _read_sets(errors, policy, rules, progress) if rules else ()
    paths = [baseline, candidate]
    if rules and rules.anchor and calibrated:
        paths.append(policy.resolve().parent / rules.anchor)
    documents = [_collect(errors, lambda path=path: read_pinned(path)) for path in paths]  # type: ignore[misc]
    arms: list[Resolved | None] = [None] * len(paths)
    if rules and all(documents):  # a misspelt name is said at once, not when a model was fetched and digested
        arms = [_collect(errors, lambda path=path: verify(path, progress)) for path in paths]  # type: ignore[misc]
    trace = (
        _collect(errors, lambda: _read_trace_for(policy, rules, arms)) if rules and calibrated else None
    ) or ()
    _raise_all(errors)
    first, second, anchor = (*arms, None)[:3]
    assert rules is not None
    assert first is not None
    assert second is not None
    drift = undeclared_differences(first.manifest, first.pins, second.manifest, second.pins)
    if anchor:
        drift += undeclared_differences(anchor.manifest, anchor.pins, second.manifest, second.pins)
    if drift:
        raise UndeclaredDrift("the arms differ where neither manifest says so:\n" + "\n".join(drift))
    for resolved in (first, second, *((anchor,) if anchor else ())):
        _collect(errors, lambda resolved=resolved: check_engine(engine_spec(resolved)))  # type: ignore[misc]
    _raise_all(errors)
    calibrations = for_pins(first.pins.record_digest()) if calibrated else ()
    _check_margins(rules, policy, sets, calibrations)
    inestimable = inestimable_checks(rules, sets, second, baseline=first, anchor=anchor) if calibrated else {}
    refuse_critical(policy, rules, second.manifest.intends, inestimable)
    read = dict(zip(("baseline", "candidate", "anchor"), paths, strict=False)) | {"policy": policy}
    if rules.trace is not None:
        read["trace"] = policy.resolve().parent / rules.trace.file
    cards = [Path(s.folder) / "card.yaml" for s in sets if s.folder is not None]
    return Inputs(
        baseline=first,
        candidate=second,
        policy=rules,
        evalsets=sets,
        calibrations=calibrations,
        anchor=anchor,
        trace=trace,
        provenance=host_facts.provenance_of_documents(
            checkout, read, [*map(lock_path, paths), *cards], started
        ),
        inestimable=inestimable,
        notes=without_estimate(rules, inestimable),
    )


def read_policy_inputs(policy: Path, progress: Progress) -> tuple[Policy, tuple[EvalSet, ...]]:
    """A policy and its sets, without any manifest. Raises BadInput with everything that is wrong."""
    errors: list[BadInput] = []
    rules = _collect(errors, lambda: read_policy(policy))
    sets = _read_sets(errors, policy, rules, progress) if rules else ()
    _raise_all(errors)
    assert rules is not None
    return rules, sets


def with_sweep(inputs: Inputs, path: Path) -> Inputs:
    """The same, with a sweep of rates after the pairs. Raises BadDocument when the policy has no load."""
    if inputs.policy.timing.load is None:
        problem = Problem(
            file=str(path), line=None, path="timing.load", expected="a load to sweep", found="none"
        )
        raise BadDocument([problem])
    return replace(inputs, sweep=True)


def read_calibration_inputs(
    manifest: Path, policy: Path, progress: Progress
) -> tuple[Resolved, Policy, tuple[EvalSet, ...]]:
    """One manifest, a policy and its sets, verified. Raises BadInput with everything that is wrong."""
    inputs = read_inputs(manifest, manifest, policy, progress, calibrated=False)
    return inputs.baseline, inputs.policy, inputs.evalsets


def _check_margins(
    policy: Policy, path: Path, sets: Sequence[EvalSet], calibrations: Sequence[Calibration]
) -> None:
    """Refuse margins that noise alone may use up. Raises BadDocument with all of them."""
    problems = [
        Problem(
            file=str(path), line=None, path=f"checks[{i}].margin", expected=why, found=f"{check.margin:g}"
        )
        for i, check in enumerate(policy.checks)
        if (why := below_floor(check, floor_of(check, sets, calibrations)))
    ]
    if problems:
        raise BadDocument(problems)


def _collect(errors: list[BadInput], read: Callable[[], T]) -> T | None:
    """What ``read`` gives; None when it raises BadInput, which is added to ``errors``."""
    try:
        return read()
    except BadInput as error:
        errors.append(error)
        return None


def _raise_all(errors: list[BadInput]) -> None:
    """Raise the only error itself, and several as one BadInput that says each of them once."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BadInput("\n".join(dict.fromkeys(str(error) for error in errors)))


def _read_sets(errors: list[BadInput], path: Path, policy: Policy, progress: Progress) -> tuple[EvalSet, ...]:
    """The policy's sets that can be loaded; what the checks ask of them and cannot have is added to ``errors``."""
    within = evalset_roots(path)
    names = policy.evalsets()
    loaded = [_collect(errors, partial(find_evalset, name, within, progress)) for name in names]
    sets = tuple(evalset for evalset in loaded if evalset is not None)
    for evalset in sets:
        _collect(errors, partial(item_scorer, evalset))
    problems = list(_policy_misfits(policy, sets, complete=len(sets) == len(names)))
    if problems:
        errors.append(
            BadDocument(
                [Problem(file=str(path), line=None, path=p, expected=e, found=f) for p, e, f in problems]
            )
        )
    return sets


def _policy_misfits(
    policy: Policy, sets: Sequence[EvalSet], *, complete: bool
) -> Iterator[tuple[str, str, str]]:
    """(path, expected, found): a check may only name sets that measure its metric, and strata that exist.

    Timing needs prompts. Sets that could not be loaded (not ``complete``) have been complained of already.
    """
    cards = {s.card.name: s.card for s in sets}
    prompts = any(card.kind == "generation" for card in cards.values())
    for card in cards.values():
        twins = [c.name for c in cards.values() if c.digest == card.digest]
        if card.name == twins[0] and len(twins) > 1:
            yield "checks", "sets with items of their own", f"the same items in {' and '.join(twins)}"
    items = sum(len(s.items) for s in sets)
    strata = {s.card.name: sorted({item.stratum for item in s.items}) for s in sets}
    if cards and complete and items < FAILURE_ITEMS:
        wanted = f"sets with {FAILURE_ITEMS} items in all: the implicit check on failed items cannot pass with fewer"
        yield "checks", wanted, f"{items} items"
    for i, check in enumerate(policy.checks):
        metric = METRICS[check.metric]
        if metric.estimator == "blocks" and complete and not prompts:
            names = ", ".join(cards) or "no set at all"
            yield f"checks[{i}].metric", "some check on a generation set, whose prompts are timed", names
        stratum = check.where.get("stratum")
        for card in (cards[name] for name in check.evalset if name in cards):
            if card.kind not in metric.kinds:
                wanted = f"a set of kind {' or '.join(metric.kinds)} for {check.metric}"
                yield f"checks[{i}].evalset", wanted, f"{card.name} ({card.kind})"
            if stratum is not None and stratum not in strata[card.name]:
                known = f"one of {', '.join(strata[card.name])} of {card.name}"
                yield f"checks[{i}].where.stratum", known, stratum


def _read_trace_for(path: Path, policy: Policy, arms: Sequence[Resolved | None]) -> tuple[TraceRequest, ...]:
    """The rows of the trace that the policy replays, if it does. Raises BadDocument with all that does not fit."""
    if policy.timing.load is None:
        return ()
    rows: tuple[TraceRequest, ...] = ()
    if policy.trace is not None:
        rows = read_trace(path.resolve().parent / policy.trace.file)
    problems = [
        Problem(file=str(path), line=None, path=where, expected=expected, found=found)
        for where, expected, found in _load_misfits(policy, [arm for arm in arms if arm is not None], rows)
    ]
    if problems:
        raise BadDocument(problems)
    return rows


def _load_misfits(
    policy: Policy, arms: Sequence[Resolved], rows: Sequence[TraceRequest]
) -> Iterator[tuple[str, str, str]]:
    """(path, expected, found): engines must serve; a trace must have enough requests, and fit the engines."""
    timing = policy.timing
    embedded = dict.fromkeys(str(arm.path) for arm in arms if arm.manifest.engine.kind in EMBEDDED)
    if embedded:
        served = "manifests of engines that serve over HTTP, such as vllm"
        yield "timing.load", served, f"embedded ones in {', '.join(embedded)}"
    trace = policy.trace
    if trace is None:
        return
    needed = timing.looks[-1] * timing.requests
    if len(rows) < needed:
        yield (
            "timing.load.arrivals.file",
            f"a trace of {needed} requests, one for each of all blocks",
            f"{len(rows)}",
        )
    longest = trace.max_prompt_tokens + trace.max_output_tokens + TEMPLATE_TOKENS
    for arm in arms:
        if arm.manifest.limits.max_sequence < longest:
            yield (
                "timing.load.arrivals",
                f"max_prompt_tokens and max_output_tokens that fit into {arm.manifest.name}'s limits.max_sequence",
                f"{longest} tokens with the template's, {arm.manifest.limits.max_sequence} allowed",
            )
