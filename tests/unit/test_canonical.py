from __future__ import annotations

import math

import pytest

from checkweigh import canonical


def test_one_text_for_one_value() -> None:
    assert canonical.dumps({"b": [1, 2.5, None, True], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.5,null,true]}'
    assert canonical.digest({"a": 1, "b": 2}) == canonical.digest({"b": 2, "a": 1})
    assert canonical.digest({"a": 1}) != canonical.digest({"a": 1.0})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_that_json_does_not_have(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical.dumps([number])


def test_digests_name_their_algorithm() -> None:
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert canonical.digest_bytes(b"") == empty
    assert canonical.short(empty) == "e3b0c44298fc"
