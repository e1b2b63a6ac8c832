"""`stats`, on both engines."""

from __future__ import annotations

import pytest

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually


@pytest.mark.slow
def test_stats_are_printed(cli: CommandLine) -> None:
    """As JSON they are those of HTTP; the daemon has had jobs of other tests."""
    eventually(lambda: cli.json("stats")["handlers"]["echo"]["workers"])
    before = cli.json("stats")["handlers"]["echo"]
    cli("enqueue", "echo", "--delay", "1h")
    eventually(lambda: cli.json("stats")["handlers"]["echo"]["scheduled"] == before["scheduled"] + 1)
    found = cli.json("stats")
    assert set(found) == {"at", "handlers"}
    assert list(found["handlers"]["echo"]) == [
        "due", "scheduled", "running", "oldest_s", "workers", "in_per_s", "out_per_s",
    ]  # fmt: skip
    text = cli("stats").stdout
    assert "IN/S" in text
    assert "echo" in text
