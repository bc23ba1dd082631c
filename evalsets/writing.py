"""What the generators of the sets share: items in one form, canonical files, and the command line.

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


def committed(here: Path) -> tuple[list[Row], list[str]]:
    """The committed rows, and where card or form disagree with them; needs no generator."""
    data = (here / "items.jsonl").read_bytes()
    rows = [json.loads(line) for line in data.decode().splitlines()]
    card = read_card(here)
    wrong = [
        f"card.yaml: {key} is {card.get(key)!r}, the items give {value!r}"
        for key, value in counts(rows, data).items()
        if card.get(key) != value
    ]
    if encode(rows) != data:
        wrong.append("items.jsonl: not in canonical form")
    return rows, wrong


def differences(here: Path, rows: Sequence[Row]) -> list[str]:
    """Where the committed files are not what was generated."""
    data, items, card = encode(rows), here / "items.jsonl", read_card(here)
    wrong = []
    if not items.exists() or items.read_bytes() != data:
        wrong.append("items.jsonl is not what the generator gives")
    if card | counts(rows, data) != card:
        wrong.append("card.yaml: digest or counts are not those of the items")
    return wrong


def read_card(here: Path) -> Row:
    """The set's card."""
    card: Row = yaml.safe_load((here / "card.yaml").read_text(encoding="utf-8"))
    return card


def write(here: Path, rows: Sequence[Row]) -> None:
    """Write items.jsonl and refresh what card.yaml states of the items."""
    data, card = encode(rows), read_card(here)
    (here / "items.jsonl").write_bytes(data)
    fresh = card | counts(rows, data)
    (here / "card.yaml").write_text(yaml.safe_dump(fresh, sort_keys=False, allow_unicode=True, width=110))


def report(here: Path, wrong: Sequence[str], fine: str = "as generated") -> int:
    """Print the result of --check; its exit code."""
    print("\n".join(wrong) or f"{here.name}: {fine}", file=sys.stderr)
    return 1 if wrong else 0


def options(usage: str | None) -> argparse.ArgumentParser:
    """The options that every generator has; ``usage`` is the text of --help."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 unless the committed files are current")
    return parser


def main(here: Path, build: Callable[[], list[Row]], usage: str | None = __doc__) -> int:
    """The command line of a generator that needs nothing but this repository."""
    check = options(usage).parse_args().check
    rows = build()
    if check:
        return report(here, differences(here, rows))
    write(here, rows)
    return 0
