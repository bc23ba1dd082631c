"""Our scorers for those who use the library ``evaluate``: ``metric("f1").compute(predictions=..., references=...)``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from checkweigh.errors import BadInput, ScorerError
from checkweigh.scoring.standard import STANDARD, VERSIONS, score_against


def metric(name: str) -> Any:
    """A standard scorer as an ``evaluate.Metric``; its references are one text or several for each prediction.

    ``compute`` gives ``{name: mean score, "scores": [one for each prediction]}``. BadInput for a name that is no
    standard scorer, ScorerError without the library; ValueError from ``compute`` for references that cannot score.
    """
    if name not in STANDARD:
        near = difflib.get_close_matches(name, STANDARD, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise BadInput(f"metric: expected one of {', '.join(STANDARD)}, found '{name}'{hint}")
    try:
        import evaluate
        from datasets import Features, List, Value
    except ImportError as error:
        raise ScorerError(f"metrics need the extra 'scorers' ({error})") from error

    class StandardMetric(evaluate.Metric):  # type: ignore[misc]
        """One of ``scoring.standard`` behind the library's interface."""

        def _info(self) -> Any:
            text = Value("string")
            return evaluate.MetricInfo(
                description=(STANDARD[name].__doc__ or name).strip(), citation="",
                inputs_description="predictions: texts; references: a text or a list of texts for each",
                features=[
                    Features({"predictions": text, "references": List(text)}),
                    Features({"predictions": text, "references": text}),
                ],
            )  # fmt: skip

        def _compute(self, *, predictions: Sequence[str], references: Sequence[Any]) -> dict[str, Any]:
            scores = [
                score_against(name, [wanted] if isinstance(wanted, str) else list(wanted), prediction)
                for prediction, wanted in zip(predictions, references, strict=True)
            ]
            return {name: sum(scores) / len(scores), "scores": scores}

    return StandardMetric(config_name=f"{name}-{VERSIONS[name]}", keep_in_memory=True)
