"""Generate the open-ended set: half of its questions ask for a long reply, half for one sentence.

Usage as in evalsets/writing.py. tables/prompts.txt was written by hand for this set.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from writing import Row, item, main  # noqa: E402


def build() -> list[Row]:
    lines = (HERE / "tables" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    rows, seen = [], Counter[str]()
    for line in lines:
        if line and not line.startswith("#"):
            stratum, prompt, words = (field.strip() for field in line.split("|"))
            seen[stratum] += 1
            rows.append(item(f"{stratum}-{seen[stratum]:02d}", stratum, prompt, "phrase", words.split(", ")))
    return rows


if __name__ == "__main__":
    raise SystemExit(main(HERE, build))
