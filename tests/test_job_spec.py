"""The options of enqueue: conversion to stored values, and error messages."""

from __future__ import annotations

import math
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_type_hints

import pytest

from workerd.clock import from_rfc3339
from workerd.errors import InvalidValue
from workerd.job_spec import OPTIONS, JobOptions, JobSpec, check, params_json


def test_a_job_needs_only_its_handler() -> None:
    """All other options default to the columns' defaults."""
    checked = check(JobSpec(handler="mail"))
    assert checked.vars == b"{}"
    assert (checked.id, checked.meta, checked.run_at, checked.delay) == (None, None, None, None)


def test_options_are_converted_to_stored_units() -> None:
    """Durations may be timedeltas or texts; vars may hold anything that msgspec encodes."""
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
    "run_at",
    ["2026-01-31T12:00:00Z", datetime(2026, 1, 31, 14, 30, tzinfo=timezone(timedelta(hours=2, minutes=30)))],
)
def test_a_time_may_be_text_or_a_datetime_with_its_offset(run_at: str | datetime) -> None:
    """Both give the same time."""
    assert check(JobSpec(handler="h", run_at=run_at)).run_at == from_rfc3339("2026-01-31T12:00:00Z")


@pytest.mark.parametrize(
    ("wrong", "message"),
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
def test_a_wrong_option_is_rejected_with_its_name(wrong: dict[str, Any], message: str) -> None:
    """The error also names what was expected."""
    with pytest.raises(InvalidValue, match="(?s)" + message.replace("'", ".")):
        check(JobSpec(**{"handler": "h", **wrong}))


def test_params_of_a_request_must_be_a_mapping() -> None:
    """A list is rejected."""
    assert params_json({"id": 7}) == b'{"id":7}'
    with pytest.raises(InvalidValue, match="params: expected a mapping"):
        params_json([7])


@pytest.mark.parametrize("given", [{"handler": "h "}, {"unique_key": "k "}, {"unique_key": " "}])
def test_a_space_at_the_end_is_refused(given: dict[str, str]) -> None:
    """MySQL compares names and keys as if they had none, SQLite and Python do not."""
    with pytest.raises(InvalidValue, match="no space at its end"):
        check(JobSpec(**{"handler": "h", **given}))


@pytest.mark.parametrize(
    ("given", "path"), [({"vars": {"a": [math.nan]}}, "vars.a[0]"), ({"meta": math.inf}, "meta")]
)
def test_numbers_that_json_does_not_have_are_refused(given: dict[str, Any], path: str) -> None:
    """Not stored as null."""
    with pytest.raises(InvalidValue) as caught:
        check(JobSpec(handler="h", **given))
    assert str(caught.value).startswith(f"{path}: ")


def test_every_option_is_a_keyword_of_enqueue_and_a_field_of_the_spec() -> None:
    """HTTP and command line offer OPTIONS; `id` alone is given in another way there."""
    keywords = get_type_hints(JobOptions)
    fields = get_type_hints(JobSpec)
    assert set(keywords) == set(fields) - {"handler", "vars"} == {"id", *OPTIONS}
    assert keywords == {name: fields[name] for name in keywords}


def test_the_longest_delay_bounds_the_first_enqueue_too() -> None:
    """Not only those that find a job to postpone."""
    spec = JobSpec(handler="h", unique_key="k", on_conflict="debounce", delay="10m", max_delay="5m")
    assert check(spec).delay == check(JobSpec(handler="h", delay="5m")).delay
