"""Sample decisions for the report tests and the golden files: realistic numbers, and hostile model texts."""

from __future__ import annotations

import math

import numpy as np

from checkweigh import canonical
from checkweigh.records.comparison import Comparison, Estimate, Identical, Inestimable
from checkweigh.records.decision import (
    ArmRecord,
    AttemptRecord,
    Budget,
    CheckOutcome,
    CheckResult,
    Decision,
    DivergenceSummary,
    DivergingToken,
    EffectiveDifference,
    LookHistory,
    LookMade,
    ManifestChange,
    Verdict,
)
from checkweigh.records.measurement import Block, PairedRun, Provenance, Stage, WorstToken
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, CheckKind, Tier
from checkweigh.report.worst_items import ItemPair

HOSTILE = (
    "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>",
    "</pre></td></table><style>*{display:none}</style><iframe src=//evil.example></iframe>",
    "[red]not red[/red] [link=https://evil.example]click[/link] :bomb:",
    "a | b || c\n| x |\n```\n</details> @octocat #1 https://evil.example www.evil.example [x](http://evil.example)",
    "\x1b[2J\x1b[31mPASS\x1b[0m\x07\x9b31m \x00 NUL \r over\b\b",
    "\u202ePASS\u202c \u2066isolated\u2069 \u200bzero\ufeff width \U000e0041tag",
    "\ud800 lone, \ufffe none, ]]> <!-- --> &amp; {{ 7*7 }} {% raw %}",
    "::error::x\n::set-output name=e::0\n  ::add-mask::a\n##[add-matcher]x ##vso[task.complete result=Succeeded;]",
    "/approve\n/merge\n@octocat/team GH-1 o/r#2 :white_check_mark: <!channel> ${{ github.token }} $(id) `id`",
    "very long " * 4000,
)


UNVERIFIED = ("weights", "configuration", "dtype")


def digest(text: str) -> str:
    """A digest like any other."""
    return canonical.digest(text)


def check(
    id: str,
    metric: str,
    margin: float,
    *,
    tier: Tier = "critical",
    kind: CheckKind = "non_inferiority",
    direction: str | None = None,
    scale: str | None = None,
    statistic: str = "mean",
    because: str = "",
) -> Check:
    """A check with the metric's own defaults."""
    m = METRICS[metric]
    return Check.model_validate(
        {
            "id": id,
            "metric": metric,
            "margin": margin,
            "tier": tier,
            "kind": kind,
            "evalset": ("sample-set",) if m.kinds else (),
            "direction": direction or m.better,
            "scale": scale or m.scales[0],
            "statistic": statistic,
            "because": because or "half of the mildest loss that people noticed in review",
        }
    )


def estimate(
    effect: float,
    half: float,
    *,
    levels: tuple[float, float] = (0.5, 0.5),
    p_pass: float = 1e-4,
    p_worse: float = 0.4,
    pairs: int = 400,
    clusters: int = 120,
    low: float | None = math.nan,
    flips: int | None = None,
    failed: tuple[int, int] = (0, 0),
) -> Estimate:
    """An estimate with bounds ``half`` to both sides, unless ``low`` says otherwise."""
    bound = effect - half if low is not None and math.isnan(low) else low
    return Estimate(
        effect=effect,
        low=bound,
        high=effect + half,
        confidence=0.95,
        method="cluster jackknife, t",
        pairs=pairs,
        clusters=clusters,
        effective_clusters=float(clusters),
        design_effect=1.31,
        se=half / 1.66,
        flips=flips,
        p_pass=p_pass,
        p_worse=p_worse,
        baseline=levels[0],
        candidate=levels[1],
        failed_baseline=failed[0],
        failed_candidate=failed[1],
    )


def result(
    of: Check,
    comparison: Comparison,
    outcome: CheckOutcome,
    sentence: str,
    *,
    p: float | None = 1.0,
    settle: int | None = None,
    implicit: bool = False,
    declared: bool = False,
) -> CheckResult:
    """A check's result; an advisory check has no adjusted p."""
    margin = math.log1p(of.margin) if of.scale == "relative" else of.margin
    return CheckResult(
        check=of,
        implicit=implicit,
        declared=declared,
        outcome=outcome,
        margin=margin,
        comparison=comparison,
        p_adjusted=None if of.tier == "advisory" or declared else p,
        information=1.0,
        items_to_settle=settle,
        sentence=f"{of.id}: {sentence}",
    )


