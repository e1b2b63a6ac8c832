"""Commands without a usable store or with wrong values."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import CONFIG, CommandLine
from tests.support.daemon import Daemon
from tests.support.rows import Rows

WRONG = [
    ["enqueue", "add", "a"], ["enqueue", "add", "--vars", "[1]"], ["enqueue", "add", "--delay", "soon"],
    ["enqueue", "add", "--delay", "1s", "--run-at", "2030-01-01T00:00:00Z"],
    ["enqueue", "add", "--run-at", "2030-01-01T00:00:00"], ["enqueue", "add", "--max-attempts", "0"],
    ["enqueue", "add", "--unique", "~cooler"], ["job", "show", "42"], ["job", "cancel"],
    ["job", "list", "--status", "done"], ["request", "submit", "none"], ["schedules", "--next", "3"],
]  # fmt: skip


def command_line(folder: Path, url: str) -> CommandLine:
    """Commands with a configuration, and no daemon."""
    return CommandLine(Daemon(folder / "node", url, CONFIG))


def test_wrong_values_are_status_2_and_change_nothing(tmp_path: Path) -> None:
    """The message names what was expected; nothing is printed as data or inserted."""
    cli = command_line(tmp_path, f"sqlite:///{tmp_path}/store.db")
    cli("migrate")
    for words in WRONG:
        done = cli(*words, check=False)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.strip(), words
    assert Rows(cli.url).sql("SELECT * FROM workerd_jobs") == []


def test_an_unavailable_store_is_status_1(tmp_path: Path) -> None:
    """The message contains no password."""
    cli = command_line(tmp_path, "mysql://me:s3cret@127.0.0.1:1/x")
    for words in (["enqueue", "add"], ["job", "list"], ["migrate"], ["handlers"]):
        done = cli(*words, check=False)
        assert done.returncode == 1
        assert "does not answer" in done.stderr
        assert "s3cret" not in done.stderr + done.stdout


def test_a_store_without_tables_names_migrate(tmp_path: Path) -> None:
    """It exits with status 1."""
    cli = command_line(tmp_path, f"sqlite:///{tmp_path}/store.db")
    done = cli("job", "list", check=False)
    assert done.returncode == 1
    assert "workerd migrate" in done.stderr
    assert cli("migrate").stdout
    assert cli("migrate").stdout == ""
