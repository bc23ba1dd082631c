"""The lines that say at the start what is served and which limits are in force. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from checkweigh.guard.guard import GuardSetup
from checkweigh.guard.guard_policy import PRIORITY_TIERS, GuardPolicy

ServedManifest = tuple[str, str, tuple[str, ...]]  # name, engine kind, what is unsafe


def banner(setup: GuardSetup, served: Sequence[ServedManifest]) -> list[str]:
    """Every limit, whether pinned or a default; what is unsafe last."""
    lines = [f"serving {served[0][0]} on {served[0][1]}"]
    if len(served) > 1:
        what = "shadow copies" if setup.shadow else f"{setup.share:.0%} of sessions"
        lines.append(f"candidate {served[1][0]} on {served[1][1]}: {what}")
    lines += [*_sizes(setup), *_tiers(setup.policy), *_protections(setup)]
    return [*lines, *(f"UNSAFE: {name} allows {what}" for name, _, unsafe in served for what in unsafe)]


def _sizes(setup: GuardSetup) -> Iterator[str]:
    admission, bounds = setup.policy.admission, setup.bounds
    yield (
        f"limits: {bounds.max_sequence} tokens a sequence, {bounds.max_tokens} a reply, "
        f"{setup.policy.surface.max_body} bytes a body"
    )
    cache = (
        "the KV cache the engine reports"
        if admission.kv_tokens is None
        else f"{admission.kv_tokens} KV tokens"
    )
    yield (
        f"admission: {1 - admission.headroom:.0%} of {cache}, {admission.slots or setup.slots} requests inside, "
        f"{admission.scoring} of them scoring, {admission.queue} waiting"
    )


def _tiers(policy: GuardPolicy) -> Iterator[str]:
    for tier in PRIORITY_TIERS:
        limits = policy.admission.tiers.of(tier)
        yield (
            f"tier {tier}: {limits.reserve:.0%} reserved, {limits.queue} waiting at most {limits.deadline_s:g} s, "
            f"before all others after {limits.age_s:g} s"
        )


def _protections(setup: GuardSetup) -> Iterator[str]:
    policy = setup.policy
    times, care, lower = policy.timeouts, policy.supervision, policy.degradation
    yield f"timeouts: {times.first_s:g} s to the first byte, {times.idle_s:g} between two, {times.total_s:g} in all"
    yield (
        f"breaker: opens at {policy.breaker.failures} failures in {policy.breaker.window_s:g} s, and while less than "
        f"{policy.memory.free_low:.0%} of memory is free"
    )
    yield (
        f"supervisor: hung after {care.heartbeat_s:g} + {care.probe_s:g} s, gives up at {care.crashes} crashes in "
        f"{care.crash_window_s:g} s, drains for {care.drain_s:g} s"
    )
    if lower.max_tokens is not None:
        yield f"degraded from {lower.enter:.0%}: max_tokens {lower.max_tokens} for {', '.join(lower.tiers)}"
    if (norm := policy.monitor.ttft_p99_s or setup.norm_p99_s) is not None:
        yield f"first byte: p99 {norm:.3g} s is the norm, {norm * policy.monitor.ratio:.3g} s a deviation"
    keys = ", ".join(f"{name} ({tier})" for name, tier in policy.surface.keys.items())
    yield f"keys: {keys or 'none'}; traffic log: {policy.traffic.path or 'none'}"