def perplexity(blocked: bool) -> CheckResult:
    """nf4's perplexity, or one that holds."""
    of = check(
        "log-perplexity", "log_perplexity", 0.03, because="int8 costs .022 and nobody noticed; nf4 costs .335"
    )
    if blocked:
        found = estimate(
            -0.3347, 0.0261, levels=(2.9114, 3.2461), p_pass=1.0, p_worse=1e-12, pairs=96, clusters=96
        )
        said = "log perplexity got worse by +0.3347 nats/token; worse, and beyond the margin of 0.0300"
        return result(of, found, "blocked", said, p=6e-12)
    found = estimate(
        -0.0048, 0.0071, levels=(2.9114, 2.9162), p_pass=2e-7, p_worse=0.13, pairs=96, clusters=96
    )
    return result(
        of, found, "passed", "log perplexity got worse by +0.0048 nats/token; within the margin of 0.0300"
    )


def checks(verdict: Verdict) -> tuple[CheckResult, ...]:
    """A dozen results that fit the verdict."""
    score = check("task-score", "score", 0.03)
    if verdict is Verdict.PASS:
        task = result(
            score,
            estimate(-0.0042, 0.0137, levels=(0.613, 0.6088), p_pass=0.0012),
            "passed",
            "score got worse by -0.42 points; within the margin of 3.00 points",
        )
    else:
        task = result(
            score,
            estimate(-0.0191, 0.0163, levels=(0.613, 0.5939), p_pass=0.141, p_worse=0.027),
            "inconclusive",
            "score got worse by -1.91 points; not shown to be within the margin",
            p=0.16,
            settle=1840,
        )
    longer = check("longer-replies", "log_length", 0.1, direction="lower")
    shorter = check("shorter-replies", "log_length", 0.1, direction="higher", tier="supporting")
    return (
        perplexity(verdict is Verdict.BLOCK),
        task,
        result(
            check("bad-endings", "bad_ending", 0.03),
            estimate(-0.0025, 0.0089, levels=(0.01, 0.0125), flips=5),
            "passed",
            "bad ending changed by +0.25 points; within the margin of 3.00 points",
        ),
        result(
            longer,
            estimate(-0.0412, 0.022, levels=(3.2, 3.2412), p_pass=3e-5, p_worse=0.0009),
            "warning",
            "log length changed by +4.2%; within the margin of 10.5%, but certainly worse",
            p=0.0054,
        ),
        result(
            shorter,
            estimate(0.0412, 0.022, levels=(3.2, 3.2412)),
            "passed",
            "log length changed by +4.2%",
            declared=True,
        ),
        result(
            check("copy-words", "accuracy", 0.05, tier="supporting"),
            Identical(pairs=180, clusters=60, differing_share_upper=0.0487, baseline=0.91, candidate=0.91),
            "passed",
            "both executions gave equal outputs on 180 items; at most 4.9% of clusters could differ",
        ),
        result(
            check("arithmetic", "accuracy", 0.05, tier="supporting"),
            estimate(-0.03, 0.048, levels=(0.42, 0.39), p_pass=0.2, p_worse=0.2, flips=37),
            "inconclusive",
            "accuracy got worse by -3.00 points; not shown to be within the margin of 5.00 points",
            settle=900,
        ),
        result(
            check("ttft-p50", "ttft", 0.1, tier="advisory", scale="relative", statistic="p50"),
            estimate(
                -0.187, 0.044, levels=(0.0412, 0.0497), p_pass=0.99, p_worse=1e-6, pairs=24, clusters=24
            ),
            "blocked",
            "p50 ttft got worse by +20.6%",
        ),
        result(
            check("memory", "peak_memory", 0.05, tier="advisory"),
            Inestimable(reason="6 pairs of blocks, 8 needed; note: [bold]<b>|@octocat\x1b[31m"),
            "inconclusive",
            "cannot be estimated: 6 pairs of blocks, 8 needed",
        ),
        result(
            check("failures", "failed", 0.01),
            estimate(0.0, 0.0052, levels=(0.0, 0.0), flips=0, p_pass=0.0031),
            "passed",
            "failed changed by +0.00 points; within the margin of 1.00 points",
            implicit=True,
        ),
    )


