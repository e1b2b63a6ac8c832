"""The commands as a whole: which there are, which options they take, how they refuse wrong usage."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from tests.support.rows import Rows
from workerd.cli import commands
from workerd.cli.commands import COMMANDS
from workerd.cli.main import GROUPS, _configuration_last, main
from workerd.job import id_text

ALONE = {"demo", "install", "uninstall", "config", "completion"}
"""Commands that need no configuration."""
SHOWING = ["status", "handlers", "nodes", "schedules", "top", "why", "job show", "job list", "request list"]


NOT_UTF8 = "\udcff"
"""As Python keeps the byte 0xff of an argument."""
FULL = "Standard output cannot be written: No space left on device. Free space there, or redirect it."


WORDS = [words for words, _, _ in COMMANDS]


def helped(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*command.split(), "--help"]) == 0
    return capsys.readouterr().out


def to_full_disk(arguments: list[str], unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    """A command whose standard output is on a full disk."""
    with open("/dev/full", "w") as full:
        return subprocess.run(
            [sys.executable, "-m", "workerd", *arguments],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )


@pytest.mark.parametrize("command", WORDS)
def test_every_command_explains_itself_and_takes_its_configuration(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """-c is an option of each command, after its words."""
    text = helped(command, capsys)
    assert f"workerd {command}" in text
    assert ("-c PATH" in text) is (command not in ALONE)


@pytest.mark.parametrize("command", SHOWING)
def test_commands_that_print_data_have_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read --json."""
    assert "--json" in helped(command, capsys)


def test_the_overview_lists_every_command_with_the_first_line_of_its_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The table repeats that line, and no terminal cuts it."""
    for words, _, summary in COMMANDS:
        group, _, name = words.rpartition(" ")
        assert summary in " ".join(helped(words, capsys).split())
        assert re.search(rf"^  {name} +{re.escape(summary)}$", helped(group, capsys), re.MULTILINE)


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
def test_wrong_usage_exits_with_2_and_names_what_is_missing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed as data."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage:" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["job", "list", "--handler", NOT_UTF8],
        ["job", "cancel", "--handler", NOT_UTF8, "--yes"],
        ["job", "list", "--meta", f"a={NOT_UTF8}"],
        ["schedules", "set", "x", "handler=n", "cron=* * * * *", f"vars.a={NOT_UTF8}"],
        ["schedules", "pause", NOT_UTF8],
        ["pause", "n", "--reason", NOT_UTF8],
        ["restart", NOT_UTF8],
        ["enqueue", "n", f"a={NOT_UTF8}"],
        ["enqueue", "n", "--unique", NOT_UTF8],
    ],
)
def test_an_argument_that_is_not_utf8_is_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the store nor the supervisor could take it."""
    assert main(arguments) == 2
    assert re.search(r"[Ee]xpected UTF-8, got .*\\udcff", capsys.readouterr().err)


def test_a_path_need_not_be_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    """Files may have any name."""
    assert main(["nodes", "-c", NOT_UTF8]) == 2
    assert "found none" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["config", "--help", "job --help", "completion bash"])
def test_an_output_that_cannot_be_written_is_said(command: str, unbuffered: str) -> None:
    """A full disk; there is no traceback, and the command has failed."""
    shown = to_full_disk(command.split(), unbuffered)
    assert (shown.returncode, shown.stderr) == (1, f"{FULL}\n")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_the_id_of_a_job_that_cannot_be_printed_is_said(tmp_path: Path, more: list[str]) -> None:
    """The job is in: without its id nobody finds it, and whoever sees the error enqueues it again."""
    config = tmp_path / "workerd.toml"
    config.write_text(
        f'[node]\nruntime_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n'
        f'[store]\nurl = "sqlite:///{tmp_path}/store.db"\n[handlers.n]\ncall = "os:getpid"\n'
    )
    assert main(["migrate", "-c", str(config)]) == 0
    shown = to_full_disk(["enqueue", "n", *more, "-c", str(config)])
    (job,) = Rows(f"sqlite:///{tmp_path}/store.db").sql("SELECT id FROM workerd_jobs")
    assert (shown.returncode, shown.stderr) == (1, f"It is job {id_text(job['id'])}.\n{FULL}\n")


def test_a_missing_configuration_is_status_2_and_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names its path."""
    assert main(["handlers", "-c", str(tmp_path / "none.toml")]) == 2
    assert str(tmp_path / "none.toml") in capsys.readouterr().err


def test_without_a_daemon_the_message_names_the_start_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` and `reload` fail, `stop` has nothing to do."""
    (tmp_path / "workerd.toml").write_text(f'[node]\nruntime_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n')
    assert main(["status", "-c", str(tmp_path)]) == 1
    assert "workerd start" in capsys.readouterr().err
    assert main(["reload", "-c", str(tmp_path)]) == 1
    assert main(["stop", "-c", str(tmp_path)]) == 0


