"""From an assignment to its ending, whatever the handler returns or raises."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support import faces
from tests.support.worker import claim_of
from workerd.errors import LoadError
from workerd.handler import Result
from workerd.messages import Assignment, Progressed
from workerd.outcome import RunResult
from workerd.pool.executor import Executor
from workerd.pool.loading import make
from workerd.text import ERROR_LIMIT, STACK_LIMIT


class Flags:
    """A page that asks for nothing."""

    serial = 7
    soft_deadline_ns = 0
    cancel = False
    stopping = False


def execute(
    target: Any, vars: Any = None, *, limit: int = 1 << 20, flags: Any = None, **more: Any
) -> RunResult:
    heard: list[Progressed] = []
    executor = Executor({"h": make("h", target)}, flags or Flags(), heard.append)
    executor.prepare(None)
    return executor.run(Assignment(7, claim_of("h", vars, **more), 0.0, limit))


# -- returning


@pytest.mark.parametrize(
    ("kind", "payload"), [("bytes", b"\x00\xff"), ("bytearray", b"ab"), ("memoryview", b"cd")]
)
def test_bytes_are_kept_as_they_are(kind: str, payload: bytes) -> None:
    """Whichever of Python's byte types it is."""
    ending = execute(faces.raw, {"kind": kind})
    assert (ending.kind, ending.payload, ending.payload_type) == ("returned", payload, "bytes")


def test_anything_else_is_kept_as_json() -> None:
    """None too."""
    assert execute(faces.nothing).payload == b"null"
    assert execute(faces.nothing).payload_type == "json"
    assert execute(faces.echo, {"a": [1, "é"]}).payload == '{"a":[1,"é"]}'.encode()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("object", "payload cannot be written as JSON: TypeError"),
        ("generator", "payload cannot be written as JSON"),
        ("loop", "payload cannot be written as JSON: RecursionError"),
        ("surrogate", "payload cannot be written as JSON: UnicodeEncodeError"),
        ("released", "return value cannot be read: ValueError"),
        ("extras", "Result(extras=…) expects a mapping, got list"),
        ("spawn", "Result(spawn=…) expects a list, got dict"),
    ],
)
def test_what_cannot_be_kept_is_a_failure_that_says_why(kind: str, words: str) -> None:
    """Running it again would return the same."""
    ending = execute(faces.unfit, {"kind": kind})
    assert (ending.kind, ending.payload) == ("failure", None)
    assert words in str(ending.error)


def test_a_result_hands_on_more_than_a_payload() -> None:
    """Success or not, payload, extras and spawn are kept."""
    good = execute(faces.result, {"success": True}, request_id=bytes(16))
    assert (good.kind, good.payload, good.extras, good.error) == (
        "returned",
        b'{"n":1}',
        b'{"found":3}',
        None,
    )
    assert good.spawn == b'[{"name":"x","handler":"y"}]'
    bad = execute(faces.result, {"success": False})
    assert (bad.kind, bad.payload, bad.extras) == ("failed", b'{"n":1}', b'{"found":3}')
    assert bad.error


def test_only_a_job_of_a_request_may_spawn() -> None:
    """There is nobody who would insert the jobs of another one."""
    ending = execute(faces.result, {"success": True})
    assert (ending.kind, ending.spawn) == ("failure", None)
    assert "this job belongs to none" in str(ending.error)


@pytest.mark.parametrize("spawn", [[{"name": "x"}], ["h"], [{"handler": "h", "needs": ["x"]}]])
def test_what_is_spawned_names_a_handler(spawn: list[Any]) -> None:
    """Anything else is a failure of the job that asked for it."""
    ending = execute(lambda: Result(spawn=spawn), request_id=bytes(16))
    assert ending.kind == "failure"
    assert "Result(spawn=…): expected tables" in str(ending.error)


@pytest.mark.parametrize("size", [4096, 4097])
def test_a_payload_may_have_exactly_its_limit(size: int) -> None:
    """And not a byte more."""
    assert execute(faces.large, {"size": size}, limit=4096).kind == (
        "returned" if size == 4096 else "failure"
    )


def test_async_handlers_are_run() -> None:
    """By asyncio, to their result."""
    assert execute(faces.later, {"x": 3}).payload == b"3"


def test_the_context_is_passed() -> None:
    """With what the claim says."""
    payload = execute(faces.about, meta=b'{"tenant":1}').payload
    told = msgspec.json.decode(payload or b"")
    assert (told["meta"], told["remaining"]) == ({"tenant": 1}, False)
    assert told["token"] == f"{told['job']}/1"


# -- raising


@pytest.mark.parametrize(
    ("kind", "ending", "error"),
    [
        ("value", "raised", "ValueError: line one line two"),
        ("failure", "failure", "no such image"),
        ("retry", "retry", "busy"),
        ("snooze", "retry", "not yet"),
        ("exit", "raised", "SystemExit: 3"),
        ("interrupt", "raised", "KeyboardInterrupt"),
        ("unspeakable", "raised", "Unspeakable: (its __str__ raised RuntimeError)"),
        ("quits", "raised", "Quits: (its __str__ raised SystemExit)"),
        ("surrogate", "raised", "ValueError: a\\ud800b\\x00c"),
        ("group", "raised", "ExceptionGroup: two (2 sub-exceptions)"),
        ("own deadline", "deadline", "DeadlineExceeded: by itself"),
        ("own cancel", "raised", "Cancelled: by itself"),
    ],
)
def test_whatever_is_raised_is_told_in_one_line(kind: str, ending: str, error: str) -> None:
    """Nothing that a handler raises raises through the executor."""
    told = execute(faces.fails, {"kind": kind})
    assert (told.kind, told.error, told.tainted) == (ending, error, False)
    msgspec.msgpack.encode(told)


