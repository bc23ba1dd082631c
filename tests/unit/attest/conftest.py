"""A gate that ran once, signed; each test gets its own copy of everything that was shown at the door."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import evalset
from tests.signing import keys
from tests.unit.report import sample

from checkweigh import canonical
from checkweigh.attest.envelope import seal
from checkweigh.attest.keys import private_key
from checkweigh.attest.statement import decision_statement
from checkweigh.records.attestation import Statement
from checkweigh.records.decision import Decision, Verdict
from checkweigh.records.evalset import EvalSet
from checkweigh.records.policy import Policy
from checkweigh.report import write_all
from checkweigh.sources.documents import read_policy
from checkweigh.sources.evalsets.load_evalset import evalset_roots, find_evalset
from checkweigh.sources.pin import pin, verify
from checkweigh.usecases.release.admit import AdmissionDecision, Proof, admit
from checkweigh.usecases.release.attest import attest


@dataclass
class Door:
    """A pinned manifest with its own weights, a policy, a key pair and the attestation of a pass."""

    folder: Path
    manifest: Path
    model: Path
    policy: Path
    private: Path
    public: Path
    out: Path

    @property
    def attestation(self) -> Path:
        return self.out / "attestation.json"

    def decide(self, verdict: Verdict = Verdict.PASS, **changes: Any) -> Decision:
        """A decision on this manifest by this policy, written and signed as a gate would."""
        decision = self.decision(verdict, **changes)
        write_all(decision, sample.pairs(), self.out)
        attest(decision, [verify(self.manifest)], self.out, private_key(str(self.private)))
        return decision

    def decision(self, verdict: Verdict = Verdict.PASS, **changes: Any) -> Decision:
        resolved, policy = verify(self.manifest), read_policy(self.policy)
        made = sample.decision(verdict)
        arm = made.candidate.model_copy(
            update={
                "name": resolved.manifest.name, "pins": resolved.pins.record_digest(),
                "manifest": resolved.pins.manifest, "unsafe": resolved.manifest.unsafe, "unverified": (),
            }
        )  # fmt: skip
        now = datetime.now(UTC).isoformat()
        fields = {
            "candidate": arm, "baseline": made.baseline.model_copy(update={"unverified": ()}),
            "policy": policy.record_digest(), "policy_name": policy.name,
            "evalsets": {name: self.evalset(name).content_digest() for name in policy.evalsets()},
            "provenance": made.provenance.model_copy(update={"started": now, "ended": now}),
        }  # fmt: skip
        return made.model_copy(update=fields | changes)

    def evalset(self, name: str) -> EvalSet:
        """A set that the policy names, from beside it."""
        return find_evalset(name, evalset_roots(self.policy))

    def sealed(self, change: Callable[[dict[str, Any]], None], key: Path | None = None) -> None:
        """Sign again, honestly, a statement that was changed: what a builder with the key could forge."""
        statement = decision_statement(self.decision(), verify(self.manifest).pins).model_dump(
            mode="json", by_alias=True
        )
        change(statement)
        self.attestation.write_bytes(
            seal(Statement.model_validate_json(json.dumps(statement)), private_key(str(key or self.private)))
        )

    def envelope(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the envelope as it lies there, without a key."""
        value = json.loads(self.attestation.read_text())
        change(value)
        self.attestation.write_text(json.dumps(value))

    def proof(self, **changes: Any) -> Proof:
        fields = {"attestation": self.attestation, "key": self.public, "policy": self.policy}
        return Proof(**(fields | changes))

    def measured_against(self, baseline: Path) -> None:
        """Sign the same verdict again, on the same candidate against another baseline."""
        resolved = verify(baseline)
        arm = self.decision().baseline.model_copy(
            update={"pins": resolved.pins.record_digest(), "manifest": resolved.pins.manifest}
        )
        self.decide(baseline=arm)

    def admit(self, now: datetime | None = None, **changes: Any) -> AdmissionDecision:
        return admit(self.manifest, self.proof(**changes), now=now)

    def codes(self, now: datetime | None = None, **changes: Any) -> set[str]:
        return {refusal.code for refusal in self.admit(now, **changes).refusals}


def put_evalset(folder: Path, *, name: str = "sample-set", items: int = 3, **card: Any) -> Path:
    """A small set of choices below ``folder``."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    source = evalset("choice", items, name=name)
    rows = [json.dumps(item.model_dump(mode="json")) + "\n" for item in source.items]
    data = "".join(rows).encode()
    (target / "items.jsonl").write_bytes(data)
    document = source.card.model_dump(mode="json") | {"digest": canonical.digest_bytes(data)} | card
    (target / "card.yaml").write_text(yaml.safe_dump(document))
    return target


def policy_of(decision: Decision) -> dict[str, Any]:
    """A policy with the checks of a sample decision, without the implicit one."""
    checks = [r.check.model_dump(mode="json") for r in decision.checks if not r.implicit]
    own = {"schema": "checkweigh/policy@1", "name": "release", "timing": {"pairs": 40}}
    document = own | {"checks": checks}
    Policy.model_validate_json(json.dumps(document))
    return document


@pytest.fixture
def door(tmp_path: Path, tiny_model_dir: Path, checkweigh_home: Path) -> Door:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    manifest = tmp_path / "candidate.yaml"
    document = {
        "schema": "checkweigh/manifest@1", "name": "candidate", "model": {"source": f"path:{model}"},
        "engine": {"kind": "fake", "version": "1", "dtype": "float32", "threads": 1},
        "limits": {"max_sequence": 512},
    }  # fmt: skip
    manifest.write_text(yaml.safe_dump(document | {"intends": list(sample.decision().intends)}))
    pin(manifest)
    policy = tmp_path / "gates" / "release.yaml"
    policy.parent.mkdir()
    policy.write_text(yaml.safe_dump(policy_of(sample.decision())))
    put_evalset(tmp_path / "evalsets")
    private, public = keys(tmp_path)
    found = Door(tmp_path, manifest, model, policy, private, public, tmp_path / "out")
    found.decide()
    return found
