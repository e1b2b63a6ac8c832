"""`dead-letters`: what the store refused in any form is seen, and brought back."""

from __future__ import annotations

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually
from tests.support.rows import Rows

CONDITION = "NEW.handler = 'add' AND NEW.status IN ('completed', 'failure')"


def curse(rows: Rows) -> None:
    """Let the store refuse every end of that handler's jobs."""
    if rows.sqlite:
        rows.sql(
            f"CREATE TRIGGER curse BEFORE UPDATE ON workerd_jobs WHEN {CONDITION}"
            " BEGIN SELECT RAISE(ABORT, 'it is poison'); END"
        )
    else:
        rows.sql(
            f"CREATE TRIGGER curse BEFORE UPDATE ON workerd_jobs FOR EACH ROW IF {CONDITION}"
            " THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'it is poison'; END IF"
        )


def set_aside(cli: CommandLine) -> int:
    return int(cli.json("status")["roles"]["ingester"]["set_aside"])


def test_what_was_set_aside_is_seen_and_brought_back(cli: CommandLine) -> None:
    """The job ends as it did, once the store takes it; it does not run again."""
    rows = Rows(cli.url)
    curse(rows)
    try:
        cursed = cli.id("enqueue", "add", "a=1", "b=2")
        eventually(lambda: cli("enqueue", "echo", "--wait", "100ms", check=False) and set_aside(cli))
        assert "set aside" in cli("status").stdout
        assert "refused to record it" in cli("why", cursed).stdout
        (letter,) = cli.json("dead-letters")["dead_letters"]
        assert (letter["id"], letter["status"]) == (cursed, "completed")
        assert "it is poison" in letter["why"]
        refused = cli("dead-letters", "--retry", check=False)
        assert (refused.returncode, "1 still refused" in refused.stderr) == (1, True)
    finally:
        rows.sql("DROP TRIGGER curse")
    assert "1 outcome recorded" in cli("dead-letters", "--retry").stderr
    job = cli.json("job", "show", cursed)
    assert (job["status"], job["reason"], job["attempt"], job["payload"]) == ("completed", "ok", 1, 3)
    assert cli.json("dead-letters") == {"dead_letters": []}
    eventually(lambda: not set_aside(cli))
