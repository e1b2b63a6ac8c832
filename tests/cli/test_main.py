"""The commands as a whole: which there are, what they take, how they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workerd.cli.app import COMMANDS, app, job, request
from workerd.cli.main import main

ALONE = {"demo", "install", "uninstall"}
"""Commands that need no configuration."""
SHOWING = ["status", "handlers", "nodes", "schedules", "top", "why", "job show", "job list", "request list"]


def words() -> list[str]:
    """Every command by its words."""
    names = [*COMMANDS]
    names += [f"job {command.name}" for command in job.registered_commands]
    return names + [f"request {command.name}" for command in request.registered_commands]


def helped(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*command.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", words())
def test_every_command_explains_itself_and_takes_its_configuration(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """-c is an option of each command, after its words."""
    said = helped(command, capsys)
    assert f"workerd {command}" in said
    assert ("-c PATH" in said) is (command not in ALONE)


@pytest.mark.parametrize("command", SHOWING)
def test_what_prints_data_prints_json_too(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--json is there where a script reads."""
    assert "--json" in helped(command, capsys)


def test_the_first_line_of_every_help_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """The overview says each command in a whole sentence."""
    for group in ([], ["job"], ["request"]):
        main([*group, "--help"])
        assert "..." not in capsys.readouterr().out.split("Commands:")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such"],
        ["job", "show"],
        ["enqueue"],
        ["enqueue", "h", "--priority", "x"],
        ["job", "list", "--nope"],
        [],
    ],
)
def test_wrong_usage_is_status_2_and_says_what_is_missing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed as data."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage:" in captured.err


def test_a_missing_configuration_is_status_2_and_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence says where it was looked for."""
    assert main(["handlers", "-c", str(tmp_path / "none.toml")]) == 2
    assert str(tmp_path / "none.toml") in capsys.readouterr().err


def test_a_daemon_that_does_not_run_is_said_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` and `reload` fail, `stop` has nothing to do."""
    (tmp_path / "workerd.toml").write_text(f'[node]\nruntime_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n')
    assert main(["status", "-c", str(tmp_path)]) == 1
    assert "workerd start" in capsys.readouterr().err
    assert main(["reload", "-c", str(tmp_path)]) == 1
    assert main(["stop", "-c", str(tmp_path)]) == 0


def test_what_a_shell_script_calls_often_imports_little() -> None:
    """Neither Rich nor a web server nor a database driver is loaded to parse a command."""
    code = (
        "import sys, workerd.cli.app;"
        "print([m for m in ('rich', 'uvicorn', 'starlette', 'pymysql', 'sqlite3', 'psutil', 'structlog',"
        " 'prometheus_client', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_daemon_is_started_without_what_reads_other_command_lines() -> None:
    """`run` and `run -c PATH` come to the daemon without the parser; any other line is the parser's."""
    code = (
        "import sys, workerd.cli.serving as serving\n"
        "from workerd.cli.main import main\n"
        "serving.serve = lambda path: sys.exit(print(path, 'typer' in sys.modules))\n"
        "main(sys.argv[1:])"
    )
    for words, said in (
        (("run",), "None False"),
        (("run", "-c", "/x"), "/x False"),
        (("run", "-c/x"), "/x True"),
    ):
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == said


def test_the_application_is_one_tree() -> None:
    """The groups hang below `workerd`."""
    assert {group.name for group in app.registered_groups} == {"job", "request"}
