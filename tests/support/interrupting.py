"""Exceptions that come in the middle of a call, as those of a signal handler do: at every place in turn."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar, cast

import pytest


class Interrupted(Exception):
    """What a handler of signals raises, such as that of a timeout."""


T = TypeVar("T", bound=Callable[..., object])


def interrupts(test: T) -> T:
    """Decorates a test that does it: the interpreter closes without a warning what nobody had yet, or closes.

    Also what a traceback refers to, which it would find in the middle of another test.
    """
    ignored = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    return cast(T, ignored(_collecting()(test)))


@contextmanager
def _collecting() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def interrupt(call: Callable[[], object], place: int, handle: Callable[[], object] = int) -> bool:
    """Run `call` and raise Interrupted at its place of this number, from 1; false if it has fewer.

    A place is where CPython runs handlers of signals: the begin of a function, the end of one written in C.
    `handle` is called while the exception is handled.
    """
    left = place

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                raise Interrupted

    sys.setprofile(count)
    try:
        call()
    except Interrupted:
        handle()
    finally:
        sys.setprofile(None)
    return left <= 0
