"""`status` and `top`, on both engines."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import CommandLine
from tests.support.eventually import eventually
from tests.support.terminal import Terminal
from workerd.cli.keyboard import Key, split_keys
from workerd.cli.top_view import ViewState


def test_status_and_top_show_running_jobs(cli: CommandLine, tmp_path: Path) -> None:
    """One frame, without a terminal, and the same as JSON."""
    job_id = cli.id("enqueue", "waits", f"path={tmp_path}/never")
    eventually(lambda: cli.status(job_id) == "inprogress")
    assert cli.json("status")["ready"] is True
    eventually(lambda: job_id in cli("status").stdout)
    frame = cli("top", "--once").stdout
    assert job_id in frame
    assert "\x1b" not in frame
    pools = {pool["name"]: pool for pool in cli.json("top")["pools"]}
    (worker,) = [w for w in pools["waits"]["workers"] if w["job"]]
    assert worker["memory"] > 0
    (depth,) = [row for row in cli.json("top")["depth"] if row["handler"] == "waits"]
    assert depth["inprogress"] == 1
    cli("job", "cancel", job_id)


def test_top_has_keys_and_says_which(cli: CommandLine, tmp_path: Path) -> None:
    """In 80 columns: ids whole, the store's number of waiting jobs, sort, filter, and q to leave."""
    cli("pause", "held", "--reason", "for the test")
    waiting = [cli.id("enqueue", "held", f"n={n}") for n in range(3)]
    job_id = cli.id("enqueue", "waits", f"path={tmp_path}/never")
    eventually(lambda: cli.status(job_id) == "inprogress")
    (held,) = [pool for pool in cli.json("top")["pools"] if pool["name"] == "held"]
    assert held["waiting"] == 3
    terminal = Terminal(["top", "-c", str(cli.node.path)], columns=80, lines=40)
    assert "q quit" in terminal.read_until("/ filter")
    terminal.read_until(job_id)
    terminal.write("s")
    terminal.read_until("s sort: waiting")
    terminal.write("/wait\r")
    filtered = terminal.read_until("/ filter: wait (Esc clears)").rpartition("filter: wait_")[2]
    assert job_id in filtered
    assert "held" not in filtered
    terminal.write("q")
    assert terminal.finish() == 0, terminal.output
    cli("job", "cancel", job_id, *waiting)
    cli("resume", "held")


def test_keys_are_split_and_scroll_and_type() -> None:
    """Arrows arrive as sequences; letters typed into the filter are no commands."""
    assert split_keys("q\x1b[A\x1b[B/") == ["q", Key.UP, Key.DOWN, "/"]
    assert split_keys("\x1b") == [Key.ESCAPE]
    assert split_keys("\x1b[99~x") == []
    state = ViewState()
    for key in [Key.DOWN, Key.DOWN, Key.UP, "/", "q", "s", Key.BACKSPACE, Key.ENTER]:
        state.press(key)
    assert (state.filter, state.sort, state.ended, state.scroll) == ("q", "name", False, 0)
    state.press(Key.DOWN)
    state.press(Key.ESCAPE)
    assert (state.filter, state.scroll) == ("", 1)
    state.press("q")
    assert state.ended
