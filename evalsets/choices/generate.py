"""Generate the choices set: multiple choice, scored by likelihood.

    python evalsets/choices/generate.py            write items.jsonl and refresh card.yaml
    python evalsets/choices/generate.py --check    exit 1 unless the committed files are what this generates

The tables (tables/*.txt) were written by hand for this set. One row of a table (a fact, a word, a passage) is
a cluster and gives at most two items; the type of question is the stratum. Wrong answers are drawn with a
seed from other rows of the same table, or stand in the row where a drawn one might be right by accident. The
position of the right answer is balanced within each stratum.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from writing import Row, main  # noqa: E402

SEED = 20240917


@dataclass(frozen=True)
class Draft:
    """An item before its choices are put in order."""

    cluster: str
    stratum: str
    question: str
    right: str
    wrong: tuple[str, ...]


def _rows(table: str) -> list[list[str]]:
    """Rows of tables/TABLE.txt: one a line, fields separated by a bar; lines with a # are comments."""
    lines = (HERE / "tables" / f"{table}.txt").read_text(encoding="utf-8").splitlines()
    return [
        [field.strip() for field in line.split("|")] for line in lines if line and not line.startswith("#")
    ]


def _an(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _cap(text: str) -> str:
    return text[0].upper() + text[1:]


def _draw(rng: random.Random, pool: Sequence[str], count: int, *, but: Sequence[str]) -> tuple[str, ...]:
    return tuple(rng.sample(sorted({p for p in pool if p not in but}), count))


def capitals(rng: random.Random) -> list[Draft]:
    rows = _rows("capitals")
    out = []
    for country, city, continent, towns in rows:
        out.append(
            Draft(
                f"capital-{city}",
                "capitals",
                f"What is the capital of {country}?",
                f"The capital of {country} is {city}.",
                tuple(f"The capital of {country} is {t}." for t in towns.split(", ")),
            )
        )
        near = [r[0] for r in rows if r[2] == continent and r[0] != country]
        others = rng.sample(near, min(3, len(near)))
        others += rng.sample([r[0] for r in rows if r[2] != continent], 3 - len(others))
        town = rng.choice(towns.split(", "))
        out.append(
            Draft(
                f"capital-{city}",
                "capitals",
                f"In which country is the city of {town}?",
                f"{town} is in {country}.",
                tuple(f"{town} is in {o}." for o in others),
            )
        )
    return out


UNCOUNTED = frozenset(
    {"chess", "football", "copper", "French", "cheddar", "coffee", "oxygen", "measles", "purple"}
)
# Wrong answers that somebody could defend.
CONFUSED: dict[str, tuple[str, ...]] = {
    "violin": ("tool",),
    "hammer": ("weapon",),
    "pistol": ("tool",),
    "truck": ("tool",),
    "copper": ("colour",),
    "rose": ("colour", "tree"),
    "apple": ("tree",),
    "diamond": ("shape",),
    "waltz": ("sport",),
    "chess": ("sport",),
    "football": ("board game",),
    "coffee": ("tree", "colour"),
    "sport": ("board game", "dance"),
    "board game": ("sport",),
    "colour": ("gemstone", "flower"),
    "tool": ("weapon",),
    "weapon": ("tool",),
}


def kinds(rng: random.Random) -> list[Draft]:
    rows = _rows("kinds")
    out = []
    for name, kind, members in rows:
        wrong = _draw(rng, [r[1] for r in rows], 3, but=[kind, *CONFUSED.get(name, ())])
        what = name if name in UNCOUNTED else _an(name)
        out.append(
            Draft(
                f"kind-{name}",
                "kinds",
                f"What is {what}?",
                f"{_cap(what)} is {_an(kind)}.",
                tuple(f"{_cap(what)} is {_an(w)}." for w in wrong),
            )
        )
        member = rng.choice(members.split(", "))
        others = rng.sample([r for r in rows if r[1] not in (kind, *CONFUSED.get(kind, ()))], 3)
        asked = f"Name {_an(kind)}. Answer with one word."
        out.append(
            Draft(
                f"kind-{name}",
                "kinds",
                asked,
                _cap(member),
                tuple(_cap(rng.choice(r[2].split(", "))) for r in others),
            )
        )
    return out


def opposites(rng: random.Random) -> list[Draft]:
    out = []
    for word, other, wrong in _rows("opposites"):
        bad = tuple(wrong.split(", "))
        out.append(
            Draft(
                f"opposite-{word}",
                "opposites",
                f'What is the opposite of "{word}"?',
                f'The opposite of "{word}" is "{other}".',
                tuple(f'The opposite of "{word}" is "{b}".' for b in bad),
            )
        )
        out.append(
            Draft(
                f"opposite-{word}",
                "opposites",
                f'Give a word that means the opposite of "{other}". Answer with one word.',
                _cap(word),
                tuple(_cap(b) for b in bad),
            )
        )
    return out


def grammar(rng: random.Random) -> list[Draft]:
    out = []
    for number, row in enumerate(_rows("grammar"), 1):
        for gap, right, wrong in (row[:3], row[3:]):
            asked = f"Fill the gap with the correct word: {gap}"
            out.append(
                Draft(
                    f"grammar-{number:02d}",
                    "grammar",
                    asked,
                    gap.replace("___", right),
                    tuple(gap.replace("___", w) for w in wrong.split(", ")),
                )
            )
    return out


def uses(rng: random.Random) -> list[Draft]:
    rows = _rows("uses")
    out = []
    for tool, use, domain in rows:
        far = [r for r in rows if r[2] != domain]
        verb = "are" if tool == "scissors" else "is"
        out.append(
            Draft(
                f"use-{tool.split()[-1]}",
                "uses",
                f"What {verb} {tool} used for?",
                f"{_cap(tool)} {verb} used to {use}.",
                tuple(f"{_cap(tool)} {verb} used to {r[1]}." for r in rng.sample(far, 3)),
            )
        )
        out.append(
            Draft(
                f"use-{tool.split()[-1]}",
                "uses",
                f"What would you use to {use}?",
                f"You would use {tool}.",
                tuple(f"You would use {r[0]}." for r in rng.sample(far, 3)),
            )
        )
    return out


def endings(rng: random.Random) -> list[Draft]:
    out = []
    for number, row in enumerate(_rows("endings"), 1):
        for start, right, wrong in (row[:3], row[3:]):
            out.append(
                Draft(
                    f"ending-{number:02d}",
                    "endings",
                    f"Finish this sentence: {start} ...",
                    right,
                    tuple(w if w.endswith(".") else w + "." for w in wrong.split("; ")),
                )
            )
    return out


NAMES_F = (
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
)
NAMES_M = (
    "Tom",
    "Peter",
    "David",
    "James",
    "Paul",
    "Simon",
    "Mark",
    "Daniel",
    "Henry",
    "Oscar",
    "Victor",
    "Leo",
)
THINGS = (
    "cup",
    "book",
    "hat",
    "ball",
    "key",
    "phone",
    "coat",
    "lamp",
    "letter",
    "ring",
    "knife",
    "pen",
    "plate",
    "camera",
)
PLACES = (
    "on the table",
    "in the drawer",
    "under the bed",
    "in the kitchen",
    "on the shelf",
    "in the garden",
    "behind the door",
    "in the car",
    "on the roof",
    "in the basket",
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple")
JOBS = ("doctor", "teacher", "farmer", "painter", "lawyer", "baker", "pilot", "nurse", "singer", "soldier")
TOWNS = ("London", "Paris", "Rome", "Berlin", "Madrid", "Boston", "Chicago", "Tokyo", "Dublin", "Vienna")
FOODS = ("soup", "fish", "rice", "pizza", "salad", "bread", "cheese", "chicken", "pasta", "cake")
ANIMALS = ("a dog", "a cat", "a horse", "a parrot", "a rabbit", "a goat", "a turtle", "a duck")


def reading(rng: random.Random) -> list[Draft]:
    """Two or three sentences with three people, places or colours in them; two questions on each passage."""
    out = []
    for number in range(1, 41):
        people = rng.sample(NAMES_F, 2) + rng.sample(NAMES_M, 2)
        rng.shuffle(people)
        form = number % 5
        if form == 0:
            things, values = rng.sample(THINGS, 4), rng.sample(PLACES, 4)
            facts = [f"{p} put the {t} {v}." for p, t, v in zip(people, things, values, strict=True)]
            asked = [
                (
                    f"Where did {people[i]} put the {things[i]}?",
                    [f"{people[i]} put the {things[i]} {v}." for v in values],
                    i,
                )
                for i in (0, 2)
            ]
        elif form == 1:
            values = rng.sample(JOBS, 4)
            facts = [f"{p} is {_an(v)}." for p, v in zip(people, values, strict=True)]
            asked = [
                (f"What is {people[i]}'s job?", [f"{people[i]} is {_an(v)}." for v in values], i)
                for i in (1, 3)
            ]
        elif form == 2:
            values = rng.sample(TOWNS, 4)
            facts = [f"{p} lives in {v}." for p, v in zip(people, values, strict=True)]
            asked = [
                (f"Who lives in {values[i]}?", [f"{p} lives in {values[i]}." for p in people], i)
                for i in (0, 3)
            ]
        elif form == 3:
            things, values = rng.sample(THINGS, 4), rng.sample(COLOURS, 4)
            facts = [f"The {t} is {v}." for t, v in zip(things, values, strict=True)]
            asked = [
                (f"What colour is the {things[i]}?", [f"The {things[i]} is {v}." for v in values], i)
                for i in (1, 2)
            ]
        else:
            values = rng.sample(FOODS, 4)
            facts = [f"{p} had {v} for dinner." for p, v in zip(people, values, strict=True)]
            asked = [
                (
                    f"What did {people[i]} have for dinner?",
                    [f"{people[i]} had {v} for dinner." for v in values],
                    i,
                )
                for i in (0, 2)
            ]
        for question, answers, right in asked:
            out.append(
                Draft(
                    f"reading-{number:02d}",
                    "reading",
                    " ".join(facts) + " " + question,
                    answers[right],
                    tuple(a for k, a in enumerate(answers) if k != right),
                )
            )
    return out


def arithmetic(rng: random.Random) -> list[Draft]:
    """Sums and differences below 20, and the small multiplication table; a pair of numbers is the cluster."""
    out: list[Draft] = []
    pairs = rng.sample([(a, b) for a in range(3, 13) for b in range(2, 10) if a > b], 36)
    for a, b in pairs:
        second = ("-", a - b) if rng.random() < 0.6 else ("x", a * b)
        for sign, value in (("+", a + b), second):
            offsets = [d for d in (-3, -2, -1, 1, 2, 3, 4, 10) if value + d > 0]
            wrong = rng.sample(offsets, 3)
            out.append(
                Draft(
                    f"numbers-{a}-{b}",
                    "arithmetic",
                    f"What is {a} {sign} {b}?",
                    f"{a} {sign} {b} = {value}",
                    tuple(f"{a} {sign} {b} = {value + d}" for d in wrong),
                )
            )
    return out


def pronouns(rng: random.Random) -> list[Draft]:
    out = []
    for number, row in enumerate(_rows("pronouns"), 1):
        for text, question, right, wrong in (row[:4], row[4:]):
            tail = question.removeprefix("Who ").removeprefix("What ").rstrip("?")
            out.append(
                Draft(
                    f"pronoun-{number:02d}",
                    "pronouns",
                    f"{text} {question}",
                    f"{right} {tail}.",
                    (f"{wrong} {tail}.",),
                )
            )
    return out


def morphology(rng: random.Random) -> list[Draft]:
    out = []
    for word, right, wrong in _rows("morphology_nouns"):
        bad = wrong.split(", ")
        out.append(
            Draft(
                f"plural-{word}",
                "morphology",
                f'What is the plural of "{word}"?',
                f'The plural is "{right}".',
                tuple(f'The plural is "{b}".' for b in bad),
            )
        )
    for word, right, wrong in _rows("morphology_verbs"):
        bad = wrong.split(", ")
        out.append(
            Draft(
                f"past-{word}",
                "morphology",
                f'What is the past tense of "{word}"?',
                f'The past tense is "{right}".',
                tuple(f'The past tense is "{b}".' for b in bad),
            )
        )
    return out


def sequences(rng: random.Random) -> list[Draft]:
    out = []
    for a, b, c, wrong1, wrong2 in _rows("sequences"):
        out.append(
            Draft(
                f"sequence-{a}-{c}",
                "sequences",
                f"What comes next? {a}, {b}, ...",
                f"{a}, {b}, {c}",
                tuple(f"{a}, {b}, {w}" for w in wrong1.split(", ")),
            )
        )
        out.append(
            Draft(
                f"sequence-{a}-{c}",
                "sequences",
                f"Which comes between {a} and {c}?",
                f"{b} comes between {a} and {c}.",
                tuple(f"{w} comes between {a} and {c}." for w in wrong2.split(", ") if w not in (a, c)),
            )
        )
    return out


def nature(rng: random.Random) -> list[Draft]:
    out = []
    for number, row in enumerate(_rows("nature"), 1):
        for question, right, wrong in (row[:3], row[3:]):
            out.append(
                Draft(
                    f"world-{number:02d}", "world", question, right, tuple(w + "." for w in wrong.split("; "))
                )
            )
    return out


def moods(rng: random.Random) -> list[Draft]:
    out = []
    for number, row in enumerate(_rows("moods"), 1):
        for review, mood in (row[:2], row[2:]):
            other = "negative" if mood == "positive" else "positive"
            out.append(
                Draft(
                    f"mood-{number:02d}",
                    "moods",
                    f'Is this review positive or negative? "{review}"',
                    f"This review is {mood}.",
                    (f"This review is {other}.",),
                )
            )
    return out


STRATA = (
    capitals,
    kinds,
    opposites,
    grammar,
    uses,
    endings,
    reading,
    arithmetic,
    pronouns,
    morphology,
    sequences,
    nature,
    moods,
)


def build() -> list[Row]:
    rows: list[Row] = []
    for make in STRATA:
        rng = random.Random(f"{SEED}-{make.__name__}")
        drafts = make(rng)
        for width in sorted({len(d.wrong) + 1 for d in drafts}):
            group = [d for d in drafts if len(d.wrong) + 1 == width]
            places = [k % width for k in range(len(group))]
            rng.shuffle(places)
            for draft, place in zip(group, places, strict=True):
                choices = rng.sample(draft.wrong, len(draft.wrong))
                choices.insert(place, draft.right)
                rows.append(
                    {
                        "cluster": draft.cluster,
                        "stratum": draft.stratum,
                        "choices": choices,
                        "answer": place,
                        "messages": [{"role": "user", "content": draft.question}],
                    }
                )
    used: Counter[str] = Counter()
    rows.sort(
        key=lambda r: (
            [m.__name__ for m in STRATA].index("nature" if r["stratum"] == "world" else str(r["stratum"])),
            str(r["cluster"]),
        )
    )
    for row in rows:
        used[str(row["cluster"])] += 1
        row["id"] = f"{row['cluster']}-{used[str(row['cluster'])]}"
    return rows


if __name__ == "__main__":
    raise SystemExit(main(HERE, build, __doc__))
