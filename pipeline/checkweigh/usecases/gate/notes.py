"""What a decision says beside its numbers: what is not compared, what is not verified, and what is promised. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import expm1, log

from checkweigh.decision.compare import margin_of
from checkweigh.decision.formatting import size
from checkweigh.decision.verdict import all_checks, is_declared_change
from checkweigh.engines.protocol import Telemetry
from checkweigh.records.decision import CheckResult
from checkweigh.records.manifest import Manifest, Pins
from checkweigh.records.measurement import MeasurementSet
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import GATING_PAIRS, P99_REQUESTS, Policy

FORKS = (
    "engine.speculative differs: drafts change no choice of the model, but several positions computed together "
    "round differently, so that in bfloat16 and float16 a text may fork where two tokens are nearly tied"
)
UNITS = (
    "the vocabularies differ, so that a token is not the same unit in both arms: {used}; nats a token, divergence, "
    "lengths in tokens and time per token are not compared"
)


def guarantees(policy: Policy, intends: Sequence[str] = ()) -> tuple[str, ...]:
    """What a decision promises and what it does not, beside every verdict; the numbers are the policy's.

    Checks on what the candidate declares to change (``intends``) do not gate and promise nothing.
    """
    checks = [check for check in all_checks(policy) if not is_declared_change(check, intends)]
    critical = [check.id for check in checks if check.tier == "critical"]
    gating = [check.id for check in checks if check.tier != "advisory"]
    budget = policy.error_budget
    return (
        f"A candidate that is worse by its margin on any critical check ({', '.join(critical)}) passes with a "
        f"probability of at most {budget.false_pass:.0%}: for each candidate, not for each year.",
        f"A candidate that is equal on all {len(gating)} gating checks is blocked with a probability of at most "
        f"{budget.false_block:.0%} (Holm over those checks).",
        "Inconclusive is not a pass: the evidence does not suffice either way.",
        "Nothing is promised about advisory checks, about prompts unlike those in the sets, about reruns until one "
        "passes, or about many small losses over many releases.",
    )


def noise_floor_notes(checks: Iterable[str], baseline: str) -> Iterator[str]:
    """A note on each divergence check that only informs, because ``baseline`` has no noise floor here."""
    for check in checks:
        yield (
            f"{check} informs only: no noise floor of {baseline} is known on this host for it; "
            "checkweigh calibrate measures one"
        )


def short_tail_notes(policy: Policy) -> Iterator[str]:
    """A note on each p99 that only informs: how many pairs and requests it lacks to gate (docs/latency.md)."""
    timing = policy.timing
    pairs, requests = max(0, GATING_PAIRS - timing.pairs), max(0, P99_REQUESTS - timing.requests)
    for check in policy.checks:
        if check.statistic == "p99" and check.tier == "advisory" and (pairs or requests):
            more = " and ".join(
                [f"{pairs} more pairs"] * bool(pairs) + [f"{requests} more requests a block"] * bool(requests)
            )
            gates = f"a p99 gates with {GATING_PAIRS} pairs of {P99_REQUESTS} requests"
            yield f"{check.id} informs only: {gates}; {more} would do"


def length_limit_notes(results: Iterable[CheckResult], max_tokens: int) -> Iterator[str]:
    """A note on each check that cannot find longer replies, even if all of the candidate's end at ``max_tokens``."""
    for check, level in ((r.check, r.comparison.baseline) for r in results):
        if METRICS[check.metric].estimator != "log_length" or check.direction != "lower" or level is None:
            continue
        if (room := log(max_tokens) - level) <= margin_of(check):
            yield (
                f"{check.id}: the {check.against}'s replies leave the candidate's room to grow by {expm1(room):.0%} "
                f"before max_tokens ({max_tokens}) cuts them all: the check cannot block"
            )


def vocabulary_note(policy: Policy, baseline: Pins, candidate: Pins) -> tuple[str, ...]:
    """A note where two vocabularies meet: which measure of perplexity is left, and why."""
    if baseline.vocabulary == candidate.vocabulary:
        return ()
    bits_per_byte = any(check.metric == "bits_per_byte" for check in policy.checks)
    used = (
        "perplexity is compared as bits per byte, which counts the text itself"
        if bits_per_byte
        else "bits per byte, which counts the text itself, would compare perplexity, and no check of this policy does"
    )
    return (UNITS.format(used=used),)


def fork_note(baseline: Manifest, candidate: Manifest) -> tuple[str, ...]:
    """A note where the two arms do not speculate alike: their texts may fork."""
    return (FORKS,) if baseline.engine.speculative != candidate.engine.speculative else ()


def speculation_notes(manifest: Manifest, records: Mapping[str, MeasurementSet]) -> tuple[str, ...]:
    """A note for each set of replies of an arm that speculates.

    The acceptance length is the mean number of tokens one forward of the model gave: 1 + accepted / forwards,
    over all forwards, those without a draft and those over prompts included.
    """
    setting = manifest.engine.speculative
    if setting is None:
        return ()
    notes = []
    for name, record in records.items():
        counts = [o.speculated for o in record.observations if o.speculated is not None]
        if not counts:
            continue
        forwards, drafted, accepted = (
            sum(getattr(c, field) for c in counts) for field in ("forwards", "drafted", "accepted")
        )
        share = (
            f"{accepted / drafted:.0%} of {drafted:,} drafted tokens" if drafted else "nothing was drafted"
        )
        notes.append(
            f"{manifest.name} speculates ({setting.method}, {setting.num_tokens} tokens): acceptance length "
            f"{1 + accepted / forwards:.2f} tokens a forward on {name} ({share})"
        )
    return tuple(notes)


def server_note(role: str, manifest: Manifest, telemetry: Sequence[Telemetry]) -> tuple[str, ...]:
    """What each server of an arm had counted at its end."""
    if not telemetry:
        return ()
    return (f"the {role}'s server ({manifest.name}) counted: {'; '.join(_counts(manifest, telemetry))}",)


def swap_note(role: str, moved: int) -> tuple[str, ...]:
    """A warning when the host swapped ``moved`` bytes while the arm ran: a serving host should not."""
    if moved <= 0:
        return ()
    swapped = f"the host moved {size(moved)} to and from swap while the {role} ran"
    return (f"{swapped}: its times say little, and a host that serves should not swap",)


def _counts(manifest: Manifest, telemetry: Sequence[Telemetry]) -> list[str]:
    def total(name: str) -> int:
        return sum(int(getattr(server, name)) for server in telemetry)

    counts = []
    drafts, accepted, drafted = total("drafts"), total("accepted"), total("drafted")
    if drafts:
        length = 1 + accepted / drafts
        counts.append(
            f"acceptance length {length:.2f} tokens a draft ({accepted / drafted:.0%} of {drafted:,} drafted tokens)"
        )
    elif manifest.engine.speculative is not None:
        counts.append("nothing was drafted")
    queries = total("cache_queries")
    hits = f"{total('cache_hits') / queries:.1%} of {queries:,}" if queries else "none of 0"
    counts.append(f"prefix cache hits {hits} tokens looked up")
    counts.append(f"{total('preemptions'):,} preemptions")
    tokens = max((server.kv_tokens or 0 for server in telemetry), default=0)
    counts.append(
        f"largest use of its cache {max(server.kv_use for server in telemetry):.0%}"
        + (f" of {tokens:,} tokens" if tokens else "")
    )
    return counts
