"""Gates of the real model on small slices of the shipped sets, in a store of the module's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from checkweigh import canonical
from checkweigh.cli import main
from checkweigh.records.decision import Decision
from checkweigh.sources.cache import cache_root
from checkweigh.sources.pin import Resolved

ROOT = Path(__file__).resolve().parents[2]
SLICES = {"prose": 64, "choices": 144, "answers": 96}
POLICY = """
schema: checkweigh/policy@1
name: slices
failure_margin: 0.02
timing: {pairs: 8, requests: 1, output_tokens: 4, max_seconds: 60}
checks:
  - {id: perplexity, metric: log_perplexity, evalset: [prose], direction: lower, scale: log, margin: 0.05,
     because: a slice of the default policy, tier: critical, min_items: 60, min_clusters: 60}
  - {id: score, metric: score, evalset: [choices, answers], direction: higher, margin: 0.2,
     because: a slice of the default policy, tier: supporting, min_items: 100}
  - {id: tpot, metric: tpot, statistic: p50, direction: lower, scale: relative, margin: 0.5,
     because: shows that both arms were timed, tier: advisory, min_items: 8, min_clusters: 8}
  - {id: kl, metric: kl, evalset: [prose], direction: lower, margin: 0.05,
     because: shows the divergence, tier: advisory}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, resolved: Resolved) -> Path:
    """Manifests, a policy and slices of the sets, one document a work, in a directory of their own."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(ROOT / "manifests", folder / "manifests")
    (folder / "policy.yaml").write_text(POLICY)
    for name, wanted in SLICES.items():
        _slice(ROOT / "evalsets" / name, folder / "evalsets" / name, wanted)
    return folder


def _slice(source: Path, target: Path, wanted: int) -> None:
    """The first ``wanted`` items of different clusters, with a card that says so."""
    target.mkdir(parents=True)
    rows = [json.loads(line) for line in (source / "items.jsonl").read_text().splitlines()]
    firsts = list({row["cluster"]: row for row in reversed(rows)}.values())[::-1]
    picked = firsts[:: max(1, len(firsts) // wanted)][:wanted]
    data = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in picked).encode()
    (target / "items.jsonl").write_bytes(data)
    card = yaml.safe_load((source / "card.yaml").read_text())
    strata = sorted(row["stratum"] for row in picked)
    card |= {"digest": canonical.digest_bytes(data), "items": len(picked), "clusters": len(picked)}
    card["strata"] = {stratum: strata.count(stratum) for stratum in strata}
    (target / "card.yaml").write_text(yaml.safe_dump(card))


def gate(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, candidate: str, more: Sequence[str] = ()
) -> tuple[int, Decision]:
    """Gate the baseline against a shipped candidate, in a store of the module's own."""
    home, real = workplace / "home", cache_root()
    home.mkdir(exist_ok=True)
    for cached in ("packages", "derived"):
        if not (home / cached).exists():
            (home / cached).symlink_to(real / cached)
    monkeypatch.setenv("CHECKWEIGH_HOME", str(home))
    monkeypatch.chdir(workplace)
    out = workplace / "runs" / candidate
    arguments = [
        "gate",
        "manifests/smollm2-135m.yaml",
        f"manifests/{candidate}.yaml",
        "--policy",
        "policy.yaml",
    ]
    code = main([*arguments, "--out", str(out), *more])
    return code, Decision.model_validate_json((out / "decision.json").read_bytes())
