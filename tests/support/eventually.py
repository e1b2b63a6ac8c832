"""The only way tests wait: poll a fact up to a time limit, and show the state when it stays false."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    fact: Callable[[], T],
    *,
    within: float = 30.0,
    every: float = 0.01,
    state: Callable[[], object] | None = None,
) -> T:
    """Poll `fact` every `every` seconds, at most `within` seconds; return its first true value.

    An AssertionError inside `fact` counts as false, as does a KeyError: a document may lack a part yet.
    `state()` is shown in the error on timeout.
    """
    end = time.monotonic() + within
    while True:
        last: object = None
        try:
            value = fact()
            if value:
                return value
            last = value
        except (AssertionError, KeyError) as error:
            last = error
        if time.monotonic() >= end:
            shown = f"; state: {state()}" if state is not None else ""
            raise AssertionError(
                f"not true within {within} s: {getattr(fact, '__name__', fact)!s}, last {last!r}{shown}"
            )
        time.sleep(every)
