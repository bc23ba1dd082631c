"""What a changed policy lets through: every line that got looser, and whether it carries a newer reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkweigh.decision.policy_diff import Loosening, loosenings
from checkweigh.errors import ExitCode
from checkweigh.records.policy import Policy
from checkweigh.sources.documents import read_policy


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """Everything that got looser, in the order of the old policy; empty when nothing did."""

    loosenings: tuple[Loosening, ...]

    @property
    def unexplained(self) -> int:
        """How many lines got looser without a ``because`` that is newer than the change."""
        return sum(not line.excused for line in self.loosenings)

    @property
    def exit_code(self) -> ExitCode:
        """PASS when every looser line carries a new reason, else BLOCK."""
        return ExitCode.BLOCK if self.unexplained else ExitCode.PASS

    def lines(self) -> list[str]:
        """For people: one line for each that got looser."""
        return [
            f"{line.path}: {line.old} -> {line.new}, "
            + ("with a new reason" if line.excused else "WITHOUT a new reason (because)")
            for line in self.loosenings
        ]

    def as_json(self) -> list[dict[str, Any]]:
        """For programs."""
        return [asdict(line) for line in self.loosenings]


def compare_policies(old: Policy, new: Policy) -> PolicyChange:
    """What got looser from ``old`` to ``new``."""
    return PolicyChange(loosenings(old, new))


def policy_change(old: Path, new: Path) -> PolicyChange:
    """The same for two files. Raises BadDocument when one is not a policy."""
    return compare_policies(read_policy(old), read_policy(new))
