"""Generate the structured set: replies that must be JSON with the right content, and calls of a named tool.

Usage as in evalsets/writing.py. The sentences were written for this set; names and numbers are drawn with a seed.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from writing import Row, item, main, words  # noqa: E402

SEED = 20260212
NAMES = words("names")
TOWNS = words("towns")
FRUIT = words("fruit")
TOOLS = words("tools")
COLOURS = words("colours")
MONTHS = words("months")

VALUE = r'(?:"[^"\\{}\[\]]*"|-?\d+(?:\.\d+)?|true|false|null)'
FENCE, END = r"(?:```(?:json)?\s*)?", r"(?:\s*```)?"


def flat(wanted: dict[str, object]) -> str:
    """A pattern for one flat JSON object with exactly these members, in any order and with any blanks."""
    pair = rf'"\w+"\s*:\s*{VALUE}'
    needs = "".join(rf'(?=[^{{}}]*"{key}"\s*:\s*{_literal(value)}\s*[,}}])' for key, value in wanted.items())
    return rf"\{{{needs}\s*{pair}(?:\s*,\s*{pair}){{{len(wanted) - 1}}}\s*\}}"


def _literal(value: object) -> str:
    return re.escape(json.dumps(value))


def reply(pattern: str) -> str:
    return FENCE + pattern + END


RECORD = ("Write as a JSON object with the keys", "Reply with the JSON only.")
RECORD_SHOTS = [
    (f'{RECORD[0]} "name" and "town": Rosa lives in Bern. {RECORD[1]}', '{"name": "Rosa", "town": "Bern"}'),
    (f'{RECORD[0]} "name" and "age": Otto is 40 years old. {RECORD[1]}', '{"name": "Otto", "age": 40}'),
]


def records(rng: random.Random) -> list[Row]:
    """A sentence to an object of two or three members: texts, numbers, true and false."""
    rows: list[Row] = []
    for n in range(1, 29):
        name, town, colour, month = (rng.choice(words) for words in (NAMES, TOWNS, COLOURS, MONTHS))
        number = rng.randint(13, 89)
        forms: list[tuple[str, dict[str, object]]] = [
            (
                f"{name} is {number} years old and lives in {town}.",
                {"name": name, "age": number, "town": town},
            ),
            (f"{name} bought {number} {colour} chairs.", {"name": name, "count": number, "colour": colour}),
            (f"The train to {town} leaves from platform {number}.", {"town": town, "platform": number}),
            (f"{name} was born in {month} and is a member.", {"name": name, "month": month, "member": True}),
            (f"The shop in {town} is closed in {month}.", {"town": town, "month": month, "open": False}),
            (
                f"{name} paid {number}.5 euros for the {colour} lamp.",
                {"name": name, "price": number + 0.5, "colour": colour},
            ),
        ]
        sentence, wanted = forms[n % len(forms)]
        keys = ", ".join(f'"{key}"' for key in wanted)
        prompt = f"{RECORD[0]} {keys}: {sentence} {RECORD[1]}"
        rows.append(
            item(
                f"record-{n:02d}",
                "records",
                prompt,
                "regex",
                [json.dumps(wanted)],
                reply(flat(wanted)),
                before=RECORD_SHOTS,
            )
        )
    return rows


ARRAY_SHOTS = [
    ("Write as a JSON array of strings: cow, hen and goat. Reply with the JSON only.", '["cow", "hen", "goat"]'),
    ("Write as a JSON array of numbers: 4, 9 and 12. Reply with the JSON only.", "[4, 9, 12]"),
]  # fmt: skip


def arrays(rng: random.Random) -> list[Row]:
    """Three or four things to a JSON array, in order."""
    rows = []
    for n in range(1, 19):
        size = 3 + n % 2
        pool: list[object] = (
            list(range(11, 99)) if n % 3 == 0 else list(rng.choice((FRUIT, TOOLS, COLOURS, TOWNS)))
        )
        things = rng.sample(pool, size)
        listed = ", ".join(str(thing) for thing in things[:-1]) + f" and {things[-1]}"
        what = "numbers" if n % 3 == 0 else "strings"
        prompt = f"Write as a JSON array of {what}: {listed}. Reply with the JSON only."
        pattern = r"\[\s*" + r"\s*,\s*".join(_literal(thing) for thing in things) + r"\s*\]"
        rows.append(
            item(
                f"array-{n:02d}",
                "arrays",
                prompt,
                "regex",
                [json.dumps(things)],
                reply(pattern),
                before=ARRAY_SHOTS,
            )
        )
    return rows


TOOL_LIST = (
    "You can call these tools:\n"
    "get_weather(town)\nset_timer(minutes)\nsend_message(name, text)\nconvert(amount, unit)\n"
    'Reply with one JSON object: {"tool": NAME, "arguments": {...}}.\n\n'
)
TOOL_SHOTS = [
    (TOOL_LIST + "What is the weather in Bern?", '{"tool": "get_weather", "arguments": {"town": "Bern"}}'),
    (TOOL_LIST + "Wake me in 3 minutes.", '{"tool": "set_timer", "arguments": {"minutes": 3}}'),
]
TEXTS = ("I am late", "call me", "dinner is ready", "the door is open", "happy birthday", "see you soon")


def calls(rng: random.Random) -> list[Row]:
    """One of four tools, with the arguments that the request names."""
    rows, asked = [], set()
    while len(rows) < 24:
        n = len(rows) + 1
        town, name, text = rng.choice(TOWNS), rng.choice(NAMES), rng.choice(TEXTS)
        number, unit = rng.randint(4, 90), rng.choice(("miles", "pounds", "feet", "litres"))
        forms: list[tuple[str, str, dict[str, object]]] = [
            (f"Is it raining in {town}?", "get_weather", {"town": town}),
            (f"Set a timer for {number} minutes.", "set_timer", {"minutes": number}),
            (f'Tell {name} "{text}".', "send_message", {"name": name, "text": text}),
            (f"Convert {number} {unit}.", "convert", {"amount": number, "unit": unit}),
        ]
        request, tool, arguments = forms[n % len(forms)]
        if request in asked:
            continue
        asked.add(request)
        whole = {"tool": tool, "arguments": arguments}
        pattern = rf'\{{\s*"tool"\s*:\s*"{tool}"\s*,\s*"arguments"\s*:\s*{flat(arguments)}\s*\}}'
        rows.append(
            item(
                f"call-{n:02d}",
                "tool-calls",
                TOOL_LIST + request,
                "regex",
                [json.dumps(whole)],
                reply(pattern),
                before=TOOL_SHOTS,
            )
        )
    return rows


def build() -> list[Row]:
    parts = (records, arrays, calls)
    rows = [row for make in parts for row in make(random.Random(f"{SEED}-{make.__name__}"))]
    distinct = {json.dumps(row["messages"]): row for row in reversed(rows)}  # a draw may come twice
    return [row for row in rows if distinct[json.dumps(row["messages"])] is row]


if __name__ == "__main__":
    raise SystemExit(main(HERE, build))
