"""workerd.testing: handlers in a test, with the daemon's conversion and outcomes."""

from __future__ import annotations

import pytest

from tests.pool.handlers import worker_handlers
from workerd import handler, testing
from workerd.errors import LoadError
from workerd.handler import Context, DeadlineExceeded, Retry


def test_a_run_returns_its_outcome() -> None:
    """In the terms of the store."""
    outcome = testing.run(worker_handlers.add, a=2)
    assert (outcome.status, outcome.reason, outcome.success) == ("completed", "ok", True)
    assert (outcome.payload, outcome.payload_type) == (3, "json")


def test_a_handler_may_be_given_by_name() -> None:
    """As in the configuration."""
    assert testing.run("os.path:basename", p="/a/b").payload == "b"


def test_vars_are_converted_as_in_the_daemon() -> None:
    """Vars that do not match are a failure that names the field."""
    outcome = testing.run(worker_handlers.add, a="2")
    assert (outcome.status, outcome.reason) == ("failure", "failure")
    assert outcome.error == "vars.a: expected int, got str"


def test_vars_may_have_any_name() -> None:
    """Also those of `run`'s own parameters."""
    assert testing.run(worker_handlers.echo, handler=1, vars=2).payload == {"handler": 1, "vars": 2}


def test_exceptions_follow_the_decorators_policy() -> None:
    """Retried after a pause, ignored or failed."""

    @handler(max_attempts=2, ignore=KeyError, backoff={"first": 4, "jitter": 0})
    def moody(which: str) -> None:
        raise {"key": KeyError, "value": ValueError, "retry": Retry}[which](which)

    first = testing.run(moody, which="value")
    assert (first.status, first.reason, first.retry_after) == ("retry", "error", 4)
    assert first.exception_classes[0] == "builtins.ValueError"
    assert "in moody" in str(first.stack)
    last = testing.attempt(moody, {"which": "value"}, attempt=2)
    assert (last.status, last.retry_after) == ("failure", None)
    assert testing.run(moody, which="key").reason == "ignored"
    assert testing.run(moody, which="retry").reason == "retry"


def test_a_class_is_run_by_ensure() -> None:
    """And skipped when it is not active."""
    assert testing.run(worker_handlers.Recurring).payload["runs"] == 1
    assert testing.run(worker_handlers.Idle).reason == "skipped"


def test_the_context_of_a_request_can_be_set() -> None:
    """With params, extras, needs and meta, and ctx.stopping."""

    def step(ctx: Context) -> dict[str, object]:
        return {
            "in": ctx.request_id is not None,
            "params": ctx.params,
            "extras": ctx.extras,
            "needs": ctx.needs,
            "meta": ctx.meta,
            "stopping": ctx.stopping,
        }

    given = {"params": {"a": 1}, "extras": {"b": 2}, "needs": {"first": [3]}, "meta": {"c": 4}}
    assert testing.attempt(step, {}, **given, stopping=True).payload == given | {"in": True, "stopping": True}
    alone = testing.run(step).payload
    assert (alone["in"], alone["params"], alone["stopping"]) == (False, {}, False)


def test_the_deadline_is_visible_and_may_be_raised() -> None:
    """It is not enforced."""

    @handler(deadline=5, fail_on="DeadlineExceeded")
    def patient(ctx: Context) -> None:
        assert ctx.deadline == 5
        assert 0 < ctx.remaining() <= 5
        raise DeadlineExceeded

    outcome = testing.run(patient)
    assert (outcome.status, outcome.reason) == ("failure", "deadline")


def test_an_object_that_cannot_be_a_handler_raises() -> None:
    """A bug in the test is not an outcome."""
    with pytest.raises(LoadError, match="generator"):
        testing.run(worker_handlers.generator)
    with pytest.raises(TypeError):
        testing.run(worker_handlers.echo, x=object())
