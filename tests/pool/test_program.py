"""One run of a program: what it is given, and what its end becomes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.pool.test_executor import NoFlags, Pool
from tests.support.descriptors import open_descriptors
from tests.support.worker import claim_of
from workerd import policy
from workerd.config.handler_config import CommandConfig, HandlerConfig
from workerd.errors import LoadError
from workerd.job import Status
from workerd.outcome import RunResult
from workerd.pool.executor import Executor
from workerd.pool.handler_log import StandardErrorLog
from workerd.pool.loading import make_command
from workerd.pool.worker_messages import Assignment
from workerd.runtime.child import children_of


def shell(script: str) -> tuple[str, ...]:
    """A command that is this script; its braces are literal."""
    return ("/bin/sh", "-c", script.replace("{", "{{").replace("}", "}}"))


def execute(
    command: tuple[str, ...],
    vars: Any = None,
    *,
    limit: int = 1 << 20,
    claim: dict[str, Any] | None = None,
    pool: Pool | None = None,
    around: Any = (),
    **keys: Any,
) -> RunResult:
    config = CommandConfig(command=command, **keys)
    handler = HandlerConfig(name="h", call="", pool="h", command=config)
    executor = Executor(
        {"h": make_command(handler, config, around)}, NoFlags(), pool or Pool(), StandardErrorLog()
    )
    executor.prepare(None)
    before, children = open_descriptors(), children_of(os.getpid())
    result = executor.run(Assignment(7, claim_of("h", vars, **(claim or {})), 0.0, limit))
    assert open_descriptors() == before
    assert children_of(os.getpid()) == children  # nothing is left to be reaped
    return result


# -- what it is given


def test_the_job_is_read_from_standard_input() -> None:
    """With everything that a context has; a file, so that a program need not read it."""
    claim = {"meta": b'{"m":1}', "params": b'{"p":2}', "extras": b'{"e":3}', "needs": {"a": b"[4]"}}
    result = execute(("/bin/cat",), {"x": "é"}, payload="json", claim=claim | {"request_id": bytes(16)})
    document = msgspec.json.decode(result.payload or b"")
    assert document["token"] == f"{document['job_id']}/1"
    assert {key: document[key] for key in document if key not in ("job_id", "token")} == {
        "attempt": 1, "handler": "h", "vars": {"x": "é"}, "meta": {"m": 1}, "params": {"p": 2},
        "extras": {"e": 3}, "needs": {"a": [4]}, "saved": None,
    }  # fmt: skip
    assert execute(("/bin/true",), {"x": "y" * 900_000}).kind == "returned"


def test_without_stdin_nothing_is_to_be_read() -> None:
    """Of the daemon's own input neither."""
    assert execute(("/bin/cat",), stdin="none").payload == b""


def test_the_environment_names_job_and_attempt_and_the_folder_is_cwd(tmp_path: Path) -> None:
    """The worker's own folder stays."""
    before = os.getcwd()
    script = 'echo "$WORKERD_TOKEN"; echo "$WORKERD_JOB_ID/$WORKERD_ATTEMPT"; pwd'
    lines = (execute(shell(script), cwd=str(tmp_path)).payload or b"").decode().split()
    assert lines[0] == lines[1]
    assert lines[2] == str(tmp_path)
    assert os.getcwd() == before


def test_signals_and_process_group_are_those_of_a_fresh_process() -> None:
    """It leads a group of its own; nothing is ignored or blocked, SIGPIPE neither."""
    script = "grep -E 'SigIgn|SigBlk' /proc/self/status; ps -o pid=,pgid= -p $$"
    words = (execute(shell(script)).payload or b"").decode().split()
    blocked, ignored = int(words[1], 16), int(words[3], 16)
    own = 0b11 << 31  # of glibc itself
    assert (blocked & ~own, ignored & ~own) == (0, 0)
    assert words[4] == words[5]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (1, "1"),
        (-1.5, "-1.5"),
        (True, "true"),
        ("", ""),
        ("é €", "é €"),
        (1e300, "1e+300|1e300"),
    ],
)
def test_a_value_is_part_of_one_argument(value: Any, text: str) -> None:
    """Text as it is, numbers and true and false as JSON."""
    result = execute(("/usr/bin/printf", "%s|", "<{a}>", "{{a}}"), {"a": value})
    assert (result.payload or b"").decode() in [f"<{form}>|{{a}}|" for form in text.split("|")]


@pytest.mark.parametrize(
    "value", ["; rm -rf /", "$(id)", "`id`", "a b\n c", "'\"\\", "*", "| cat", "--version"]
)
def test_no_shell_reads_a_value(value: str) -> None:
    """Whatever it holds, it arrives as one argument, unchanged."""
    assert execute(("/usr/bin/printf", "%s", "--", "{a}"), {"a": value}).payload == f"--{value}".encode()


