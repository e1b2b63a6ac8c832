"""Server-sent events: a page's listeners get the parts of it that changed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping

from workerd import log
from workerd.errors import WorkerdError
from workerd.gateway.problems import HTTPProblem, of

# Server-sent events: whoever looks at a page is sent the parts of it that changed.
#
# One task renders, once for all who look at the same page; a listener holds neither a thread nor a connection
# to the store, and what a slow one has not taken is replaced by what is newer.
#

MOST = 64
"""Listeners at a time."""
EVERY = 1.0
"""Seconds between two looks, longer if the store is slow to answer."""
IDLE_SHARE = 5.0
"""How much longer than a look took the pause after it is: what is looked at is never most of the load."""
SLOWEST = 15.0

Parts = Mapping[str, str]
Render = Callable[[str, str], Awaitable[Parts]]


class Listener:
    """One open page: what it was sent, and what it is to be sent next."""

    def __init__(self, view: str) -> None:
        self.view = view
        self.fresh = asyncio.Event()
        self.ended = False
        self._sent: dict[str, bytes] = {}
        self._next: dict[str, str] = {}

    def offer(self, parts: Parts) -> None:
        """What the page looks like now."""
        for name, text in parts.items():
            mark = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if self._sent.get(name) != mark:
                self._sent[name] = mark
                self._next[name] = text
        if self._next:
            self.fresh.set()

    def take(self) -> dict[str, str]:
        """What has changed since it was last asked."""
        taken, self._next = self._next, {}
        self.fresh.clear()
        return taken

    def end(self) -> None:
        """The node ends."""
        self.ended = True
        self.fresh.set()


class Events:
    """All listeners, and the task that looks for them. `render`: a view's parts by path and query."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._came = asyncio.Event()
        self._ended = False
        self._log = log.get_logger("gateway")

    def add(self, view: str) -> Listener:
        """One more listener. Raises Problem 503 if there are too many, or the node ends."""
        if self._ended or len(self._listeners) >= MOST:
            raise HTTPProblem(503, "Too many pages are open on this node; close some.", {"Retry-After": "5"})
        listener = Listener(view)
        self._listeners.add(listener)
        self._came.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        return listener

    def remove(self, listener: Listener) -> None:
        """It went away."""
        self._listeners.discard(listener)

    def end(self) -> None:
        """The node ends: so do all streams."""
        self._ended = True
        for listener in self._listeners:
            listener.end()

    async def _look(self) -> None:
        while self._listeners:
            began = time.monotonic()
            self._came.clear()
            views: defaultdict[str, list[Listener]] = defaultdict(list)
            for listener in self._listeners:
                views[listener.view].append(listener)
            for view, listeners in views.items():
                parts = await self._parts(view)
                for listener in listeners:
                    listener.offer(parts)
            took = time.monotonic() - began
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(SLOWEST, max(EVERY, took * IDLE_SHARE))):
                    await self._came.wait()

    async def _parts(self, view: str) -> Parts:
        path, _, query = view.partition("?")
        try:
            return {**await self._render(path, query), "": ""}
        except (WorkerdError, ValueError, HTTPProblem) as error:
            return {"": of(error).detail}
        except Exception as error:
            # One page that cannot be rendered must not end the others' news.
            self._log.error("a fault in a page", path=path, exc_info=error)
            return {"": "This page cannot be rendered now; the gateway's log says more."}
