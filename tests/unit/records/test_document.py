"""Bad documents: each is refused with file, line, dotted path, what was expected and what stood there."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkweigh.errors import BadDocument, Problem
from checkweigh.records.manifest import Lock, Manifest
from checkweigh.records.policy import Policy
from checkweigh.records.yaml.document import parse, parse_json
from checkweigh.records.yaml.yaml_tree import MAX_BYTES, dotted

MANIFEST = """\
schema: checkweigh/manifest@1
name: tiny
model:
  source: path:model
engine:
  kind: transformers
  version: "5.23.0"
"""
POLICY = """\
schema: checkweigh/policy@1
name: strict
checks:
  - id: quality
    metric: accuracy
    evalset: [choices]
    direction: higher
    margin: 0.02
    because: two points are what readers notice
    tier: critical
"""


def problems(model: type[Manifest] | type[Policy], text: str | bytes) -> list[Problem]:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(BadDocument) as caught:
        parse(model, data, "doc.yaml")
    return caught.value.problems


def only(model: type[Manifest] | type[Policy], text: str | bytes) -> str:
    found = problems(model, text)
    assert len(found) == 1, found
    return str(found[0])


def test_the_good_ones_are_good() -> None:
    assert parse(Manifest, MANIFEST.encode(), "doc.yaml").limits.max_sequence == 2048
    assert parse(Policy, POLICY.encode(), "doc.yaml").checks[0].margin == 0.02
    assert parse(Policy, POLICY.replace("0.02", "2e-2").encode(), "doc.yaml").checks[0].margin == 0.02


def test_a_key_twice() -> None:
    text = MANIFEST + "name: other\n"
    assert only(Manifest, text) == "doc.yaml:8: name: expected each key once, found 'name' a second time"


def test_a_key_twice_deep_inside() -> None:
    text = MANIFEST.replace("  kind: transformers\n", "  kind: transformers\n  kind: fake\n")
    assert (
        only(Manifest, text) == "doc.yaml:7: engine.kind: expected each key once, found 'kind' a second time"
    )


@pytest.mark.parametrize("number", [".nan", ".NaN", ".inf", "-.inf", "+.inf"])
def test_margins_are_finite(number: str) -> None:
    found = only(Policy, POLICY.replace("0.02", number))
    assert found == f"doc.yaml:8: checks[0].margin: expected a finite number, found {number}"


def test_margins_are_not_negative() -> None:
    found = only(Policy, POLICY.replace("0.02", "-0.02"))
    assert found.startswith("doc.yaml:8: checks[0].margin: expected ")
    assert "greater than or equal to 0" in found
    assert found.endswith("found -0.02")


@pytest.mark.parametrize(
    ("written", "shown"),
    [("true", "true"), ('"0.02"', '"0.02"'), ("1:30", '"1:30"'), ("010", '"010"'), ("1_0", '"1_0"'),
     ("0x1", '"0x1"'), ("yes", '"yes"'), ("~", "null"), ("", "null"), ("[0.02]", "[0.02]")],
)  # fmt: skip
def test_a_margin_is_a_number_and_nothing_else(written: str, shown: str) -> None:
    found = only(Policy, POLICY.replace("0.02", written))
    assert found == f"doc.yaml:8: checks[0].margin: expected a number, found {shown}"


def test_bool_is_not_an_integer() -> None:
    found = only(Manifest, MANIFEST + "limits:\n  max_sequence: true\n")
    assert found == "doc.yaml:9: limits.max_sequence: expected a whole number, found true"


def test_a_fraction_is_not_an_integer() -> None:
    assert "limits.max_sequence: expected" in only(Manifest, MANIFEST + "limits:\n  max_sequence: 20.5\n")


def test_a_version_without_quotes() -> None:
    found = only(Manifest, MANIFEST.replace('"5.23.0"', "5.23"))
    assert found == "doc.yaml:7: engine.version: expected text (put it in quotes), found 5.23"


def test_the_near_miss_is_suggested() -> None:
    found = problems(Policy, POLICY.replace("margin:", "margn:"))
    assert [str(p) for p in found] == [
        "doc.yaml:4: checks[0].margin: expected this key, found nothing",
        "doc.yaml:8: checks[0].margn: expected a known key, found 'margn' (did you mean 'margin'?)",
    ]


def test_an_unknown_metric_is_suggested() -> None:
    found = only(Policy, POLICY.replace("metric: accuracy", "metric: acuracy"))
    assert found.startswith("doc.yaml:5: checks[0].metric: expected one of log_perplexity, ")
    assert found.endswith("found \"acuracy\" (did you mean 'accuracy'?)")


def test_an_unknown_tier_is_suggested() -> None:
    found = only(Policy, POLICY.replace("tier: critical", "tier: critcal"))
    assert found.startswith("doc.yaml:10: checks[0].tier: expected one of 'critical'")
    assert found.endswith("(did you mean 'critical'?)")


def test_all_problems_at_once_in_order() -> None:
    text = POLICY.replace("0.02", "-1").replace("higher", "up").replace("critical", "5") + "colour: blue\n"
    lines = [(p.line, p.path) for p in problems(Policy, text)]
    assert lines == [
        (7, "checks[0].direction"),
        (8, "checks[0].margin"),
        (10, "checks[0].tier"),
        (11, "colour"),
    ]


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system ['true']", "!!python/name:os.system ''", "!thing x", "!!set {a, b}",
     "!!binary aGk=", "!!timestamp 2020-01-01"],
)  # fmt: skip
def test_tags_are_refused(value: str) -> None:
    found = problems(Manifest, MANIFEST.replace("name: tiny", f"name: {value}"))
    assert all((p.line, p.path) == (2, "name") for p in found)
    assert found


def test_a_tag_on_a_key_is_refused() -> None:
    found = problems(Manifest, MANIFEST.replace("name: tiny", "!!python/name:os.system name: tiny"))
    assert "doc.yaml:2: expected text as a key, found a tag" in map(str, found)


def test_aliases_are_refused() -> None:
    found = problems(Manifest, MANIFEST.replace("name: tiny", "name: &n tiny") + "comment: *n\n")
    assert [str(p) for p in found] == [
        "doc.yaml:8: comment: expected a value written out, found a YAML alias"
    ]


def test_an_anchor_that_loops() -> None:
    found = problems(Manifest, MANIFEST + "intends: &a [*a]\n")
    assert [(p.line, p.path, p.found) for p in found] == [(8, "intends[0]", "a YAML alias")]


def test_an_alias_as_a_key() -> None:
    found = problems(Manifest, MANIFEST.replace("name: tiny", "name: &n comment\n*n : x"))
    assert str(found[0]) == "doc.yaml:3: expected text as a key, found a YAML alias"


def test_merge_keys_are_refused() -> None:
    text = MANIFEST.replace("engine:\n", "engine:\n  <<: {kind: fake}\n")
    assert (problems(Manifest, text)[0].line, problems(Manifest, text)[0].expected) == (
        6,
        "the keys written out",
    )


def test_billions_of_laughs_end_quickly() -> None:
    levels = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    assert problems(Manifest, "\n".join(levels))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "doc.yaml: expected a document, found an empty file"),
        (b"\n# only a comment\n", "doc.yaml: expected a document, found an empty file"),
        (b"\x89PNG\r\n\x1a\n\x00", "doc.yaml:1: expected UTF-8 text, found byte 0x89"),
        (b"name: \xff\xfe", "doc.yaml:1: expected UTF-8 text, found byte 0xff"),
        (b"- a\n- b\n", "doc.yaml:1: expected a mapping of keys to values, found a list"),
        (b"just text", "doc.yaml:1: expected a mapping of keys to values, found text"),
        (b"null", "doc.yaml:1: expected a mapping of keys to values, found nothing"),
    ],
)
def test_files_that_are_something_else(data: bytes, expected: str) -> None:
    assert only(Manifest, data) == expected


@pytest.mark.parametrize(
    ("data", "line"),
    [(b"a: [1, 2\nb: 3\n", 2), (b"a: 'open\n", 2), (b"a: b: c\n", 1), (b"a: 1\n\tb: 2\n", 2),
     (b"a: 1\n---\nb: 2\n", 2)],
)  # fmt: skip
def test_broken_yaml_names_the_line(data: bytes, line: int) -> None:
    found = problems(Manifest, data)
    assert (found[0].expected, found[0].line) == ("well-formed YAML", line)


@pytest.mark.parametrize("data", [b"a: \x00", b"a: \x07", b"[" * 100_000, b"{a: " * 50_000])
def test_hostile_text_is_refused(data: bytes) -> None:
    assert problems(Manifest, data)[0].expected == "well-formed YAML"


def test_a_number_too_large_to_be_one() -> None:
    assert problems(Manifest, MANIFEST + "limits:\n  max_sequence: " + "9" * 5000 + "\n")[0].line == 9


def test_a_file_too_large() -> None:
    assert (
        only(Manifest, b"#" * (MAX_BYTES + 1)) == f"doc.yaml: expected at most {MAX_BYTES} bytes, found more"
    )


def test_a_lone_surrogate() -> None:
    assert problems(Manifest, MANIFEST.replace("name: tiny", 'name: tiny\ncomment: "\\ud800"'))


def test_an_option_of_no_known_type_is_one_problem() -> None:
    text = MANIFEST.replace("transformers", "fake") + "  options:\n    bias: [1]\n"
    found = only(Manifest, text)
    assert found.startswith(
        "doc.yaml:9: engine.options.bias: expected true or false or a whole number or a number"
    )


@pytest.mark.parametrize(
    "source",
    ["hf:o/r", "hf:o/r@main", "hf:o/r@v1.0", "hf:o/r@" + "A" * 40, "package:dist/file", "package:dist==1",
     "models:/m/1", "../model", "path:", "package:-r==1/x"],
)  # fmt: skip
def test_sources_that_move_or_are_unknown(source: str) -> None:
    found = only(Manifest, MANIFEST.replace("path:model", f'"{source}"'))
    assert found.startswith(
        "doc.yaml:4: model.source: expected path:DIR-or-FILE, hf:OWNER/REPO@40-hex-commit (no branch"
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("quantization: {method: bitsandbytes, bits: 8, type: nf4}\n", "quantization"),
        ("quantization: {bits: 8}\n", "quantization"),
        ("prompts: {template: no place}\n", "prompts"),
    ],
)
def test_values_that_do_not_go_together(text: str, path: str) -> None:
    found = only(Manifest, MANIFEST + text)
    assert found.startswith(f"doc.yaml:8: {path}: expected ")
    assert found.endswith("found these values together")


def test_dates_and_words_stay_text() -> None:
    manifest = parse(
        Manifest, MANIFEST.replace("name: tiny", "name: 2026-01-01\ncomment: no").encode(), "doc.yaml"
    )
    assert (manifest.name, manifest.comment) == ("2026-01-01", "no")


def test_dotted() -> None:
    assert dotted(("checks", 0, "margin")) == "checks[0].margin"


def test_a_lock_that_is_not_json() -> None:
    with pytest.raises(BadDocument, match=r"^tiny\.lock\.json:1: expected well-formed JSON, found Expecting"):
        parse_json(Lock, b"{", "tiny.lock.json")


def test_a_lock_lists_all_that_is_wrong() -> None:
    with pytest.raises(BadDocument) as caught:
        parse_json(
            Lock, b'{"schema": "checkweigh/lock@1", "name": "UP", "pins": {"manifest": "md5:0"}}', "lock"
        )
    paths = {problem.path for problem in caught.value.problems}
    assert {"name", "pins.manifest", "pins.source", "pins.weights"} <= paths


def test_the_json_schema_says_what_the_parser_says() -> None:
    schema = Manifest.model_json_schema(by_alias=True)
    text = json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["schema", "name", "model", "engine"]
    assert schema["properties"]["schema"]["const"] == "checkweigh/manifest@1"
    assert "40-hex-commit" in text
    assert all(
        d.get("additionalProperties") is False for d in schema["$defs"].values() if d["type"] == "object"
    )


@pytest.mark.parametrize("text", ['"\\0"', '"a\\x07"', '"\\e[31m"', '"\\x9b"', '"\\ud83d"', "'a\x7fb'"])
def test_control_characters_are_refused_with_their_place(text: str) -> None:
    (found,) = problems(Manifest, MANIFEST + f"comment: {text}\n")
    assert found.line == 8
    assert found.expected in ("text without control characters and half surrogate pairs", "well-formed YAML")
    assert all(character.isprintable() for character in str(found))


@pytest.mark.parametrize(
    ("data", "line", "found"),
    [
        (b"a: 1\nb: \x07", 2, "the control character '\\x07'"),
        (b"a: 1\nb: \xff", 2, "byte 0xff"),
        (b'a: 1\nb: "\\U00110000"', 2, "chr() arg not in range(0x110000)"),
        (b"a: 1\nb: " + b"[" * 100 + b"]" * 100, 2, "more than 50 levels"),
        (b"a: 1\nb: [" + b"1," * 60_000 + b"]", 2, "more than 50000 values"),
        (b"a: *b", 1, "undefined alias 'b'"),
        (b"a: 1\n---\nb: 1", 2, "another document"),
    ],
)
def test_the_line_of_what_cannot_be_read(data: bytes, line: int, found: str) -> None:
    (problem,) = problems(Manifest, data)
    assert (problem.line, problem.found) == (line, found)


@pytest.mark.parametrize("number", ["9" * 31, "-" + "9" * 5000, "0." + "1" * 40])
def test_numbers_have_few_digits(number: str) -> None:
    found = only(Manifest, MANIFEST + f"sampling:\n  seed: {number}\n")
    assert found.startswith("doc.yaml:9: sampling.seed: expected a number of at most 30 digits, found ")
    assert len(found) < 200


def test_a_seed_fits_into_the_engines() -> None:
    assert parse(Manifest, (MANIFEST + f"sampling: {{seed: {2**63 - 1}}}\n").encode(), "x").sampling.seed > 0
    assert "sampling.seed: expected less than or equal to" in only(
        Manifest, MANIFEST + f"sampling: {{seed: {2**63}}}\n"
    )


def test_other_problems_of_the_section_are_not_hidden() -> None:
    text = MANIFEST + "sampling:\n  <<: {a: 1}\n  sed: 1\n  1: 2\n  top_p: .nan\n"
    assert [(p.line, p.path) for p in problems(Manifest, text)] == [
        (9, "sampling.<<"), (10, "sampling.sed"), (11, "sampling"), (12, "sampling.top_p"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "lock:1: expected well-formed JSON, found an empty file"),
        (b'{"a": 1, "a": 2}', 'lock: expected well-formed JSON, found the key "a" twice in one object'),
        (b'{"a": NaN}', "lock: expected well-formed JSON, found NaN, which is no number"),
        (b"[" * 100_000, "lock: expected well-formed JSON, found too many levels"),
        (b"{\n" + b'"a": ' + b"9" * 5000 + b"}", "lock: expected well-formed JSON, found Exceeds the limit"),
        (b'{\n"a": "open', "lock:2: expected well-formed JSON, found Unterminated string"),
        (b"\xff", "lock:1: expected UTF-8 text, found byte 0xff"),
        (b"[]", "lock: expected a mapping, found []"),
        (b"null", "lock: expected a mapping, found null"),
        (b'{"name": "\\ud800"}', "lock: expected JSON without half surrogate pairs, found "),
    ],
)
def test_json_that_is_no_lock(data: bytes, found: str) -> None:
    with pytest.raises(BadDocument) as caught:
        parse_json(Lock, data, "lock")
    assert str(caught.value).startswith(found)


def test_unknown_keys_of_a_lock_are_suggested() -> None:
    with pytest.raises(
        BadDocument, match=r"lock: nam: expected a known key, found 'nam' \(did you mean 'name'\?\)"
    ):
        parse_json(Lock, b'{"nam": "x"}', "lock")


YAMLISH = st.text(alphabet="ab:-[]{}&*!|>?'\"%@#,~<= \n\t01.e\\xu", max_size=60).map(str.encode)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), YAMLISH))
def test_no_text_crashes_the_reader(data: bytes) -> None:
    for read in (lambda: parse(Manifest, data, "x"), lambda: parse_json(Lock, data, "x")):
        with pytest.raises(BadDocument) as caught:
            read()
        assert caught.value.problems
