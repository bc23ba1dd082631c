"""What the generators of the small sets share: items in one form, canonical files, and the command line.

python evalsets/NAME/generate.py            write items.jsonl and refresh card.yaml
python evalsets/NAME/generate.py --check    exit 1 unless the committed files are what this generates
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

Row = dict[str, object]
Turn = tuple[str, str]


def words(kind: str) -> list[str]:
    """A line of words.txt."""
    lines = (Path(__file__).resolve().parent / "words.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines)[kind].split()


def item(
    name: str,
    stratum: str,
    prompt: str,
    kind: str,
    values: Sequence[str],
    pattern: str = "",
    *,
    before: Sequence[Turn] = (),
) -> Row:
    """One generation item, its own cluster; ``before`` are earlier (user, assistant) turns."""
    messages = []
    for user, assistant in before:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {
        "id": name,
        "cluster": name,
        "stratum": stratum,
        "messages": [*messages, {"role": "user", "content": prompt}],
        "check": {"kind": kind, "values": list(values), "pattern": pattern},
    }


def encode(rows: Sequence[Row]) -> bytes:
    """One canonical line a row."""
    return "".join(json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in rows).encode()


def counts(rows: Sequence[Row], data: bytes) -> Row:
    """What the card states of the items."""
    return {
        "digest": "sha256:" + hashlib.sha256(data).hexdigest(),
        "items": len(rows),
        "clusters": len({r["cluster"] for r in rows}),
        "strata": dict(sorted(Counter(str(r["stratum"]) for r in rows).items())),
    }


def main(here: Path, build: Callable[[], list[Row]]) -> int:
    """The command line of one generator."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit 1 unless the committed files are current")
    check = parser.parse_args().check
    rows = build()
    data = encode(rows)
    items, card_path = here / "items.jsonl", here / "card.yaml"
    card = yaml.safe_load(card_path.read_text(encoding="utf-8"))
    fresh = {**card, **counts(rows, data)}
    if check:
        wrong = []
        if not items.exists() or items.read_bytes() != data:
            wrong.append("items.jsonl is not what the generator gives")
        if fresh != card:
            wrong.append("card.yaml: digest or counts are not those of the items")
        print("\n".join(wrong) or f"{here.name}: as generated", file=sys.stderr)
        return 1 if wrong else 0
    items.write_bytes(data)
    card_path.write_text(yaml.safe_dump(fresh, sort_keys=False, allow_unicode=True, width=110))
    return 0
