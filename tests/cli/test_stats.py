"""`stats`, on both engines."""

from __future__ import annotations

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually


def test_stats_are_printed(cli: CommandLine) -> None:
    """As JSON they are those of HTTP."""
    cli("enqueue", "echo", "--delay", "1h")
    eventually(lambda: cli.json("stats")["handlers"]["echo"]["workers"])
    found = cli.json("stats")
    assert set(found) == {"at", "handlers"}
    assert found["handlers"]["echo"] | {"workers": 0} == {
        "due": 0, "scheduled": 1, "running": 0, "oldest_s": 0.0, "workers": 0, "in_per_s": 0.0,
        "out_per_s": 0.0,
    }  # fmt: skip
    text = cli("stats").stdout
    assert "IN/S" in text
    assert "echo" in text
