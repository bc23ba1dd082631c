"""Generate the long-context set: one fact in a log of 1,000 to 1,500 tokens, among many facts of the same form.

Usage as in evalsets/writing.py. The sentences were written for this set; rooms, names and things are drawn with a seed.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from writing import Row, item, main, words  # noqa: E402

SEED = 20260214
LOW = 4300  # characters; about 4 to a token of the shipped tokenizer on this text
NAMES = words("names") + words("more_names")
THINGS = words("things")
COLOURS = words("colours")
REMARKS = (
    "The window was closed at the time of the visit.",
    "Nothing else in the room needed attention.",
    "The visit took less than ten minutes.",
    "The floor had been swept the day before.",
    "A note was left on the door.",
    "The heating worked without a fault.",
    "The lights were switched off afterwards.",
    "Everything was found in its usual place.",
)
PLACES = ("beginning", "middle", "end")


def _log(rng: random.Random) -> list[tuple[int, str, str, str, str]]:
    """Entries of a house inspection: room, keeper, colour, thing, text. Rooms and keepers occur once."""
    rooms, names = rng.sample(range(101, 199), len(NAMES)), rng.sample(NAMES, len(NAMES))
    entries: list[tuple[int, str, str, str, str]] = []
    for room, name in zip(rooms, names, strict=True):
        colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
        text = f"Room {room} was inspected. Its key is kept by {name}, and it holds a {colour} {thing}. "
        text += rng.choice(REMARKS)
        entries.append((room, name, colour, thing, text))
        if sum(len(entry[4]) + 1 for entry in entries) >= LOW:
            break
    return entries


def build() -> list[Row]:
    rng = random.Random(SEED)
    rows = []
    for n in range(1, 67):
        entries = _log(rng)
        place = PLACES[n % 3]
        third = len(entries) // 3
        room, name, colour, _, _ = entries[PLACES.index(place) * third + rng.randrange(third)]
        log = " ".join(entry[4] for entry in entries)
        if n % 2:
            question, right = f"Who keeps the key of room {room}?", name
            others = [entry[1] for entry in entries if entry[1] != name]
        else:
            question, right = f"What colour is the thing in room {room}?", colour
            others = [c for c in COLOURS if c != colour]
        pattern = r"\b(?:" + "|".join(others) + r")\b"
        prompt = f"{log}\n\n{question} Answer in one short sentence."
        rows.append(item(f"log-{n:02d}", place, prompt, "phrase", [right], pattern))
    return rows


if __name__ == "__main__":
    raise SystemExit(main(HERE, build))
