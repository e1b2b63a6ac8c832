"""What a program may ask for when it enqueues, and how it is refused."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from workerd.clock import from_rfc3339
from workerd.job_spec import JobSpec, check, params_json


def test_a_job_needs_only_its_handler() -> None:
    """Everything else has the store's own default."""
    checked = check(JobSpec(handler="mail"))
    assert checked.vars == b"{}"
    assert (checked.id, checked.meta, checked.run_at, checked.delay) == (None, None, None, None)


def test_values_are_turned_into_the_stores_units() -> None:
    """Durations and times are given as a Python program has them."""
    checked = check(
        JobSpec(
            handler="mail",
            vars={"at": datetime(2026, 1, 1, tzinfo=UTC), "ids": [uuid.UUID(int=1)]},
            delay=timedelta(seconds=1.5),
            deadline="250ms",
            meta=None,
        )
    )
    assert checked.delay == 1_500_000
    assert checked.deadline_ms == 250
    assert checked.vars == b'{"at":"2026-01-01T00:00:00Z","ids":["00000000-0000-0000-0000-000000000001"]}'


@pytest.mark.parametrize(
    "moment",
    ["2026-01-31T12:00:00Z", datetime(2026, 1, 31, 14, 30, tzinfo=timezone(timedelta(hours=2, minutes=30)))],
)
def test_a_time_may_be_text_or_a_datetime_with_its_offset(moment: str | datetime) -> None:
    """Both name the same moment."""
    assert check(JobSpec(handler="h", run_at=moment)).run_at == from_rfc3339("2026-01-31T12:00:00Z")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"handler": ""}, "handler: expected text of 1 to 191"),
        ({"handler": "x" * 192}, "handler: expected text"),
        ({"handler": "\udc00"}, "handler: expected valid Unicode"),
        ({"vars": [1]}, "vars: expected the handler's arguments by name"),
        ({"vars": {1: 2}}, "vars: expected text as names"),
        ({"vars": {"a": object()}}, "vars: cannot be encoded as JSON"),
        ({"vars": {"a": "\ud800"}}, "vars: cannot be encoded as JSON"),
        ({"vars": {"a": "x" * (1 << 20)}}, "exceed the limit of 1048576"),
        ({"delay": -1}, "delay: expected a duration"),
        ({"delay": "soon"}, "delay: expected a duration"),
        ({"delay": float("nan")}, "delay: expected a duration"),
        ({"delay": 1, "run_at": "2026-01-31T12:00:00Z"}, "either delay or run_at"),
        ({"run_at": datetime(2026, 1, 1)}, "run_at: expected a time with its UTC offset"),
        ({"run_at": "tomorrow"}, "run_at: expected a time"),
        ({"priority": 2**31}, "priority: expected a whole number"),
        ({"priority": True}, "priority: expected a whole number"),
        ({"max_attempts": 0}, "max_attempts: expected a whole number from 1"),
        ({"deadline": "40d"}, "deadline: expected at most 24 days"),
        ({"unique_key": ""}, "unique_key: expected text"),
        ({"unique_key": "~cooler"}, "reserved"),
        ({"id": "42"}, "expected a job id"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_field_s_name(wrong: dict[str, Any], said: str) -> None:
    """Nothing is sent to the store."""
    with pytest.raises(ValueError, match="(?s)" + said.replace("'", ".")):
        check(JobSpec(**{"handler": "h", **wrong}))


def test_params_of_a_request_are_an_object() -> None:
    """A list is refused."""
    assert params_json({"id": 7}) == b'{"id":7}'
    with pytest.raises(ValueError, match="params: expected a mapping"):
        params_json([7])