@pytest.mark.parametrize(
    ("vars", "error"),
    [
        ({}, "vars.a: required, but not given"),
        ({"a": None}, "vars.a: expected"),
        ({"a": [1]}, "vars.a: expected"),
        ({"a": "x\0y"}, "vars.a: an argument cannot hold NUL"),
        ({"a": "x" * 131072}, "vars.a: an argument of 131072 bytes is too long"),
        ({"a": "é" * 65536}, "vars.a: an argument of 131072 bytes is too long"),
    ],
)
def test_a_value_that_fits_no_argument_is_a_failure_that_names_it(vars: Any, error: str) -> None:
    """The program is not started."""
    result = execute(("/bin/echo", "{a}"), vars)
    assert result.kind == "failure"
    assert error in str(result.error)


def test_the_longest_argument_is_passed() -> None:
    """One byte below what Linux refuses."""
    assert execute(("/usr/bin/printf", "%s", "{a}"), {"a": "x" * 131071}).payload == b"x" * 131071


def test_arguments_that_are_too_long_together_are_a_failure() -> None:
    """A retry would meet the same limit."""
    result = execute(("/bin/echo", *["{a}"] * 60), {"a": "x" * 131000})
    assert (result.kind, "too long together" in str(result.error)) == ("failure", True)


def test_a_signature_decides_which_vars_there_may_be() -> None:
    """Others are refused, values of another type too; with "?" one may be left out."""
    keys: Any = {"signature": {"month": "str", "copies": "int?"}}
    command = ("/bin/echo", "{month}")
    assert execute(command, {"month": "5"}, **keys).payload == b"5\n"
    assert execute(command, {"month": "5", "copies": 2}, **keys).kind == "returned"
    for wrong, error in (
        ({"month": 5}, "vars.month: expected str, got int"),
        ({"month": "5", "x": 1}, "vars.x: not known; the handler takes month, copies"),
        ({"month": "5", "copies": "2"}, "vars.copies: expected int, got str"),
    ):
        result = execute(command, wrong, **keys)
        assert (result.kind, error in str(result.error)) == ("failure", True), result.error


# -- what its end becomes


@pytest.mark.parametrize(
    ("status", "kind"), [(0, "returned"), (75, "retry"), (64, "failure"), (4, "raised"), (255, "raised")]
)
def test_exit_statuses(status: int, kind: str) -> None:
    """0 is success; the lists of the handler say which others mean a retry or a failure."""
    result = execute(shell(f"exit {status}"), fail_codes=(64, 65))
    assert (result.kind, result.exit_code) == (kind, status or None)


def test_another_status_is_an_exception_class_of_the_policy() -> None:
    """Retried by default; the handler's lists name it as Exit:N."""
    result = execute(shell("exit 4"))
    assert result.classes == ("Exit:4", "builtins.Exception", "builtins.BaseException")
    assert result.error == "The program ended with exit status 4."
    claim = claim_of("h")
    for lists, status in (
        ({}, Status.RETRY),
        ({"fail_on": ("Exit:4",)}, Status.FAILURE),
        ({"retry_on": ("Exit:5",)}, Status.FAILURE),
        ({"ignore": ("Exit:4",)}, Status.COMPLETED),
    ):
        config = HandlerConfig(name="h", call="", pool="h", policy_own=lists)
        assert policy.decide(policy.effective(config, {}), claim, result).status is status


def test_a_signal_is_a_crash() -> None:
    """Of the program, not of its worker."""
    result = execute(shell("kill -SEGV $$"))
    assert (result.kind, result.exit_signal) == ("crashed", signal.SIGSEGV)
    assert result.error == "The program was killed by SIGSEGV."


def test_standard_output_is_the_payload() -> None:
    """Bytes, or JSON that is checked, or nothing."""
    assert execute(shell(r"printf '\377\000'")).payload == b"\xff\x00"
    result = execute(shell("echo '{\"a\": [1]}'"), payload="json")
    assert (result.payload, result.payload_type) == (b'{"a":[1]}', "json")
    assert execute(shell("echo log"), payload="none").payload == b"null"
    for wrong in ("", "{", "NaN", "[1] [2]"):
        result = execute(shell(f"printf '%s' '{wrong}'"), payload="json")
        assert result.kind == "failure"
        assert "standard output" in str(result.error) or "payload" in str(result.error)


def test_a_payload_over_the_limit_is_a_failure_and_ends_the_program() -> None:
    """One that would write for ever too."""
    assert execute(shell("head -c 4096 /dev/zero"), limit=4096).kind == "returned"
    result = execute(("/usr/bin/yes",), limit=4096)
    assert (result.kind, "more than 4KiB" in str(result.error)) == ("failure", True)


def test_a_program_may_close_its_output_and_run_on() -> None:
    """Its end counts."""
    assert execute(shell("echo a; exec 1>&- 3>&-; sleep 0.05; exit 9")).exit_code == 9


def test_what_it_leaves_running_does_not_delay_its_end() -> None:
    """Though that holds its output open; the worker ends it after the run."""
    result = execute(shell("sleep 60 & echo $!"))
    assert result.kind == "returned"
    os.kill(int(result.payload or b"0"), signal.SIGKILL)  # an orphan of init here, of its worker there


# -- descriptor 3


