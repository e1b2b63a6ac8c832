"""`handlers` and `nodes`, on both engines."""

from __future__ import annotations

import os

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually
from tests.support.rows import Rows


def test_handlers_and_nodes_are_listed(cli: CommandLine) -> None:
    """A handler that only a job's row names is shown as having no node."""
    Rows(cli.url).insert("orphan", {})

    def nodes_of(name: str) -> list[str]:
        (found,) = [handler for handler in cli.json("handlers")["handlers"] if handler["name"] == name]
        return list(found["nodes"])

    eventually(lambda: nodes_of("add") == ["node"])
    assert nodes_of("orphan") == []
    text = cli("handlers").stderr
    assert "No node has" in text
    assert "orphan" in text
    (node,) = cli.json("nodes")["nodes"]
    assert (node["name"], node["state"]) == ("node", "up")
    assert "node" in cli("nodes").stdout


def test_a_paused_handler_shows_who_paused_it_and_why(cli: CommandLine) -> None:
    """Until it is resumed; resuming it again changes nothing."""
    cli("pause", "echo", "--reason", "maintenance")
    assert f"@{os.uname().nodename}: maintenance" in cli("handlers").stdout
    assert "is resumed" in cli("resume", "echo").stderr
    assert "nothing has changed" in cli("resume", "echo").stderr
    assert "maintenance" not in cli("handlers").stdout
    assert cli("pause", "unknown", check=False).returncode == 2
