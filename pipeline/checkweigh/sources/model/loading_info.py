"""What transformers reports of a load, tensor by tensor. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SHOWN = 10  # names that a refusal lists


def loading_problems(info: Mapping[str, Any]) -> list[str]:
    """Every tensor that ``info`` says is missing, unexpected or of another shape, with what it is."""
    return [
        *(f"{name} (missing from the checkpoint)" for name in sorted(info["missing_keys"])),
        *(f"{name} (unexpected in the checkpoint)" for name in sorted(info["unexpected_keys"])),
        *(
            f"{name} ({tuple(found)} in the checkpoint, {tuple(wanted)} in the model)"
            for name, found, wanted in sorted(info["mismatched_keys"])
        ),
        *map(str, info["error_msgs"]),
    ]


def listed(problems: Iterable[str]) -> str:
    """How many there are, and the first of them."""
    names = sorted(problems)
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)}: {', '.join(names[:SHOWN])}{more}"
