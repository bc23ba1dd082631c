"""The numbers that stand in a text."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

_NUMBER = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")


def numbers(text: str) -> list[Decimal]:
    """All numbers in their order; ``1,250``, ``-3`` and ``2.50`` are numbers, ``3rd`` and ``five`` are not."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    text = re.sub(r"(?<=[\d)])\s*-\s*(?=\d)", " - ", text)  # a minus between two numbers is an operator
    return [Decimal(number.replace(",", "")) for number in _NUMBER.findall(text)]
