"""Generate the reasoning-gym set: problems made by the package's seeded generators, with answers checked by us.

    pip install reasoning-gym==0.1.25            in an environment of its own: it pins many packages
    python evalsets/reasoning-gym/generate.py            write items.jsonl and refresh card.yaml
    python evalsets/reasoning-gym/generate.py --check    exit 1 unless the committed files are what this generates

Without the package, --check verifies digest, counts and form of what is committed. Sizes are kept small: the sets of
this folder are meant for small models as well.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
VERSION = "0.1.25"
SEED = 20260211
EACH = 12
Row = dict[str, object]
# generator -> kind of check and settings that keep the problems small
GENERATORS: dict[str, tuple[str, dict[str, object]]] = {
    "basic_arithmetic": ("number", {"max_terms": 3, "max_digits": 2}),
    "chain_sum": ("number", {"max_terms": 3, "max_digits": 2}),
    "products": ("number", {"max_terms": 2, "max_digits": 2}),
    "decimal_chain_sum": ("number", {"max_terms": 2, "max_digits": 2, "max_decimal_places": 2}),
    "gcd": ("number", {"max_value": 100}),
    "lcm": ("number", {"max_value": 30}),
    "leg_counting": ("number", {"max_animals": 3, "max_instances": 5}),
    "count_bits": ("number", {"max_n": 200}),
    "count_primes": ("number", {"max_n": 60}),
    "letter_counting": ("number", {"max_words": 8}),
    "number_sequence": ("number", {"max_complexity": 2}),
    "simple_equations": ("number", {"max_value": 20}),
    "gsm_symbolic": ("number", {}),
    "aiw": ("number", {}),
    "simple_geometry": ("number", {"max_sides": 5}),
    "spell_backward": ("exact", {"max_word_len": 6}),
    "caesar_cipher": ("exact", {"max_words": 5}),
    "family_relationships": ("exact", {}),
    "syllogism": ("exact", {}),
    "word_sequence_reversal": ("exact", {"max_words": 6}),
}


def build() -> list[Row]:
    import reasoning_gym

    rows: list[Row] = []
    asked: set[str] = set()
    for name, (kind, settings) in GENERATORS.items():
        dataset = reasoning_gym.create_dataset(name, seed=SEED, size=10 * EACH, **settings)
        mine: list[Row] = []
        for entry in dataset:
            question, answer = str(entry["question"]).strip(), str(entry["answer"]).strip()
            if len(mine) == EACH:
                break
            if question in asked or len(question) > 1500 or not answer:
                continue
            if kind == "number":
                Decimal(answer)  # an answer that is no number must stop the generator
            asked.add(question)
            name_of = f"{name.replace('_', '-')}-{len(mine) + 1:02d}"
            mine.append(
                {
                    "id": name_of,
                    "cluster": name_of,
                    "stratum": name.replace("_", "-"),
                    "messages": [{"role": "user", "content": question}],
                    "check": {"kind": kind, "values": [answer], "pattern": ""},
                }
            )
        if len(mine) < EACH:
            raise SystemExit(f"{name}: {len(mine)} distinct problems, expected {EACH}")
        rows += mine
    return rows


def encode(rows: list[Row]) -> bytes:
    return "".join(json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in rows).encode()


def counts(rows: list[Row], data: bytes) -> Row:
    return {
        "digest": "sha256:" + hashlib.sha256(data).hexdigest(),
        "items": len(rows),
        "clusters": len({r["cluster"] for r in rows}),
        "strata": dict(sorted(Counter(str(r["stratum"]) for r in rows).items())),
    }


def installed() -> bool:
    """Whether this very version is here; another one would make other problems, which is no way to check."""
    try:
        found = importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError:
        return False
    if found != VERSION:
        raise SystemExit(f"reasoning-gym: expected version {VERSION}, found {found}")
    return True


def check() -> list[str]:
    data = (HERE / "items.jsonl").read_bytes()
    rows = [json.loads(line) for line in data.decode().splitlines()]
    card = yaml.safe_load((HERE / "card.yaml").read_text())
    wrong = [
        f"card.yaml: {key} is {card.get(key)!r}, the items give {value!r}"
        for key, value in counts(rows, data).items()
        if card.get(key) != value
    ]
    if encode(rows) != data:
        wrong.append("items.jsonl: not in canonical form")
    if Counter(r["stratum"] for r in rows) != {name.replace("_", "-"): EACH for name in GENERATORS}:
        wrong.append(f"items.jsonl: not {EACH} items of each generator")
    if installed() and encode(build()) != data:
        wrong.append("items.jsonl is not what the generator gives")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit 1 unless the committed files are current")
    if parser.parse_args().check:
        wrong = check()
        print("\n".join(wrong) or "reasoning-gym: as generated", file=sys.stderr)
        return 1 if wrong else 0
    if not installed():
        raise SystemExit(f"reasoning-gym: expected version {VERSION}, found none (pip install it)")
    rows = build()
    data = encode(rows)
    (HERE / "items.jsonl").write_bytes(data)
    card = yaml.safe_load((HERE / "card.yaml").read_text())
    fresh = {**card, **counts(rows, data)}
    (HERE / "card.yaml").write_text(yaml.safe_dump(fresh, sort_keys=False, allow_unicode=True, width=110))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
