"""From an assignment to its result, whatever the handler returns or raises."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.pool.handlers import worker_handlers
from tests.support.worker import claim_of
from workerd.errors import LoadError
from workerd.handler import Result
from workerd.outcome import RunResult
from workerd.pool.executor import Executor
from workerd.pool.handler_log import StandardErrorLog
from workerd.pool.loading import make
from workerd.pool.worker_messages import Assignment, Progressed
from workerd.text import ERROR_LIMIT, STACK_LIMIT


class NoFlags:
    """Flags of a run that is never interrupted."""

    serial = 7
    soft_deadline_ns = 0
    cancel = False
    interrupt = False
    stopping = False


class Pool:
    """What a run sends to its pool; in order."""

    def __init__(self) -> None:
        self.progress: list[Progressed] = []
        self.states: list[tuple[Any, bool]] = []

    def send(self, message: Progressed) -> None:
        self.progress.append(message)

    def keep(self, serial: int, state: bytes, wait: bool) -> None:
        self.states.append((msgspec.json.decode(state), wait))


def execute(
    target: Any, vars: Any = None, *, limit: int = 1 << 20, flags: Any = None, **more: Any
) -> RunResult:
    executor = Executor({"h": make("h", target)}, flags or NoFlags(), Pool(), StandardErrorLog())
    executor.prepare(None)
    return executor.run(Assignment(7, claim_of("h", vars, **more), 0.0, limit))


# -- returning


@pytest.mark.parametrize(
    ("kind", "payload"), [("bytes", b"\x00\xff"), ("bytearray", b"ab"), ("memoryview", b"cd")]
)
def test_bytes_are_stored_unchanged(kind: str, payload: bytes) -> None:
    """For each of Python's bytes-like types."""
    result = execute(worker_handlers.raw, {"kind": kind})
    assert (result.kind, result.payload, result.payload_type) == ("returned", payload, "bytes")


def test_other_values_are_stored_as_json() -> None:
    """None too."""
    assert execute(worker_handlers.nothing).payload == b"null"
    assert execute(worker_handlers.nothing).payload_type == "json"
    assert execute(worker_handlers.echo, {"a": [1, "é"]}).payload == '{"a":[1,"é"]}'.encode()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("object", "payload cannot be written as JSON: TypeError"),
        ("generator", "payload cannot be written as JSON"),
        ("loop", "payload cannot be written as JSON: RecursionError"),
        ("surrogate", "payload cannot be written as JSON: UnicodeEncodeError"),
        ("nan", "payload cannot be written as JSON: payload.a[0]: expected a number that JSON has"),
        ("released", "return value cannot be read: ValueError"),
        ("extras", "Result(extras=…) expects a mapping, got list"),
        ("spawn", "Result(spawn=…) expects a list, got dict"),
    ],
)
def test_a_value_that_cannot_be_stored_is_a_failure_with_the_reason(kind: str, words: str) -> None:
    """A retry would return the same value."""
    result = execute(worker_handlers.unfit, {"kind": kind})
    assert (result.kind, result.payload) == ("failure", None)
    assert words in str(result.error)


def test_a_result_carries_payload_extras_and_spawn() -> None:
    """Payload and extras also without success."""
    good = execute(worker_handlers.result, {"success": True}, request_id=bytes(16))
    assert (good.kind, good.payload, good.extras, good.error) == (
        "returned",
        b'{"n":1}',
        b'{"found":3}',
        None,
    )
    assert good.spawn == b'[{"name":"x","handler":"y"}]'
    bad = execute(worker_handlers.result, {"success": False})
    assert (bad.kind, bad.payload, bad.extras) == ("failed", b'{"n":1}', b'{"found":3}')
    assert bad.error


def test_only_a_job_of_a_request_may_spawn() -> None:
    """A plain job has no request to add jobs to."""
    result = execute(worker_handlers.result, {"success": True})
    assert (result.kind, result.spawn) == ("failure", None)
    assert "this job belongs to none" in str(result.error)


