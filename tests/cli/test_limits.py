"""`limits`, on both engines."""

from __future__ import annotations

from tests.cli.conftest import CommandLine
from tests.support.rows import Rows

UNTIL = "2099-01-01 00:00:00.000000"


def test_a_hold_is_shown_until_it_is_ended(cli: CommandLine) -> None:
    """Of a limit or of a group; nothing is changed where nothing is held."""
    sql = "INSERT INTO workerd_rates (limit_name, scope, group_key, held_until) VALUES (%s, %s, %s, %s)"
    Rows(cli.url).sql(sql, "gone", "limit", "", UNTIL)
    Rows(cli.url).sql(sql, "gone", "group", "a b", UNTIL)
    assert cli("limits").stdout.count("2099-01-01") == 2
    assert cli("limits", "unhold", "gone", "--group", "b").stderr.endswith("nothing has changed.\n")
    of_group = cli("limits", "unhold", "gone", "--group", "a b")
    assert 'gone for the group "a b" is no longer held.' in of_group.stderr
    assert cli.json("limits", "unhold", "gone")["held_until"] is None
    assert "not found" in cli("limits", "unhold", "gone", check=False).stderr
    for wrong in (["unhold"], ["gone"], ["unhold", "a", "b"], ["--group", "a"]):
        assert cli("limits", *wrong, check=False).returncode == 2, wrong
