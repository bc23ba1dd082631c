"""Generate the reasoning-gym set: problems made by the package's seeded generators, with answers checked by us.

    pip install reasoning-gym==0.1.25            in an environment of its own: it pins many packages
    python evalsets/reasoning-gym/generate.py            write items.jsonl and refresh card.yaml
    python evalsets/reasoning-gym/generate.py --check    exit 1 unless the committed files are what this generates

Without the package, --check verifies digest, counts and form of what is committed. Sizes are kept small: the sets of
this folder are meant for small models as well.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from writing import Row, committed, differences, item, options, report, write  # noqa: E402

VERSION = "0.1.25"
SEED = 20260211
EACH = 12
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
        taken: list[Row] = []
        for entry in dataset:
            question, answer = str(entry["question"]).strip(), str(entry["answer"]).strip()
            if len(taken) == EACH:
                break
            if question in asked or len(question) > 1500 or not answer:
                continue
            if kind == "number":
                Decimal(answer)  # an answer that is no number must stop the generator
            asked.add(question)
            identity = f"{name.replace('_', '-')}-{len(taken) + 1:02d}"
            taken.append(item(identity, name.replace("_", "-"), question, kind, [answer]))
        if len(taken) < EACH:
            raise SystemExit(f"{name}: {len(taken)} distinct problems, expected {EACH}")
        rows += taken
    return rows


def installed() -> bool:
    """Whether this very version is here; another one would make other problems, which is no way to check."""
    try:
        version = importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError:
        return False
    if version != VERSION:
        raise SystemExit(f"reasoning-gym: expected version {VERSION}, found {version}")
    return True


def check() -> list[str]:
    rows, wrong = committed(HERE)
    if Counter(r["stratum"] for r in rows) != {name.replace("_", "-"): EACH for name in GENERATORS}:
        wrong.append(f"items.jsonl: not {EACH} items of each generator")
    return wrong + (differences(HERE, build()) if installed() else [])


def main() -> int:
    if options(__doc__).parse_args().check:
        return report(HERE, check())
    if not installed():
        raise SystemExit(f"reasoning-gym: expected version {VERSION}, found none (pip install it)")
    write(HERE, build())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
