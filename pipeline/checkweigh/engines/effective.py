"""The neutral fields of an effective configuration as text, so that one fact has one text on every engine. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from checkweigh import canonical

SAMPLES = 6  # frequencies that stand for all of one rotary embedding
NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """A rotary embedding: inverse frequencies, rotated dimensions of a head, factor on sine and cosine."""

    inv_freq: Sequence[float]
    dim: int
    scaling: float


def rotary_text(kinds: Mapping[str, Rotary]) -> str:
    """Canonical JSON, layer kind (``all`` where they are alike) -> six frequencies, dimensions and factor."""
    if not kinds:
        return NONE
    first = next(iter(kinds.values()))
    if all(one == first for one in kinds.values()):
        kinds = {"all": first}
    return canonical.dumps(
        {
            kind: {
                "inv_freq": [significant(one.inv_freq[at]) for at in _sampled(len(one.inv_freq))],
                "dim": one.dim,
                "scaling": significant(one.scaling),
            }
            for kind, one in kinds.items()
        }
    )


def _sampled(count: int) -> list[int]:
    """The first place, four evenly spaced ones, the last."""
    return [round(i * (count - 1) / (SAMPLES - 1)) for i in range(SAMPLES)]


def significant(value: float) -> float:
    """``value`` to six significant digits."""
    return float(f"{value:.6g}")


def window_text(layers: Iterable[int | None]) -> str:
    """Run-length JSON of the tokens each layer looks back over, such as ``[[512,5],["none",1]]``."""
    runs: list[tuple[int | str, int]] = []
    for window in layers:
        size = window or NONE
        if runs and runs[-1][0] == size:
            runs[-1] = (size, runs[-1][1] + 1)
        else:
            runs.append((size, 1))
    return canonical.dumps([list(run) for run in runs])


def eos_text(ids: Iterable[int]) -> str:
    """The ids that end a reply, sorted, with commas between them."""
    return ",".join(map(str, sorted(set(ids)))) or NONE


def neutral(
    *, rotary: Mapping[str, Rotary], windows: Iterable[int | None], tied_head: bool, eos: Iterable[int]
) -> dict[str, str]:
    """The fields that mean the same on every engine."""
    return {
        "rotary": rotary_text(rotary),
        "window": window_text(windows),
        "tied_head": "true" if tied_head else "false",
        "eos": eos_text(eos),
    }