def decision(verdict: Verdict = Verdict.BLOCK, hostile: bool = False) -> Decision:
    """A whole decision; with ``hostile`` every free text of it is an attack."""
    found = checks(verdict) if verdict is not Verdict.ERROR else ()
    reasons = {
        Verdict.BLOCK: (found[0].sentence,) if found else (),
        Verdict.INCONCLUSIVE: (found[1].sentence,) if found else (),
        Verdict.PASS: ("all 5 critical checks show the candidate to be no worse than their margins allow",),
        Verdict.ERROR: ("the baseline's engine died twice (exit status 137, likely killed for its memory)",),
    }[verdict]
    name = "smollm2-135m-nf4" if verdict is Verdict.BLOCK else "smollm2-135m-int8"
    text = (
        " ".join(HOSTILE[i].encode("utf-8", "replace").decode() for i in (0, 2, 3, 4, 5)) if hostile else ""
    )
    return Decision(
        verdict=verdict,
        reasons=(*reasons, text) if hostile else reasons,
        checks=found,
        baseline=arm("smollm2-135m-bf16"),
        candidate=arm(
            name,
            unsafe=("unsafe_pickle",) if hostile else (),
            unverified=UNVERIFIED if hostile or verdict is Verdict.INCONCLUSIVE else (),
        ),
        changes=(
            ManifestChange(path="quantization.method", baseline="none", candidate="bitsandbytes"),
            ManifestChange(path="quantization.type", baseline="null", candidate=text or "nf4"),
            ManifestChange(
                path="prompts.system", baseline="You are brief.", candidate="You are brief | <b>kind</b>."
            ),
        ),
        effective_differences=(
            EffectiveDifference(
                field="quantization",
                baseline="none",
                candidate=text or "bitsandbytes nf4: 210/211 linear layers",
                explained=("quantization.method", text or "quantization.type"),
            ),
        ),
        no_effect=f"NO EFFECT of {text}: every output is identical" if hostile else "",
        intends=("shorter",),
        policy=digest("policy"),
        policy_name="default",
        evalsets={"sample-set": digest("set")},
        guarantees=(
            "A candidate that is worse by its margin on any critical check passes with a probability of "
            "at most 5%: for each candidate, not for each year.",
            "Nothing is promised about advisory checks, or about prompts unlike those in the sets.",
        ),
        looks=LookHistory(
            plan=digest("plan"),
            shares=(0.5, 1.0),
            made=(LookMade(number=1, share=0.5, items={"sample-set": 400}, verdict=verdict, seconds=212.0),)
            if found
            else (),
            items=400 if found else 0,
            planned=800,
            saved_seconds=211.9 if found else None,
        ),
        budget=Budget(false_pass=0.05, false_block=0.01, hypotheses=7, looks=2, attempts=2),
        attempt=AttemptRecord(
            number=2,
            of=2,
            stored=True,
            decided="2026-11-24T03:21:42Z",
            earlier=("attempt 1, 2026-11-20T03:21:42Z: inconclusive",),
        ),
        timing=timing(),
        divergence=(divergence(text),),
        stages=stages(),
        provenance=Provenance(
            build=canonical.digest("build"),
            tool="checkweigh 0.1.0",
            commit="4f2c9d1",
            dirty=False,
            hardware="Intel Xeon, 2 threads, 8 GiB" + text,
            packages={"torch": "2.11.0", "transformers": "5.20.1", "bitsandbytes": "0.50.0"},
            started="2026-11-24T03:10:00Z",
            ended="2026-11-24T03:21:42Z",
        ),
    )


def arm(name: str, unsafe: tuple[str, ...] = (), unverified: tuple[str, ...] = ()) -> ArmRecord:
    """One arm."""
    return ArmRecord(
        name=name,
        manifest=digest(name),
        pins=digest(name + "pins"),
        identity=digest(name + "identity"),
        measurements={"sample-set": digest(name + "measured")},
        unsafe=unsafe,
        unverified=unverified,
    )


