"""Conflicts of unique keys, decided without a store."""

from __future__ import annotations

import uuid
from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd import duplicates
from workerd.clock import SECOND
from workerd.errors import InvalidValue
from workerd.job_spec import JobSpec, check


def test_every_state_has_an_action() -> None:
    """Whatever holds the key, and whether one waits behind it."""
    assert set(duplicates.ACTIONS) == set(product(get_args(duplicates.Holder), (True, False)))


@given(st.integers(0, 2**50), st.integers(SECOND, 366 * 86_400 * SECOND), st.text(min_size=1))
def test_a_window_has_one_id(now: int, window: int, key: str) -> None:
    """A UUIDv7, the same from its first to its last microsecond, and another in the next."""
    begin = now - now % window
    ids = {duplicates.window_id("h", key, window, moment) for moment in (begin, now, begin + window - 1)}
    assert len(ids) == 1
    assert uuid.UUID(bytes=ids.pop()).version == 7
    assert duplicates.window_id("h", key, window, begin) != duplicates.window_id(
        "h", key, window, begin + window
    )
    assert duplicates.window_key(key, window, now) == duplicates.window_key(key, window, begin)
    assert len(duplicates.window_key(key, window, now)) <= 191


@given(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**9), st.none() | st.integers(0, 10**7))
def test_a_debounced_job_is_due_in_time(now: int, delay: int, age: int, most: int | None) -> None:
    """After its delay, but no later than `max_delay` after it was made, and never in the past."""
    due = duplicates.due_at(now, delay, now - age, most)
    assert now <= due <= now + delay
    if most is not None:
        assert due <= max(now, now - age + most)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unique_key": "k", "on_conflict": "merge"}, 'expected one of "keep", "replace", "debounce"'),
        ({"on_conflict": "replace"}, "on_conflict: requires a unique_key"),
        ({"unique_for": "1h"}, "unique_for: requires a unique_key"),
        ({"unique_key": "k", "on_conflict": "debounce"}, '"debounce" requires a delay'),
        ({"unique_key": "k", "max_delay": 5}, 'max_delay: requires on_conflict "debounce"'),
        ({"unique_key": "k", "on_conflict": "follow", "unique_for": 60}, 'requires on_conflict "keep"'),
        ({"unique_key": "k", "unique_for": 0.5}, "unique_for: expected 1 second to 366 days"),
        ({"unique_key": "k", "on_conflict": "replace", "id": uuid.uuid4()}, "id: an id or Idempotency-Key"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    """By every way in: `check` is theirs."""
    with pytest.raises(InvalidValue, match=message):
        check(JobSpec(handler="h", **options))