def test_a_retry_carries_what_it_asks_for() -> None:
    """Seconds, and whether it uses an attempt."""
    assert (
        execute(faces.fails, {"kind": "retry"}).after,
        execute(faces.fails, {"kind": "retry"}).counted,
    ) == (
        5,
        True,
    )
    snooze = execute(faces.fails, {"kind": "snooze"})
    assert (snooze.after, snooze.counted) == (60, False)


def test_the_stack_is_the_handlers_own() -> None:
    """From its first line to the exception, without ours."""
    ending = execute(faces.fails, {"kind": "value"})
    assert ending.stack is not None
    assert ending.stack.startswith("Traceback")
    assert "in fails" in ending.stack
    assert "workerd/pool" not in ending.stack
    assert ending.stack.endswith("ValueError: line one\nline two\n")


def test_classes_are_told_from_the_most_derived() -> None:
    """So that the pool can match them without having them."""
    classes = execute(faces.fails, {"kind": "unspeakable"}).classes
    assert classes == ("tests.support.faces.Unspeakable", "builtins.Exception", "builtins.BaseException")


def test_long_errors_are_cut() -> None:
    """To 1 KiB and 64 KiB of valid UTF-8; a stack keeps both ends."""
    ending = execute(faces.fails, {"kind": "long"})
    assert len(str(ending.error).encode()) <= ERROR_LIMIT
    assert str(ending.error).startswith("ValueError: ééé")
    assert len(str(ending.stack).encode()) <= STACK_LIMIT
    assert str(ending.stack).startswith("Traceback")
    assert "cut here" in str(ending.stack)


def test_endless_recursion_is_an_error_like_others() -> None:
    """Its traceback is folded."""
    ending = execute(faces.recurses)
    assert ending.kind == "raised"
    assert str(ending.error).startswith("RecursionError")
    assert "in recurses" in str(ending.stack)


def test_vars_that_do_not_fit_are_a_failure_without_a_stack() -> None:
    """The handler was never called."""
    ending = execute(faces.add, {"a": "1"})
    assert (ending.kind, ending.error, ending.stack) == ("failure", "vars.a: expected int, got str", None)


def test_a_handler_that_is_not_there_is_a_failure() -> None:
    """A claim for another pool's handler ends here."""
    executor = Executor({}, Flags(), lambda progress: None)
    assert executor.run(Assignment(1, claim_of("h"), 0.0, 100)).kind == "failure"


def test_a_handler_that_cancels_itself_when_asked_is_cancelled() -> None:
    """It saw `ctx.stopping` and raised what would have been raised in it."""

    class Asked(Flags):
        cancel = True

    assert execute(faces.fails, {"kind": "own cancel"}, flags=Asked()).kind == "cancelled"


# -- classes


def test_a_class_has_one_instance_and_says_its_pause() -> None:
    """ensure is called again and again; cooler tells the pause after each."""
    executor = Executor({"h": make("h", faces.Recurring)}, Flags(), lambda progress: None)
    faces.Recurring.made = 0
    executor.prepare(None)
    runs = [executor.run(Assignment(7, claim_of("h"), 0.0, 1000)) for _ in range(2)]
    assert [run.payload for run in runs] == [
        b'{"made":1,"runs":1,"attempt":1}',
        b'{"made":1,"runs":2,"attempt":1}',
    ]
    assert [run.pause for run in runs] == [2.5, 2.5]


def test_a_class_that_is_not_active_is_skipped() -> None:
    """Its ensure is not called."""
    assert execute(faces.Idle).kind == "skipped"


def test_active_may_fail_like_the_run_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """cooler may not: the run has ended by then, and the configured pause holds."""
    executor = Executor({"h": make("h", faces.Moody)}, Flags(), lambda progress: None)
    executor.prepare(None)

    def run(mood: str) -> RunResult:
        return executor.run(Assignment(7, claim_of("h", {"mood": mood}), 0.0, 1000))

    assert (run("text").kind, run("text").pause) == ("returned", 5.0)
    assert (run("inactive").kind, run("inactive").pause) == ("returned", None)
    assert "cooler() failed" in capsys.readouterr().err
    assert (run("any").kind, run("any").error) == ("raised", "LookupError: no mood")


def test_an_instance_that_cannot_be_made_is_a_fault_of_the_pool() -> None:
    """It is told before any job."""
    with pytest.raises(LoadError, match="no instance today"):
        execute(faces.Broken)


# -- progress


def test_progress_is_in_the_ending() -> None:
    """Cut, and on one line."""
    ending = execute(faces.progresses)
    assert (ending.progress, ending.note) == (0.9999, "at 9999")