def test_commands_that_scripts_call_often_import_little() -> None:
    """`enqueue` loads neither Rich nor a web server, and a driver only when its store is opened."""
    code = (
        "import sys, workerd.cli.commands, workerd.cli.jobs;"
        "print([m for m in ('rich', 'uvicorn', 'starlette', 'pymysql', 'sqlite3', 'psutil', 'structlog',"
        " 'prometheus_client', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_daemon_starts_without_typer() -> None:
    """`run` and `run -c PATH` need no parser; every other command line is parsed by Typer."""
    code = (
        "import sys, workerd.cli.foreground as foreground\n"
        "from workerd.cli.main import main\n"
        "foreground.run_daemon = lambda path: sys.exit(print(path, 'typer' in sys.modules))\n"
        "main(sys.argv[1:])"
    )
    for words, printed in (
        (("run",), "None False"),
        (("run", "-c", "/x"), "/x False"),
        (("run", "-c/x"), "/x True"),
    ):
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == printed


def test_the_configuration_is_printed_with_comments(capsys: pytest.CaptureFixture[str]) -> None:
    """The same as etc/workerd.toml, and a valid configuration."""
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    assert text == (ROOT / "etc/workerd.toml").read_text()
    assert tomllib.loads(text)["store"]["url"].startswith("sqlite:")


@pytest.mark.parametrize(
    ("given", "moved"),
    [
        (["-c", "x", "job", "list", "--limit", "1"], ["job", "list", "-c", "x", "--limit", "1"]),
        (["-c", "x", "run"], ["run", "-c", "x"]),
        (["-cx", "enqueue", "h", "--", "a=1"], ["enqueue", "-cx", "h", "--", "a=1"]),
        (["-c", "x", "job", "--help"], ["job", "--help"]),
        (["job", "-c", "x", "--help"], ["job", "--help"]),
        (["job", "-c", "x", "list", "--limit", "1"], ["job", "list", "-c", "x", "--limit", "1"]),
        (["-c", "x", "errors"], ["errors", "-c", "x"]),
        (["-c", "x", "errors", "--limit", "1"], ["errors", "-c", "x", "--limit", "1"]),
        (["errors", "-c", "x", "show", "1"], ["errors", "show", "-c", "x", "1"]),
        (["-c", "x", "errors", "--help"], ["errors", "--help"]),
        (["-c", "x"], ["-c", "x"]),
        (["-c", "x", "--help"], ["--help"]),
        (["job", "list", "-c", "x"], ["job", "list", "-c", "x"]),
    ],
)
def test_the_configuration_may_be_named_before_the_command(given: list[str], moved: list[str]) -> None:
    """As most programs take it."""
    assert _configuration_last(given) == moved


def test_the_words_that_begin_several_commands_are_known() -> None:
    """Before the commands themselves are imported, which `run` never does."""
    assert {word for (word,) in GROUPS} == set(commands.GROUPS)
    assert set(commands.DEFAULT_COMMANDS) == {"errors"}


def test_the_environment_names_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """WORKERD_CONFIG, where no -c does; both before and after the command."""
    monkeypatch.setenv("WORKERD_CONFIG", str(tmp_path / "none.toml"))
    assert main(["handlers"]) == 2
    assert str(tmp_path / "none.toml") in capsys.readouterr().err
    assert main(["-c", str(tmp_path / "other.toml"), "job", "list"]) == 2
    assert str(tmp_path / "other.toml") in capsys.readouterr().err


def test_a_shell_is_told_how_to_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """The script asks this program, which knows commands and options."""
    assert main(["completion", "bash"]) == 0
    assert "_WORKERD_COMPLETE=complete_bash" in capsys.readouterr().out
    assert main(["completion", "tcsh"]) == 2
    asked = {"_WORKERD_COMPLETE": "complete_bash", "COMP_WORDS": "workerd job list --un", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "workerd"], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["--until"]


def test_ctrl_c_ends_a_check_with_a_word_and_what_it_started(tmp_path: Path) -> None:
    """Exit status 130; no process that loads a handler is left."""
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, 'loading').write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    text = f'[defaults]\npath = ["{tmp_path}"]\nload_timeout = "10m"\n[handlers.h]\ncall = "slow:h"\n'
    (tmp_path / "workerd.toml").write_text(text)
    check = subprocess.Popen(
        [sys.executable, "-m", "workerd", "check", "-c", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    loading = tmp_path / "loading"
    pid = int(eventually(lambda: loading.exists() and loading.read_text()))
    check.send_signal(signal.SIGINT)
    _, err = check.communicate(timeout=30)
    assert (check.returncode, err) == (130, "Interrupted.\n")
    assert not Path(f"/proc/{pid}").exists()
