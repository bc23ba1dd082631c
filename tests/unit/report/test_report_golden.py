"""The golden files are what the code makes today; after a wanted change run tests/golden/regenerate.py."""

from __future__ import annotations

import pytest
from tests.golden.regenerate import HERE, files


@pytest.mark.parametrize("name", sorted(files()))
def test_golden_file_is_current(name: str) -> None:
    assert (HERE / name).read_text(encoding="utf-8") == files()[name]