def test_progress_extras_and_retry_are_reported_on_descriptor_3() -> None:
    """A line of JSON each, the newest counts."""
    pool = Pool()
    script = """
        echo '{"progress": 0.25, "note": "a quarter"}' >&3
        echo '{"extras": {"a": 1}}' >&3
        echo '{"extras": {"b": 2}, "later": true}' >&3
        echo '{"progress": 7}' >&3
    """
    result = execute(shell(script), pool=pool, claim={"request_id": bytes(16)})
    assert (pool.progress[0].progress, pool.progress[0].note) == (0.25, "a quarter")
    assert (result.kind, result.extras, result.progress) == ("returned", b'{"b":2}', 1.0)


def test_what_a_program_saves_is_read_by_its_next_attempt() -> None:
    """A value too long is named in the log, as any line that cannot be used."""
    pool = Pool()
    script = """cat; echo '{"save": {"row": 3}}' >&3; echo '{"save": null}' >&3"""
    result = execute(shell(script), pool=pool, payload="json", claim={"state": b'{"saved":{"row":1}}'})
    assert msgspec.json.decode(result.payload or b"")["saved"] == {"row": 1}
    assert [state["saved"] for state, _ in pool.states] == [{"row": 3}, None]


@pytest.mark.parametrize("status", [0, 4, 64])
def test_a_wish_to_be_retried_counts_whatever_the_exit_status(status: int) -> None:
    """As raising Retry does; with its pause, its reason, whether it uses an attempt, and whom it holds."""
    wish = '{"retry": {"after": "5m", "reason": "busy", "counted": false, "hold": "group"}}'
    result = execute(shell(f"echo '{wish}' >&3; exit {status}"), fail_codes=(64,))
    assert (result.kind, result.error, result.after, result.counted) == ("retry", "busy", 300.0, False)
    assert result.hold == "group"


@pytest.mark.parametrize(
    "line",
    [
        "rubbish", "[1]", '{"progress": "half"}', '{"progress": NaN}', '{"extras": [1]}',
        '{"retry": {"when": 1}}', '{"retry": {"hold": "all"}}',
        '{"retry": {"after": "soon"}}', '{"retry": {"after": -1}}', "\\377\\376", '{"note": 5}',
    ],
)  # fmt: skip
def test_rubbish_on_descriptor_3_changes_nothing_but_the_log(
    line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Named there, at most three lines a run."""
    result = execute(shell(f"for i in 1 2 3 4 5; do printf '%b\\n' '{line}' >&3; done; echo fine"))
    assert (result.kind, result.payload, result.extras) == ("returned", b"fine\n", None)
    assert capfd.readouterr().err.count("descriptor 3: ignored") == 3


def test_a_line_without_end_on_descriptor_3_is_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    """What follows its end is read again."""
    script = """head -c 3000000 /dev/zero >&3; echo >&3; echo '{"extras": {"a": 1}}' >&3"""
    result = execute(shell(script), limit=4096)
    assert (result.kind, result.extras) == ("returned", b'{"a":1}')
    assert "it is too long" in capfd.readouterr().err


def test_a_program_without_interest_in_descriptor_3_is_fine() -> None:
    """Nobody waits for it."""
    assert execute(("/bin/echo", "x")).payload == b"x\n"


# -- around, and programs that are not there


def test_functions_around_enclose_the_run() -> None:
    """They see its context, its result, and its failure as an exception."""
    seen: list[Any] = []

    def traced(ctx: Any) -> Any:
        seen.append(ctx.handler)
        try:
            seen.append((yield))
        except Exception as error:
            seen.append(str(error))
            raise

    assert execute(("/bin/echo", "x"), around=(traced,)).payload == b"x\n"
    assert execute(shell("exit 4"), around=(traced,)).exit_code == 4
    assert (seen[0], seen[1].payload, seen[3]) == ("h", b"x\n", "The program ended with exit status 4.")


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"command": ("/nowhere/php",)}, "program /nowhere/php not found"),
        ({"command": ("no-such-program",)}, 'program "no-such-program" is not on PATH'),
        ({"command": ("/etc/passwd",)}, "program /etc/passwd is not executable by this user"),
        ({"command": ("/bin/true",), "cwd": "/nowhere"}, "its cwd /nowhere is not a folder"),
    ],
)
def test_a_program_that_is_not_there_does_not_load(keys: Any, error: str) -> None:
    """So that its pool is quarantined with that sentence."""
    config = CommandConfig(**keys)
    with pytest.raises(LoadError, match=error):
        make_command(HandlerConfig(name="h", call="", pool="h", command=config), config)


def test_a_program_that_goes_away_later_is_an_error_of_the_attempt(tmp_path: Path) -> None:
    """Which the policy tries again."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nrm $0\n")
    program.chmod(0o755)
    config = CommandConfig(command=(str(program),))
    handler = HandlerConfig(name="h", call="", pool="h", command=config)
    executor = Executor(
        {"h": make_command(handler, config)}, NoFlags(), lambda progress: None, StandardErrorLog()
    )
    executor.prepare(None)
    kinds = [executor.run(Assignment(n, claim_of("h"), 0.0, 1 << 20)).kind for n in (1, 2)]
    assert kinds == ["returned", "raised"]
