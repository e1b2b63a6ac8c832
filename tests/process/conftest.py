"""What the tests of processes share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A folder in which handlers say by files how far they are."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder
