"""Generate the answers set: short generated replies with checkable scores.

    python evalsets/answers/generate.py            write items.jsonl and refresh card.yaml
    python evalsets/answers/generate.py --check    exit 1 unless the committed files are what this generates

The tables were written by hand for this set; numbers, names and objects are drawn with a seed. Every item
is its own cluster. README.md describes the kinds of checks.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from writing import Row, item, main  # noqa: E402

SEED = 20240917


def _rows(table: str) -> list[list[str]]:
    """Rows of tables/TABLE.txt: one a line, fields separated by a bar; lines with a # are comments."""
    lines = (HERE / "tables" / f"{table}.txt").read_text(encoding="utf-8").splitlines()
    return [
        [field.strip() for field in line.split("|")] for line in lines if line and not line.startswith("#")
    ]


def _an(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


# Two solved questions before each item, as earlier turns of the chat: small models keep to the form they see.
SHOTS: dict[str, tuple[tuple[str, str], ...]] = {
    "facts": (
        ("What is the capital of Germany?", "The capital of Germany is Berlin."),
        ("How many legs does a dog have?", "A dog has four legs."),
    ),
    "arithmetic": (
        ("What is 2 + 3?", "2 + 3 = 5"),
        ("I have 4 pens and lose 1 of them. How many pens are left?", "4 - 1 = 3"),
    ),
    "capitals": (
        ('Write the word "house" in capital letters.', "HOUSE"),
        ('Write the word "train" in capital letters.', "TRAIN"),
    ),
    "list": (
        ("Name two insects, separated by a comma.", "ant, bee"),
        ("Name three metals, separated by commas.", "iron, copper, tin"),
    ),
    "brackets": (
        ('Write the word "house" between square brackets.', "[house]"),
        ('Write the word "train" between square brackets.', "[train]"),
    ),
    "twice": (
        ('Write the word "house" two times.', "house house"),
        ('Write the word "train" two times.', "train train"),
    ),
    "copying": (),
    "extraction": (
        ("Mia is in the park. Sam is in the shop. Who is in the shop?", "Sam is in the shop."),
        ("The box is heavy and the bag is light. Is the box heavy or light?", "The box is heavy."),
    ),
    "sorting": (
        ("Is a robin a bird or a stone?", "A robin is a bird."),
        ("Is milk a building or a drink?", "Milk is a drink."),
    ),
    "plural": (
        ('What is the plural of "man"?', 'The plural of "man" is "men".'),
        ('What is the plural of "dog"?', 'The plural of "dog" is "dogs".'),
    ),
    "past tense": (
        ('What is the past tense of "give"?', 'The past tense of "give" is "gave".'),
        ('What is the past tense of "find"?', 'The past tense of "find" is "found".'),
    ),
    "opposite": (
        ('What is the opposite of "up"?', 'The opposite of "up" is "down".'),
        ('What is the opposite of "thick"?', 'The opposite of "thick" is "thin".'),
    ),
}


def _item(
    name: str, stratum: str, prompt: str, kind: str, values: Sequence[str], pattern: str = "", shots: str = ""
) -> Row:
    return item(name, stratum, prompt, kind, values, pattern, before=SHOTS[shots or stratum])


def facts(rng: random.Random) -> list[Row]:
    return [
        _item(
            f"fact-{n:03d}",
            "facts",
            question,
            "phrase",
            answers.split(", "),
        )
        for n, (question, answers) in enumerate(_rows("facts"), 1)
    ]


def arithmetic(rng: random.Random) -> list[Row]:
    """Sums, differences and products of small numbers; every pair occurs once."""
    pairs = [(a, b) for a in range(2, 21) for b in range(2, 13) if a >= b]
    rng.shuffle(pairs)
    out = []
    for n, (a, b) in enumerate(pairs[:72], 1):
        form = n % 6
        if form in (0, 1):
            prompt, value = f"What is {a} + {b}?", a + b
        elif form == 2:
            prompt, value = f"What is {a} - {b}?", a - b
        elif form == 3:
            prompt, value = f"What is {min(a, 10)} x {min(b, 10)}?", min(a, 10) * min(b, 10)
        elif form == 4:
            prompt, value = f"I have {a} apples and buy {b} more. How many apples do I have now?", a + b
        else:
            prompt, value = (
                f"There were {a} birds in a tree and {b} flew away. How many birds are left?",
                a - b,
            )
        out.append(
            _item(
                f"sum-{n:02d}",
                "arithmetic",
                prompt,
                "number",
                [str(value)],
            )
        )
    seen: set[str] = set()
    unique = []
    for row in out:
        text = json.dumps(row["messages"])
        if text not in seen:
            seen.add(text)
            unique.append(row)
    return unique


def formats(rng: random.Random) -> list[Row]:
    """Orders about the form of the reply."""
    out = []
    words = [word for (word,) in _rows("words")]
    rng.shuffle(words)
    for n, word in enumerate(words[:18], 1):
        ask = f'Write the word "{word}" in capital letters.'
        out.append(_item(f"capitals-{n:02d}", "format", ask, "verbatim", [word.upper()], shots="capitals"))
    for n, word in enumerate(words[18:32], 1):
        ask = f'Write the word "{word}" between square brackets.'
        out.append(
            _item(f"brackets-{n:02d}", "format", ask, "regex", [f"[{word}]"], rf"\[{word}\]\.?", "brackets")
        )
    for n, word in enumerate(words[32:], 1):
        ask = f'Write the word "{word}" two times.'
        out.append(_item(f"twice-{n:02d}", "format", ask, "exact", [f"{word} {word}"], shots="twice"))
    for n, (name, allowed) in enumerate(_rows("lists"), 1):
        for count, order in (
            (2, f"Name two {name}, separated by a comma."),
            (3, f"Name three {name}, separated by commas."),
        ):
            out.append(
                _item(
                    f"list-{n:02d}-{count}", "format", order, "items", allowed.split(", "), str(count), "list"
                )
            )
    return out


def copying(rng: random.Random) -> list[Row]:
    return [
        _item(f"copy-{n:02d}", "copying", f"Repeat this sentence exactly: {text}", "verbatim", [text])
        for n, (text,) in enumerate(_rows("copy"), 1)
    ]


NAMES = (
    "Anna",
    "Maria",
    "Sarah",
    "Emily",
    "Laura",
    "Julia",
    "Helen",
    "Alice",
    "Nina",
    "Rosa",
    "Clara",
    "Lucy",
    "Peter",
    "David",
    "James",
    "Simon",
    "Daniel",
    "Henry",
    "Oscar",
    "Victor",
    "Martin",
    "Robert",
    "Frank",
    "Leo",
)
TOWNS = (
    "London",
    "Paris",
    "Rome",
    "Berlin",
    "Madrid",
    "Boston",
    "Chicago",
    "Tokyo",
    "Dublin",
    "Vienna",
    "Lisbon",
    "Oslo",
    "Prague",
    "Athens",
    "Toronto",
    "Sydney",
)
JOBS = (
    "doctor",
    "teacher",
    "farmer",
    "painter",
    "lawyer",
    "baker",
    "pilot",
    "nurse",
    "singer",
    "soldier",
    "plumber",
    "dentist",
    "writer",
    "waiter",
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "pink")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PETS = ("dog", "cat", "horse", "parrot", "rabbit", "goat", "turtle", "duck", "hamster", "pony")
THINGS = (
    "cup",
    "book",
    "hat",
    "ball",
    "phone",
    "coat",
    "lamp",
    "letter",
    "ring",
    "camera",
    "umbrella",
    "wallet",
)
PLACES = ("kitchen", "garden", "garage", "bedroom", "office", "library", "bathroom", "cellar", "attic", "car")


def extraction(rng: random.Random) -> list[Row]:
    """A passage of two or three sentences with more than one candidate answer, and one question on it."""
    out = []
    for n in range(1, 113):
        a, b = rng.sample(NAMES, 2)
        (t1, t2), (j1, j2), (c1, c2) = rng.sample(TOWNS, 2), rng.sample(JOBS, 2), rng.sample(COLOURS, 2)
        (d1, d2), (p1, p2), (x1, x2) = rng.sample(DAYS, 2), rng.sample(PETS, 2), rng.sample(THINGS, 2)
        (l1, l2), (k1, k2) = rng.sample(PLACES, 2), rng.sample(range(13, 90), 2)
        forms: list[tuple[str, str, str, str, str]] = [
            (
                f"{a} is {_an(j1)} from {t1}. {b} is {_an(j2)} from {t2}.",
                f"Which city is {b} from?",
                "phrase",
                t2,
                t1,
            ),
            (f"{a} works as {_an(j1)} and {b} works as {_an(j2)}.", f"What is {a}'s job?", "phrase", j1, j2),
            (f"The {x1} is {c1} and the {x2} is {c2}.", f"What colour is the {x2}?", "phrase", c2, c1),
            (
                f"The meeting with {a} is on {d1}. The meeting with {b} is on {d2}.",
                f"On which day is the meeting with {a}?",
                "phrase",
                d1,
                d2,
            ),
            (f"{a} has {_an(p1)}. {b} has {_an(p2)}.", f"Who has {_an(p2)}?", "phrase", b, a),
            (
                f"{a} left the {x1} in the {l1} and the {x2} in the {l2}.",
                f"Where is the {x1}?",
                "phrase",
                l1,
                l2,
            ),
            (
                f"{a} is {k1} years old and lives in {t1}. {b} is {k2} years old.",
                f"How old is {a}?",
                "number",
                str(k1),
                "",
            ),
            (f"{a} flew from {t1} to {t2} on {d1}.", f"Where did {a} fly to?", "phrase", t2, ""),
        ]
        passage, question, kind, value, other = forms[n % len(forms)]
        pattern = rf"\b{other}\b" if other else ""  # naming both candidates is no answer
        out.append(
            _item(
                f"extract-{n:03d}",
                "extraction",
                f"{passage} {question}",
                kind,
                [value],
                pattern,
            )
        )
    return out


GROUPS = (
    ("an animal", "animal", "lion horse spider salmon eagle rabbit whale snake goat beetle"),
    ("a plant", "plant", "oak rose tulip daisy fern cactus pine lily bamboo clover"),
    ("a tool", "tool", "hammer saw shovel wrench screwdriver drill rake axe chisel pliers"),
    ("a vehicle", "vehicle", "truck bicycle tractor bus motorcycle van taxi helicopter ambulance train"),
    ("a food", "food", "bread cheese soup pasta cake rice pizza sausage butter pancake"),
)


def sorting(rng: random.Random) -> list[Row]:
    """Which of two groups a thing belongs to."""
    out = []
    number = 0
    for k, (label, word, members) in enumerate(GROUPS):
        for member in members.split():
            number += 1
            other_label, other, _ = rng.choice([g for i, g in enumerate(GROUPS) if i != k])
            pair = [label, other_label]
            rng.shuffle(pair)
            article = (
                ""
                if member
                in (
                    "bread",
                    "cheese",
                    "soup",
                    "pasta",
                    "rice",
                    "butter",
                    "bamboo",
                    "clover",
                    "pliers",
                    "pizza",
                )
                else ("an " if member[0] in "aeiou" else "a ")
            )
            verb = "Are" if member == "pliers" else "Is"
            out.append(
                _item(
                    f"sort-{number:02d}",
                    "sorting",
                    f"{verb} {article}{member} {pair[0]} or {pair[1]}?",
                    "phrase",
                    [word, word + "s"],
                    rf"\b{other}s?\b",
                )
            )
    return out


def words(rng: random.Random) -> list[Row]:
    return [
        _item(
            f"word-{n:02d}",
            "words",
            f'What is the {what} of "{word}"?',
            "phrase",
            right.split(", "),
            shots=what,
        )
        for n, (what, word, right) in enumerate(_rows("inflect"), 1)
    ]


STRATA = (facts, arithmetic, formats, copying, extraction, sorting, words)


def build() -> list[Row]:
    return [row for make in STRATA for row in make(random.Random(f"{SEED}-{make.__name__}"))]


if __name__ == "__main__":
    raise SystemExit(main(HERE, build, __doc__))
