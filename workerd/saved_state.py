"""What a job has saved for its next attempt: the document in the column `state`, and its use by a run."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import msgspec

from workerd import json_text
from workerd.errors import InvalidValue

STATE_LIMIT = 64 * 1024
"""Bytes of the whole document: the saved value and what the steps returned, as JSON."""


class SavedDocument(msgspec.Struct):
    """`saved`: the newest value given to `ctx.save`. `steps`: what each step returned, by its name."""

    saved: Any = None
    steps: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(SavedDocument)


class SavedState:
    """The saved state as one run sees and changes it.

    `keep` gets each new document, and whether to return only when it is committed; it is called before the
    change is visible, so that what it raises leaves the state as it was. `around_step`: makes the context in
    which a step of this name is run.
    """

    @staticmethod
    def alone(_: str) -> AbstractContextManager[object]:
        """Nothing around a step."""
        return nullcontext()

    def __init__(
        self,
        stored: bytes | None,
        keep: Callable[[bytes, bool], None],
        around_step: Callable[[str], AbstractContextManager[object]] = alone,
    ) -> None:
        """Raises InvalidValue if `stored`, the document as JSON, is not one."""
        self._keep = keep
        self._around_step = around_step
        self._lock = threading.RLock()
        self._steps_of_this_run: set[str] = set()
        self._document = SavedDocument()
        if stored:
            try:
                self._document = _decoder.decode(stored)
            except (msgspec.MsgspecError, RecursionError):
                raise InvalidValue(
                    "the job's saved state cannot be read; `workerd job retry ID --fresh` begins without it"
                ) from None

    @property
    def saved(self) -> Any:
        """The newest saved value, None if there is none."""
        return self._document.saved

    @property
    def steps(self) -> Mapping[str, Any]:
        """What each step returned, by its name."""
        return MappingProxyType(self._document.steps)

    def save(self, value: Any, wait: bool) -> None:
        """Keep `value`. Raises InvalidValue if it is no JSON, or makes the document too long."""
        kept = _as_json("the saved value", value)
        with self._lock:
            self._change(SavedDocument(kept, self._document.steps), wait)

    def step(self, name: str, function: Callable[[], Any], wait: bool) -> Any:
        """What `function` returned when it was first called under this name; calls it if it never was.

        An async function gives an awaitable. Raises InvalidValue for a name that this run has used already,
        and as `save`.
        """
        name = str(name)
        with self._lock:
            if name in self._steps_of_this_run:
                raise InvalidValue(f"the step {name!r} was used twice in one run; give each its own name")
            self._steps_of_this_run.add(name)
        if inspect.iscoroutinefunction(function):
            return self._async_step(name, function, wait)
        if name in self._document.steps:
            return self._document.steps[name]
        with self._around_step(name):
            value = function()
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise TypeError(f"the step {name!r} returned an awaitable; give it an `async def` function")
        return self._keep_step(name, value, wait)

    async def _async_step(self, name: str, function: Callable[[], Awaitable[Any]], wait: bool) -> Any:
        if name in self._document.steps:
            return self._document.steps[name]
        with self._around_step(name):
            value = await function()
        return self._keep_step(name, value, wait)

    def _keep_step(self, name: str, value: Any, wait: bool) -> Any:
        kept = _as_json(f"the value of the step {name!r}", value)
        with self._lock:
            document = self._document
            self._change(SavedDocument(document.saved, {**document.steps, name: kept}), wait)
        return kept

    def _change(self, document: SavedDocument, wait: bool) -> None:
        data = msgspec.json.encode(document)
        if len(data) > STATE_LIMIT:
            raise InvalidValue(
                f"the saved state has {len(data)} bytes, more than the limit of {STATE_LIMIT}; save a"
                " position to continue from, and keep the data elsewhere"
            )
        self._keep(data, wait)
        self._document = document


def _as_json(name: str, value: Any) -> Any:
    """The value as every later attempt sees it: a tuple is a list, a key is text. Raises InvalidValue."""
    try:
        return msgspec.json.decode(json_text.encode(name, value))
    except (TypeError, OverflowError, RecursionError) as error:
        raise InvalidValue(f"{name} cannot be written as JSON: {error}") from None
