"""The decorator, and the context of a run."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import pytest

import workerd
from workerd import handler
from workerd.handler import Cancelled, Context, DeadlineExceeded, Failure, Result, Retry, options_of
from workerd.job import Claim, id_text


class FakeRun:
    """A RunHandle that records what is reported."""

    replay = False

    def __init__(self) -> None:
        self.reported: list[tuple[float | None, str | None]] = []

    def stopping(self) -> bool:
        return True

    def progress(self, fraction: float | None, note: str | None) -> None:
        self.reported.append((fraction, note))

    def log(self) -> Any:
        return object()


def context(deadline: float = 0, soft_deadline_ns: int = 0, **more: Any) -> Context:
    claim = Claim(
        id=bytes(range(16)), attempt=3, claimed_at=0, mono=0, handler="h", vars=b"{}", run_at=0, **more
    )
    return Context(claim, FakeRun(), deadline, soft_deadline_ns)


# -- the decorator


def test_the_decorator_returns_the_same_object() -> None:
    """With and without parentheses."""

    def plain(x: int) -> int:
        return x

    assert handler(plain) is plain
    assert options_of(plain) == {}
    assert handler(deadline=3)(plain) is plain
    assert options_of(plain) == {"deadline": 3.0}


def test_options_are_checked_and_converted() -> None:
    """Durations are seconds or text; classes are classes or names, one or many."""

    @handler(
        deadline="1m",
        grace=0.5,
        max_attempts=3,
        max_crashes=1,
        backoff={"first": "2s", "jitter": 0},
        retry_on=OSError,
        fail_on=["KeyError", ValueError],
        ignore="shop.errors.Gone",
    )
    def decorated() -> None: ...

    assert options_of(decorated) == {
        "deadline": 60.0,
        "grace": 0.5,
        "max_attempts": 3,
        "max_crashes": 1,
        "backoff": {"first": 2.0, "jitter": 0.0},
        "retry_on": (OSError,),
        "fail_on": ("KeyError", ValueError),
        "ignore": ("shop.errors.Gone",),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": "soon"}, "deadline=…): expected a duration"),
        ({"deadline": -1}, "deadline=…): expected"),
        ({"max_attempts": 0}, "max_attempts=…): expected a whole number from 1"),
        ({"max_attempts": "3"}, "max_attempts=…): expected a whole number"),
        ({"backoff": 3}, "backoff=…): expected a dict with some of the keys first, factor, max, jitter"),
        ({"backoff": {"frist": 3}}, "backoff=…): expected a dict"),
        ({"retry_on": int}, "retry_on=…): expected exception classes or their names"),
        ({"ignore": 3}, "ignore=…): expected exception classes"),
    ],
)
def test_the_error_for_a_wrong_option_names_what_was_expected(options: dict[str, Any], message: str) -> None:
    """At the decorator, when the module is imported."""
    with pytest.raises(ValueError, match="@handler") as caught:
        handler(**options)
    assert message in str(caught.value)


def test_an_unknown_option_is_reported_with_the_known_ones() -> None:
    """A typo must not become a missing policy."""
    options: dict[str, Any] = {"max_attemps": 3}
    with pytest.raises(TypeError, match=r"no option 'max_attemps'; expected one of deadline, grace"):
        handler(**options)


def test_only_callables_can_be_decorated() -> None:
    """Other values raise TypeError."""
    with pytest.raises(TypeError, match="expects a function or a class"):
        handler(deadline=1)(3)


def test_options_are_found_through_wrappers() -> None:
    """functools.wraps and functools.partial."""

    @handler(max_attempts=2)
    def inner(x: int) -> int:
        return x

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> int:
        return inner(*args, **kwargs)

    assert options_of(outer) == {"max_attempts": 2}
    assert options_of(functools.partial(functools.partial(inner), 3)) == {"max_attempts": 2}
    assert options_of(len) == {}


# -- deciding an ending


def test_deadline_and_cancel_are_not_exceptions() -> None:
    """`except Exception` does not swallow them."""
    assert not issubclass(DeadlineExceeded, Exception)
    assert not issubclass(Cancelled, Exception)
    assert issubclass(Failure, Exception)


def test_retry_takes_seconds_or_text() -> None:
    """Anything else raises where it is written."""
    assert (Retry("busy").after, Retry("busy").counted, str(Retry("busy"))) == (None, True, "busy")
    assert Retry("busy", after="5m").after == 300
    assert Retry(after=0, counted=False).after == 0
    with pytest.raises(ValueError, match="expected a duration"):
        Retry("busy", after=-1)


def test_a_result_is_a_success_without_payload_by_default() -> None:
    """The defaults of Result."""
    assert (Result().success, Result().payload, Result().extras, Result().spawn) == (True, None, None, None)
    assert Result(False, "x", {"a": 1}).extras == {"a": 1}


def test_the_package_has_its_public_names() -> None:
    """And no others."""
    assert all(hasattr(workerd, name) for name in workerd.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        workerd.nothing  # noqa: B018


# -- the context


def test_a_context_identifies_its_run() -> None:
    """The job id is the same for all attempts, the token is not."""
    ctx = context()
    assert ctx.job_id == id_text(bytes(range(16))) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (ctx.attempt, ctx.handler, ctx.token) == (3, "h", f"{ctx.job_id}/3")
    assert (ctx.meta, ctx.deadline, ctx.request_id) == (None, None, None)
    assert (ctx.params, ctx.extras, ctx.needs) == ({}, {}, {})
    assert ctx.stopping


def test_a_context_in_a_request_has_its_values() -> None:
    """params, extras and needs are decoded from JSON; needs by job name."""
    ctx = context(
        meta=b'{"tenant": 7}',
        request_id=bytes(16),
        params=b'{"user": 1}',
        extras=b'{"found": true}',
        needs={"first": b"[1, 2]", "second": b"null"},
    )
    assert ctx.meta == {"tenant": 7}
    assert ctx.request_id == id_text(bytes(16))
    assert (ctx.params, ctx.extras) == ({"user": 1}, {"found": True})
    assert ctx.needs == {"first": [1, 2], "second": None}


def test_remaining_counts_down_to_zero() -> None:
    """Infinite without a deadline, never negative."""
    assert context().remaining() == math.inf
    assert 0 < context(60, time.monotonic_ns() + 60_000_000_000).remaining() <= 60
    assert context(1, time.monotonic_ns() - 1).remaining() == 0


def test_progress_is_clamped_and_checked() -> None:
    """A fraction is a number from 0 to 1; a note is text."""
    ctx = context()
    run = ctx._run
    assert isinstance(run, FakeRun)
    ctx.progress(0.5, "half")
    ctx.progress(7)
    ctx.progress(-1, note=3)
    ctx.progress(note="only a note")
    assert run.reported == [(0.5, "half"), (1.0, None), (0.0, "3"), (None, "only a note")]
    with pytest.raises(ValueError, match="got nan"):
        ctx.progress(math.nan)
