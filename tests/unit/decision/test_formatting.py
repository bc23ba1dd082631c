from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.report.sample import check, estimate

from checkweigh.decision import formatting


def test_lower_is_better_shows_the_metrics_own_sign() -> None:
    shown = formatting.format_estimate(check("ppl", "log_perplexity", 0.03), estimate(-0.3347, 0.0261), 0.03)
    assert shown.effect == "+0.3347 nats/token"
    assert shown.bounds == "+0.3086 to +0.3608"
    assert shown.limit == "≤ +0.0300 nats/token"
    assert shown.title == "perplexity +39.8%"


def test_higher_is_better_in_points() -> None:
    shown = formatting.format_estimate(check("s", "score", 0.03), estimate(-0.0191, 0.0163), 0.03)
    assert (shown.effect, shown.bounds, shown.limit) == ("-1.91 pp", "-3.54 to -0.28", "≥ -3.00 pp")


def test_log_ratio_is_percent_with_the_logarithm_beside() -> None:
    of = check("t", "ttft", 0.1, scale="relative", statistic="p50")
    shown = formatting.format_estimate(of, estimate(-0.187, 0.044), math.log1p(0.1))
    assert (shown.effect, shown.bounds, shown.limit) == ("+20.6%", "+15.4% to +26.0%", "≤ +10.0%")
    assert shown.title == "log ratio +0.1870"


def test_longer_and_shorter_look_different_ways() -> None:
    longer = check("l", "log_length", 0.1, direction="lower")
    shorter = check("s", "log_length", 0.1, direction="higher")
    assert formatting.format_estimate(longer, estimate(-0.05, 0.02), 0.1).effect == "+5.1%"
    assert formatting.format_estimate(shorter, estimate(-0.05, 0.02), 0.1).effect == "-4.9%"
    assert formatting.limit(shorter, 0.1) == "≥ -9.5%"


def test_absolute_check_shows_the_candidates_own_value() -> None:
    of = check("bad", "bad_ending", 0.05, kind="absolute")
    shown = formatting.format_estimate(of, estimate(0.02, 0.01), 0.05)
    assert (shown.effect, shown.bounds, shown.limit) == ("3.00%", "2.00% to 4.00%", "≤ 5.00%")


def test_superiority_and_equivalence_limits() -> None:
    assert formatting.limit(check("s", "score", 0.02, kind="superiority"), 0.02) == "≥ +2.00 pp"
    both = check("e", "score", 0.02, kind="equivalence")
    assert formatting.limit(both, 0.02) == "-2.00 pp to +2.00 pp"
    assert formatting.without_unit(formatting.limit(both, 0.02)) == "-2.00 to +2.00"


def test_a_forbidden_bound_is_unbounded_on_the_worse_side() -> None:
    worse_up = formatting.format_estimate(
        check("p", "log_perplexity", 0.03), estimate(-0.01, 0.005, low=None), 0.03
    )
    worse_down = formatting.format_estimate(check("s", "score", 0.03), estimate(-0.01, 0.005, low=None), 0.03)
    assert worse_up.bounds == "+0.0050 to unbounded"
    assert worse_down.bounds == "unbounded to -0.50"


def test_a_bound_just_inside_the_limit_does_not_look_like_touching() -> None:
    shown = formatting.format_estimate(check("s", "score", 0.03), estimate(-0.01, 0.0199999), 0.03)
    assert shown.bounds.split(" to ")[0] != formatting.without_unit(shown.limit).removeprefix("≥ ")
    assert shown.limit == "≥ -3.00000 pp"


@given(
    margin=st.floats(1e-3, 0.5),
    low=st.floats(-1, 1),
    half=st.floats(1e-4, 0.5),
    metric=st.sampled_from(["score", "log_perplexity", "accuracy", "log_length", "bits_per_byte"]),
)
def test_no_bound_reads_like_a_limit_it_does_not_touch(
    margin: float, low: float, half: float, metric: str
) -> None:
    of, found = check("c", metric, margin), estimate(low + half, half, low=low)
    shown = formatting.format_estimate(of, found, margin)
    limit = formatting.without_unit(shown.limit)[2:]
    for value, text in zip(
        sorted(formatting.natural(of, v) for v in (found.low, found.high) if v is not None),
        shown.bounds.split(" to "),
        strict=True,
    ):
        if not math.isclose(value, formatting.natural(of, -margin), rel_tol=1e-9, abs_tol=1e-12):
            assert text != limit
            assert (_float(text) < _float(limit)) == (value < formatting.natural(of, -margin))


def _float(text: str) -> float:
    return float(text.rstrip("%").replace(",", ""))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (-1e-9, 2, "0.00"),
        (0.0, 1, "0.0"),
        (-0.04, 1, "0.0"),
        (1234.5, 1, "+1,234.5"),
        (-2.5e7, 1, "-2.500e+07"),
    ],
)
def test_fixed(value: float, digits: int, text: str) -> None:
    assert formatting.fixed(value, digits) == text


@pytest.mark.parametrize(
    ("value", "against", "text"),
    [
        (1e-12, None, "p < 0.0001"),
        (0.0, 0.05, "p < 0.0001"),
        (0.0312, None, "p = 0.031"),
        (1.0, 0.05, "p > 0.999"),
        (0.04996, 0.05, "p = 0.04996"),
        (0.050004, 0.05, "p = 0.050004"),
        (0.05, 0.05, "p = 0.050"),
        (0.0031, 0.05, "p = 0.0031"),
    ],
)
def test_probability(value: float, against: float | None, text: str) -> None:
    assert formatting.probability(value, against) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5e-5, "50 µs"),
        (0.0412, "41.2 ms"),
        (0.9996, "1 s"),
        (12.34, "12.3 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1000, "1000 B"), (411_000_000, "392 MiB"), (2**41, "2 TiB")]
)
def test_size(value: float, text: str) -> None:
    assert formatting.size(value) == text


def test_levels() -> None:
    assert formatting.level("log_length", math.log(24.5)) == "24.5 tokens"
    assert formatting.level("nats/token", 2.9) == "2.9000 nats/token"
    assert formatting.level("score", None) == "-"
    assert formatting.levels("log_perplexity", 2.9, 3.2) == "2.9000 → 3.2000 nats/token"
    assert formatting.levels("score", 1.0, None) == "100.0% → -"
    assert formatting.loss("score", 0.5) == "50.0 pp"


def test_huge_values_do_not_overflow() -> None:
    of = check("t", "ttft", 0.1, scale="log", statistic="p50")
    assert "e+" in formatting.format_estimate(of, estimate(-1e5, 1.0), 0.1).effect
    assert formatting.times(1.0001) == "1.0001×"