@pytest.mark.parametrize("spawn", [[{"name": "x"}], ["h"], [{"handler": "h", "needs": ["x"]}]])
def test_spawn_without_a_handler_is_a_failure(spawn: list[Any]) -> None:
    """Of the job that spawned it."""
    result = execute(lambda: Result(spawn=spawn), request_id=bytes(16))
    assert result.kind == "failure"
    assert "Result(spawn=…): expected tables" in str(result.error)


def test_spawn_of_a_reserved_handler_is_a_failure() -> None:
    """Else a handler could have a text of its own signed and delivered as a webhook."""
    result = execute(lambda: Result(spawn=[{"handler": "~webhook"}]), request_id=bytes(16))
    assert (result.kind, result.spawn) == ("failure", None)
    assert 'names that start with "~" are reserved' in str(result.error)


@pytest.mark.parametrize("size", [4096, 4097])
def test_a_payload_may_have_exactly_its_limit(size: int) -> None:
    """And not a byte more."""
    assert execute(worker_handlers.large, {"size": size}, limit=4096).kind == (
        "returned" if size == 4096 else "failure"
    )


def test_async_handlers_are_run_by_asyncio() -> None:
    """To their return value."""
    assert execute(worker_handlers.later, {"x": 3}).payload == b"3"


def test_the_context_has_the_values_of_the_claim() -> None:
    """And the deadline."""
    payload = execute(worker_handlers.about, meta=b'{"tenant":1}').payload
    values = msgspec.json.decode(payload or b"")
    assert (values["meta"], values["remaining"]) == ({"tenant": 1}, False)
    assert values["token"] == f"{values['job']}/1"


# -- raising


@pytest.mark.parametrize(
    ("kind", "result_kind", "error"),
    [
        ("value", "raised", "ValueError: line one line two"),
        ("failure", "failure", "no such image"),
        ("retry", "retry", "busy"),
        ("snooze", "retry", "not yet"),
        ("exit", "raised", "SystemExit: 3"),
        ("interrupt", "raised", "KeyboardInterrupt"),
        ("str raises", "raised", "StrRaises: (its __str__ raised RuntimeError)"),
        ("str exits", "raised", "StrExits: (its __str__ raised SystemExit)"),
        ("surrogate", "raised", "ValueError: a\\ud800b\\x00c"),
        ("group", "raised", "ExceptionGroup: two (2 sub-exceptions)"),
        ("own deadline", "deadline", "DeadlineExceeded: by itself"),
        ("own cancel", "raised", "Cancelled: by itself"),
    ],
)
def test_any_exception_becomes_a_result_with_one_line(kind: str, result_kind: str, error: str) -> None:
    """No exception of a handler escapes the executor."""
    result = execute(worker_handlers.fails, {"kind": kind})
    assert (result.kind, result.error, result.tainted) == (result_kind, error, False)
    msgspec.msgpack.encode(result)


def test_a_retry_carries_its_pause_and_whether_it_counts() -> None:
    """In seconds."""
    assert (
        execute(worker_handlers.fails, {"kind": "retry"}).after,
        execute(worker_handlers.fails, {"kind": "retry"}).counted,
    ) == (
        5,
        True,
    )
    snooze = execute(worker_handlers.fails, {"kind": "snooze"})
    assert (snooze.after, snooze.counted) == (60, False)


def test_the_stack_has_only_the_handlers_frames() -> None:
    """From its first line to the exception."""
    result = execute(worker_handlers.fails, {"kind": "value"})
    assert result.stack is not None
    assert result.stack.startswith("Traceback")
    assert "in fails" in result.stack
    assert "workerd/pool" not in result.stack
    assert result.stack.endswith("ValueError: line one\nline two\n")


