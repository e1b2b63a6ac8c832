"""The document of saved state: what a run sees of it, and what it refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from workerd import Context, handler, testing
from workerd.errors import InvalidValue
from workerd.saved_state import STATE_LIMIT, SavedState


class Kept:
    """Takes what is saved, or refuses it."""

    def __init__(self) -> None:
        self.documents: list[Any] = []
        self.refuses = False

    def __call__(self, state: bytes, wait: bool) -> None:
        if self.refuses:
            raise RuntimeError("refused")
        self.documents.append((msgspec.json.decode(state), wait))


def test_the_newest_value_is_seen_as_a_later_attempt_sees_it() -> None:
    """A tuple is a list, a key is text; steps stay beside it."""
    kept = Kept()
    state = SavedState(None, kept)
    assert state.saved is None
    assert state.step("first", lambda: (1, 2), wait=True) == [1, 2]
    state.save({1: ("a",)}, wait=False)
    assert state.saved == {"1": ["a"]}
    assert kept.documents == [
        ({"saved": None, "steps": {"first": [1, 2]}}, True),
        ({"saved": {"1": ["a"]}, "steps": {"first": [1, 2]}}, False),
    ]


def test_a_step_is_not_called_again() -> None:
    """Nor an async one; a name may be used once in a run."""
    stored = b'{"saved": null, "steps": {"charge": "receipt", "mail": null}}'
    state = SavedState(stored, Kept())

    def never() -> None:
        raise AssertionError("called again")

    async def never_async() -> None:
        never()

    assert state.step("charge", never, wait=False) == "receipt"
    assert asyncio.run(state.step("mail", never_async, wait=False)) is None
    with pytest.raises(InvalidValue, match="step 'charge' was used twice in one run"):
        state.step("charge", never, wait=False)


def test_what_cannot_be_kept_leaves_the_state_as_it_was() -> None:
    """Too long with all that is there, no JSON, refused by the pool."""
    kept = Kept()
    state = SavedState(None, kept)
    state.save("a" * (STATE_LIMIT // 2), wait=False)
    before = state.saved
    for value, words in (
        (object(), "cannot be written as JSON"),
        ({"a": float("nan")}, "expected a number that JSON has"),
        ("b" * STATE_LIMIT, f"more than the limit of {STATE_LIMIT}"),
    ):
        with pytest.raises(ValueError, match=words):
            state.save(value, wait=False)
    with pytest.raises(ValueError, match="more than the limit"):
        state.step("long", lambda: "c" * (STATE_LIMIT // 2), wait=False)
    kept.refuses = True
    with pytest.raises(RuntimeError, match="refused"):
        state.save("other", wait=False)
    assert state.saved == before
    assert len(kept.documents) == 1


def test_an_awaitable_needs_an_async_function() -> None:
    """In a later attempt nobody could tell that the caller awaits."""

    async def charge() -> None: ...

    state = SavedState(None, Kept())
    with pytest.raises(TypeError, match="give it an `async def` function"):
        state.step("charge", lambda: charge(), wait=False)


@pytest.mark.parametrize("stored", [b"{", b"[]", b'{"steps": 3}', b"[" * 100_000])
def test_a_document_that_cannot_be_read_names_the_remedy(stored: bytes) -> None:
    """To begin anew silently would run steps again."""
    with pytest.raises(InvalidValue, match="--fresh"):
        SavedState(stored, Kept())


def test_a_test_of_a_handler_sees_what_it_saved() -> None:
    """And gives it what earlier attempts saved; a success leaves nothing."""

    @handler(max_attempts=3)
    def counts(ctx: Context, until: int) -> int:
        place = ctx.saved or 0
        ctx.step("begin", lambda: "begun")
        if place < until:
            ctx.save(place + 1)
            raise ValueError("not yet")
        return int(place)

    first = testing.run(counts, until=1)
    assert (first.status, first.saved, first.steps) == ("retry", 1, {"begin": "begun"})
    second = testing.attempt(counts, {"until": 1}, attempt=2, saved=first.saved, steps=first.steps)
    assert (second.status, second.payload, second.saved, second.steps) == ("completed", 1, None, {})
