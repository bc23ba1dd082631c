"""Awkward folders through the whole command line, each gated against the sound one on the real engine.

What ``pin`` refuses stands in ``tests/unit/sources/test_awkward_checkpoints.py``, folder by folder. Here are the
others: those that lack a tensor, and those that are served.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from tests.awkward import AWKWARD, make
from tests.conftest import WriteManifest
from tests.integration.gates import Bench
from tests.unit.sources.test_awkward_checkpoints import RIGHT
from tests.unit.usecases.gate_bench import PERPLEXITY

from checkweigh.records.decision import Verdict

pytest.importorskip("torch")
REFUSED = {
    "no_head": ("lm_head.weight: expected a tensor, found none",),
    "no_norm": ("model.layers.1.input_layernorm.weight: expected a tensor, found none",),
    "renamed": (
        "model.layers.1.self_attn.q_proj.weight: expected a tensor, found none",
        "model.layers.7.self_attn.q_proj.weight: expected no such tensor",
    ),
}
# The verdict, whether it says that the change had no effect, and what the loaded engine has otherwise. These tokens are
# never asked for by a text, so that an added one or another end of a reply alters nothing.
SERVED = {
    "good": (Verdict.PASS, False, set()),
    "sharded": (Verdict.PASS, False, set()),
    "jinja_and_inline": (Verdict.PASS, True, set()),
    "template_list": (Verdict.PASS, True, set()),
    "added_tokens": (Verdict.PASS, True, set()),
    "gen_list": (Verdict.PASS, True, {"eos"}),
    "legacy_rope": (Verdict.BLOCK, False, {"rotary"}),
}


@pytest.mark.timeout(600)
def test_every_folder_gets_its_right_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_manifest: WriteManifest, tiny_model_dir: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One home for all, so that the sound folder is measured once."""
    bench = Bench(tmp_path, monkeypatch, write_manifest, capfd)
    bench.policy(PERPLEXITY)
    engine = {"kind": "transformers", "version": metadata.version("transformers"), "options": {}}

    def gate(name: str, folder: Path) -> int:
        source = {"model": {"source": f"path:{folder}"}, "limits": {"max_sequence": 512}}
        candidate = bench.write(name.replace("_", "-"), {}, engine=engine, **source)
        return bench.run(*bench.arguments(sound, candidate))

    source = {"model": {"source": f"path:{tiny_model_dir}"}, "limits": {"max_sequence": 512}}
    sound = bench.write("sound", {}, engine=engine, **source)
    assert {*REFUSED, *SERVED} == {name for name in AWKWARD if not RIGHT[name]}
    for name in (*REFUSED, *SERVED):
        code = gate(name, make(name, tiny_model_dir, tmp_path))
        if name in REFUSED:
            assert code == 2, (name, bench.stderr)
            assert all(words in bench.stderr for words in REFUSED[name]), (name, bench.stderr)
            assert not (bench.out / "decision.json").exists(), name
            continue
        decision, (verdict, without_effect, loaded) = bench.decision, SERVED[name]
        assert (code, decision.verdict) == (verdict.exit_code, verdict), (name, bench.stderr)
        assert bool(decision.no_effect) == without_effect, (name, decision.no_effect)
        differing = {difference.field for difference in decision.effective_differences}
        assert loaded <= differing, (name, decision.effective_differences)
        assert loaded or not differing, (name, decision.effective_differences)