def test_exception_classes_are_listed_most_derived_first() -> None:
    """So that the pool can match them without importing them."""
    classes = execute(worker_handlers.fails, {"kind": "str raises"}).classes
    assert classes == (
        "tests.pool.handlers.worker_handlers.StrRaises",
        "builtins.Exception",
        "builtins.BaseException",
    )


def test_long_errors_are_cut() -> None:
    """To 1 KiB and 64 KiB of valid UTF-8; a stack keeps both ends."""
    result = execute(worker_handlers.fails, {"kind": "long"})
    assert len(str(result.error).encode()) <= ERROR_LIMIT
    assert str(result.error).startswith("ValueError: ééé")
    assert len(str(result.stack).encode()) <= STACK_LIMIT
    assert str(result.stack).startswith("Traceback")
    assert "cut here" in str(result.stack)


def test_endless_recursion_is_an_ordinary_error() -> None:
    """Its traceback is folded."""
    result = execute(worker_handlers.recurses)
    assert result.kind == "raised"
    assert str(result.error).startswith("RecursionError")
    assert "in recurses" in str(result.stack)


def test_vars_that_do_not_match_are_a_failure_without_a_stack() -> None:
    """The handler is not called."""
    result = execute(worker_handlers.add, {"a": "1"})
    assert (result.kind, result.error, result.stack) == ("failure", "vars.a: expected int, got str", None)


def test_an_unknown_handler_is_a_failure() -> None:
    """The error names it."""
    executor = Executor({}, NoFlags(), Pool(), StandardErrorLog())
    assert executor.run(Assignment(1, claim_of("h"), 0.0, 100)).kind == "failure"


def test_a_handler_that_raises_cancelled_on_request_is_cancelled() -> None:
    """It saw `ctx.stopping` before the signal arrived."""

    class Asked(NoFlags):
        cancel = True

    assert execute(worker_handlers.fails, {"kind": "own cancel"}, flags=Asked()).kind == "cancelled"


# -- classes


def test_a_class_has_one_instance_whose_cooler_sets_the_pause() -> None:
    """`ensure` is called for each run."""
    executor = Executor(
        {"h": make("h", worker_handlers.Recurring)}, NoFlags(), lambda progress: None, StandardErrorLog()
    )
    worker_handlers.Recurring.made = 0
    executor.prepare(None)
    runs = [executor.run(Assignment(7, claim_of("h"), 0.0, 1000)) for _ in range(2)]
    assert [run.payload for run in runs] == [
        b'{"made":1,"runs":1,"attempt":1}',
        b'{"made":1,"runs":2,"attempt":1}',
    ]
    assert [run.pause for run in runs] == [2.5, 2.5]


def test_an_inactive_class_is_skipped() -> None:
    """Its `ensure` is not called."""
    assert execute(worker_handlers.Idle).kind == "skipped"


def test_an_error_of_active_ends_the_run_and_one_of_cooler_is_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After a failed `cooler` the configured pause applies."""
    executor = Executor(
        {"h": make("h", worker_handlers.Moody)}, NoFlags(), lambda progress: None, StandardErrorLog()
    )
    executor.prepare(None)

    def run(mood: str) -> RunResult:
        return executor.run(Assignment(7, claim_of("h", {"mood": mood}), 0.0, 1000))

    assert (run("text").kind, run("text").pause) == ("returned", 5.0)
    assert (run("inactive").kind, run("inactive").pause) == ("returned", None)
    assert "cooler() failed" in capsys.readouterr().err
    assert (run("any").kind, run("any").error) == ("raised", "LookupError: no mood")


def test_an_instance_that_cannot_be_made_is_a_load_error() -> None:
    """Before any job."""
    with pytest.raises(LoadError, match="no instance today"):
        execute(worker_handlers.Broken)


# -- progress


def test_the_last_progress_is_in_the_result() -> None:
    """The note is one line, cut to its limit."""
    result = execute(worker_handlers.progresses)
    assert (result.progress, result.note) == (0.9999, "at 9999")
