"""The knobs of the fake engine: ``engine.options`` of a manifest, checked."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from checkweigh.errors import BadInput

LIES = ("count", "ids", "lengths", "positive", "garbage")
SHARES = (
    "wrong_share", "right_share", "error_share", "nan_share", "empty_share", "loop_share", "truncate_share",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeKnobs:
    """What a fake engine does.

    The names ending in ``_at`` count calls of score and generate from 1; 0 means at the start of the process,
    -1 never. A share strikes the same items in every execution: those whose hash lies below it, so a larger
    share strikes a superset.
    """

    seed: int = 0  # everything pseudo-random follows from it
    bias_nats: float = 0.0  # added to the negative log-likelihood of every token
    noise_nats: float = 0.0  # standard deviation of a normal error, one for each item, added to every token
    divergence: float = 0.0  # standard deviation of a normal error on every logit that ``states`` gives
    jitter: float = (
        0.0  # the same on all of these, of what depends on which items run together and on threads
    )
    noise_seed: int = 0  # another seed, other errors
    constant_nats: float = -1.0  # from 0: the negative log-likelihood of every token, instead of a random one
    wrong_share: float = 0.0  # items whose reply or preferred choice is wrong
    right_share: float = 1.0  # items that are answered rightly to begin with
    length_factor: float = 1.0  # scales the length of replies
    latency_s: float = 0.0  # slept in every call
    token_latency_s: float = 0.0  # slept for every step of generation
    error_share: float = 0.0  # items that fail with reason engine
    nan_share: float = 0.0  # items whose log-probabilities are NaN
    empty_share: float = 0.0  # empty replies
    loop_share: float = 0.0  # replies that repeat themselves until max_tokens
    truncate_share: float = 0.0  # replies that never end before max_tokens
    crash_at: int = -1  # os.abort
    kill_at: int = -1  # SIGKILL, as the kernel does when memory is gone
    exit_at: int = -1  # exits with code 0
    raise_at: int = -1  # an exception nobody foresaw
    hang_at: int = -1  # sleeps for ever
    oom_at: int = -1  # MemoryError
    dies_comparing: bool = False  # SIGKILL in every ``divergence``
    lie_at: int = -1  # answers with what ``lie`` says
    lie: str = "count"  # count, ids, lengths, positive, garbage
    wrong_template: bool = False  # renders other prompt ids than the pinned template gives
    claim_version: str = ""  # the version it reports; empty: the manifest's
    effective: str = ""  # a JSON object whose fields replace those of the effective configuration it reports
    effective_drifts: bool = False  # every process reports another rotary embedding
    ballast_mib: int = 0  # memory it holds
    prints: bool = False  # writes to stdout in every call
    diary: str = ""  # a file that gets a line for every call: the call, and the ids of its items


KNOBS = {field.name: field for field in fields(FakeKnobs)}


def read_knobs(options: Mapping[str, bool | int | float | str]) -> FakeKnobs:
    """Knobs from ``engine.options``. BadInput: an unknown knob (the known ones are listed), a wrong value."""
    problems: list[str] = []
    values: dict[str, bool | int | float | str] = {}
    for name, value in options.items():
        if name not in KNOBS:
            near = difflib.get_close_matches(name, KNOBS, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            problems.append(
                f"engine.options.{name}: no such knob{hint}; known are {', '.join(sorted(KNOBS))}"
            )
            continue
        wanted = type(KNOBS[name].default)
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            problems.append(f"engine.options.{name}: expected {wanted.__name__}, found {value!r}")
            continue
        values[name] = value
    if not problems:
        knobs = FakeKnobs(**values)  # type: ignore[arg-type]
        problems = _wrong_values(knobs)
    if problems:
        raise BadInput("\n".join(problems))
    return knobs


def _wrong_values(knobs: FakeKnobs) -> list[str]:
    problems = []
    for name in SHARES:
        share = getattr(knobs, name)
        if not 0 <= share <= 1:
            problems.append(f"engine.options.{name}: expected a share from 0 to 1, found {share!r}")
    for name in (
        "latency_s",
        "token_latency_s",
        "noise_nats",
        "divergence",
        "jitter",
        "length_factor",
        "ballast_mib",
    ):
        if not getattr(knobs, name) >= 0:
            problems.append(f"engine.options.{name}: expected 0 or more, found {getattr(knobs, name)!r}")
    if not _is_text_table(knobs.effective or "{}"):
        problems.append(
            f"engine.options.effective: expected a JSON object of texts, found {knobs.effective!r}"
        )
    if knobs.lie not in LIES:
        problems.append(f"engine.options.lie: expected one of {', '.join(LIES)}, found {knobs.lie!r}")
    return problems


def _is_text_table(text: str) -> bool:
    try:
        table = json.loads(text)
    except ValueError:
        return False
    return isinstance(table, dict) and all(isinstance(value, str) for value in table.values())