def divergence(text: str = "") -> DivergenceSummary:
    """A set's divergence; its words may be hostile."""
    token = WorstToken(
        position=31, kl=6.71, before=text or "by clients. Clients must first read the", token=text or " v",
        baseline=text or " files", baseline_p=0.22, candidate=text or " documentation", candidate_p=0.53,
    )  # fmt: skip
    return DivergenceSummary(
        set_name="prose", documents=206, failed=1, tokens=28_614, typical=0.278, mean=0.281, p50=0.215, p90=0.533,
        p99=1.32, largest=6.71, agreement=0.7115, worst=(DivergingToken(item=text or "doc-1", token=token),) * 3,
    )  # fmt: skip


def stages() -> tuple[Stage, ...]:
    """What it cost."""
    return (
        Stage(name="sample-set", arm="baseline", items=400, tokens=51_200, seconds=143.2, stored=True),
        Stage(name="sample-set", arm="candidate", items=400, tokens=52_911, seconds=211.9),
        Stage(name="timing", arm="both", items=48, tokens=768, seconds=41.0),
    )


def timing() -> PairedRun:
    """Interleaved blocks of a candidate that is a fifth slower."""
    rng = np.random.default_rng(5)
    blocks = []
    for pair in range(24):
        drift = float(np.exp(rng.normal(0, 0.1)))
        base = {"ttft.p50": 0.041 * drift, "tpot.p50": 0.019 * drift}
        slow = {k: v * float(np.exp(0.187 + rng.normal(0, 0.09))) for k, v in base.items()}
        order = ("baseline", "candidate") if rng.random() < 0.5 else ("candidate", "baseline")
        blocks.append(Block(pair=pair, order=order, baseline=base, candidate=slow, requests=1))  # type: ignore[arg-type]
    return PairedRun(
        seed=5,
        blocks=tuple(blocks),
        seconds=41.0,
        notes=("stopped after 24 of 40 pairs: 41 s were allowed",),
        peak_memory={"baseline": 411_000_000, "candidate": 238_000_000},
        swapped={"baseline": 0, "candidate": 0},
    )


def pairs(hostile: bool = False) -> list[ItemPair]:
    """Items of a generated and of a text set; the first ones hostile on request."""
    rng = np.random.default_rng(7)
    found = [
        _pair(
            "chat",
            f"q-{i:03}",
            ("arithmetic", "copy", "facts", "format")[i % 4],
            "score",
            f"user: What is {i} + {i}? Answer with the number alone.",
            float(rng.beta(6, 3)),
            float(rng.beta(5, 4)),
            (
                f"The answer is {2 * i}.",
                f"The answer would be {2 * i + 1}, I think. The answer is {2 * i + 1}.",
            ),
            (int(rng.gamma(4, 6)) + 3, int(rng.gamma(4, 7)) + 3),
        )
        for i in range(160)
    ]
    found += [
        _pair(
            "wiki",
            f"doc-{i:02}",
            ("science", "history")[i % 2],
            "nats/token",
            "The checkweigher stands at the end of the line and weighs every box. " * 4,
            (b := float(rng.normal(2.9, 0.3))),
            b + float(rng.normal(0.33, 0.1)),
            None,
            None,
        )
        for i in range(96)
    ]
    broken = _pair(
        "chat", "q-999", "facts", "score", "user: Name a colour.", 1.0, None, ("Blue.", None), None
    )
    found.append(broken)
    if hostile:
        found += [
            _pair("chat", f"evil-{i}", text[:20], "score", text, 1.0, 0.0, (text, text[::-1]), (9, 9))
            for i, text in enumerate(HOSTILE)
        ]
    return found


def _pair(
    set_name: str,
    id: str,
    stratum: str,
    metric: str,
    prompt: str,
    baseline: float,
    candidate: float | None,
    texts: tuple[str, str | None] | None,
    tokens: tuple[int, int] | None,
) -> ItemPair:
    loss = None if candidate is None else (candidate - baseline) * (1 if metric == "nats/token" else -1)
    return ItemPair(
        set_name=set_name,
        id=id,
        cluster=id,
        stratum=stratum,
        metric=metric,
        prompt=prompt,
        baseline=baseline,
        candidate=candidate,
        loss=loss,
        baseline_text=texts[0] if texts else None,
        candidate_text=texts[1] if texts else None,
        baseline_tokens=tokens[0] if tokens else None,
        candidate_tokens=tokens[1] if tokens else None,
        note="candidate: failed (timeout: no answer in 30 s)" if candidate is None else "",
    )
