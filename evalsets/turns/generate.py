"""Generate the turns set: conversations whose last question can only be answered from an earlier turn.

Usage as in evalsets/writing.py. The sentences were written for this set; names and things are drawn with a seed.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from writing import Row, Turn, item, main, words  # noqa: E402

SEED = 20260213
NAMES = words("names")
TOWNS = words("towns")
PETS = words("pets")
COLOURS = words("colours")
DAYS = words("days")
FOOD = words("food")
ASIDES: tuple[Turn, ...] = (
    ("Thank you. How many days has a week?", "A week has seven days."),
    ("By the way, what colour is snow?", "Snow is white."),
    ("What does a baker make?", "A baker makes bread."),
    ("Is ice cold?", "Yes, ice is cold."),
    ("How many wheels has a bicycle?", "A bicycle has two wheels."),
)


def _but(pool: list[str], right: str) -> str:
    """A pattern that refuses a reply that names another of the candidates."""
    return r"\b(?:" + "|".join(word for word in pool if word != right) + r")\b"


def recall(rng: random.Random) -> list[Row]:
    """A fact told first, something else between, then the question."""
    rows = []
    for n in range(1, 25):
        name, town, pet, colour, day = (rng.choice(pool) for pool in (NAMES, TOWNS, PETS, COLOURS, DAYS))
        other = rng.choice([t for t in TOWNS if t != town])
        coats, towns = [c for c in COLOURS if c != "white"], [t for t in TOWNS if t != other]
        forms = [
            (
                f"My name is {name} and I work as a baker.",
                f"Nice to meet you, {name}.",
                "What is my name?",
                name,
                NAMES,
            ),
            (f"I live in {town}.", "That is a beautiful city.", "In which city do I live?", town, TOWNS),
            (f"My {pet} is called Pepper.", "What a nice name.", "What kind of animal is Pepper?", pet, PETS),
            (
                f"I have just bought a {colour} coat.",
                "It will keep you warm.",
                "What colour is my coat?",
                colour,
                coats,
            ),
            (
                f"I will see the doctor on {day}.",
                "I hope that it goes well.",
                "On which day will I see the doctor?",
                day,
                DAYS,
            ),
            (
                f"My sister moved from {other} to {town}.",
                "I hope she likes it there.",
                "Where does my sister live now?",
                town,
                towns,
            ),
        ]
        told, said, question, right, pool = forms[n % len(forms)]
        rows.append(
            item(
                f"recall-{n:02d}",
                "recall",
                question,
                "phrase",
                [right],
                _but(pool, right),
                before=[(told, said), rng.choice(ASIDES)],
            )
        )
    return rows


def update(rng: random.Random) -> list[Row]:
    """Something said and then corrected: the later word counts."""
    rows = []
    for n in range(1, 19):
        (d1, d2), (t1, t2), (f1, f2) = rng.sample(DAYS, 2), rng.sample(TOWNS, 2), rng.sample(FOOD, 2)
        name = rng.choice(NAMES)
        forms = [
            (
                f"{name}'s party is on {d1}.",
                f"It has been moved to {d2}.",
                f"On which day is {name}'s party?",
                d2,
                DAYS,
            ),
            (
                f"We are flying to {t1}.",
                f"We have changed our minds: it will be {t2}.",
                "Where are we flying to?",
                t2,
                TOWNS,
            ),
            (
                f"I would like to have {f1} for dinner.",
                f"No, make it {f2}.",
                "What would I like to have for dinner?",
                f2,
                FOOD,
            ),
        ]
        first, second, question, right, pool = forms[n % len(forms)]
        before = [(first, "I will remember that."), (second, "I have noted the change.")]
        rows.append(
            item(f"update-{n:02d}", "updates", question, "phrase", [right], _but(pool, right), before=before)
        )
    return rows


def pointing(rng: random.Random) -> list[Row]:
    """A list that the assistant gave, and a question on one place of it."""
    rows = []
    words = ("first", "second", "third")
    for n in range(1, 19):
        pool, what = ((FOOD, "dishes"), (COLOURS, "colours"), (TOWNS, "cities"))[n % 3]
        listed, place = rng.sample(pool, 3), rng.randrange(3)
        told = f"1. {listed[0]}\n2. {listed[1]}\n3. {listed[2]}"
        question = f"Which one was the {words[place]} in your list?"
        before = [
            (f"Name three {what} for my {rng.choice(('list', 'plan', 'card', 'quiz', 'letter'))}.", told)
        ]
        rows.append(
            item(
                f"point-{n:02d}",
                "pointing",
                question,
                "phrase",
                [listed[place]],
                _but(listed, listed[place]),
                before=before,
            )
        )
    return rows


def sums(rng: random.Random) -> list[Row]:
    """Two numbers told in two turns, and their sum or difference."""
    rows = []
    for n in range(1, 17):
        a, b = rng.randint(3, 9), rng.randint(2, 9)
        name = NAMES[n - 1]
        more = n % 2 == 1
        first = f"{name} has {a + (0 if more else b)} books."
        second = f"{name} buys {b} more." if more else f"{name} gives {b} of them away."
        before = [(first, "I see."), (second, "I have noted that.")]
        right = str(a + b if more else a)
        rows.append(
            item(
                f"sum-{n:02d}",
                "sums",
                f"How many books does {name} have now?",
                "number",
                [right],
                before=before,
            )
        )
    return rows


def build() -> list[Row]:
    parts = (recall, update, pointing, sums)
    rows = [row for make in parts for row in make(random.Random(f"{SEED}-{make.__name__}"))]
    distinct = {json.dumps(row["messages"]): row for row in reversed(rows)}  # a draw may come twice
    return [row for row in rows if distinct[json.dumps(row["messages"])] is row]


if __name__ == "__main__":
    raise SystemExit(main(HERE, build))
