"""Generated files match the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.generate import PAGES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    """`make generated` renews it."""
    assert path.read_text() == PAGES[path]()
