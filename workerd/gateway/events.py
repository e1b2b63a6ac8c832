"""Server-sent events: the listeners of a page get the parts of it that changed.

One task renders each page once for all its listeners. A listener holds neither a thread nor a store
connection; parts that a slow one has not read are replaced by newer ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping

from workerd.config.token_file import Role
from workerd.gateway.path_prefix import below
from workerd.gateway.problems import problem_of, unavailable
from workerd.gateway.roles import Caller
from workerd.gateway.tokens import Tokens

MAX_LISTENERS = 512
MAX_LISTENERS_PER_CLIENT = 64
"""Of one token or, where none is required, of one address."""
RENDER_INTERVAL_S = 1.0
MAX_RENDER_INTERVAL_S = 15.0
PAUSE_PER_RENDER = 5.0
"""The pause after rendering is at least so many times as long as rendering took, to bound its load."""
TOO_MANY_RETRY_AFTER_S = 5
ERROR_PART = ""
"""Name of the part that holds an error message, "" if the page could be rendered."""

Parts = Mapping[str, str]
"""HTML by the id of the element that it is the content of."""
Render = Callable[[str, str, Caller], Awaitable[Parts]]
"""Renders a page given by path and query, as this caller may see it."""


class Listener:
    """One open page of a client. `page`: its path with its query; `prefix`: of its links."""

    def __init__(self, page: str, caller: Caller, client: str, prefix: str) -> None:
        self.page = page
        self.caller = caller
        self.client = client
        self._prefix = prefix
        self.changed = asyncio.Event()
        self.ended = False
        self._sent: dict[str, bytes] = {}
        self._pending: dict[str, str] = {}

    def update(self, parts: Parts) -> None:
        """Queue the parts that differ from those sent before."""
        for name, html in parts.items():
            digest = hashlib.blake2b(html.encode(), digest_size=16).digest()
            if self._sent.get(name) != digest:
                self._sent[name] = digest
                self._pending[name] = below(self._prefix, html)
        if self._pending:
            self.changed.set()

    def take(self) -> dict[str, str]:
        """The parts queued since the last call."""
        taken, self._pending = self._pending, {}
        self.changed.clear()
        return taken

    def end(self) -> None:
        """End the stream."""
        self.ended = True
        self.changed.set()


class Events:
    """All listeners, and the task that renders their pages."""

    def __init__(self, render: Render, tokens: Tokens) -> None:
        self._render = render
        self._tokens = tokens
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._listener_added = asyncio.Event()
        self._ended = False

    def add(self, page: str, caller: Caller, address: str, prefix: str) -> Listener:
        """A new listener of a client, which is a token or, where none is required, an address; see Listener.

        Raises HTTPProblem 503 if there are too many, or the node is shutting down.
        """
        if self._ended or len(self._listeners) >= MAX_LISTENERS:
            raise unavailable("Too many pages are open on this node; close some.", TOO_MANY_RETRY_AFTER_S)
        client = caller.token_id or address
        if sum(listener.client == client for listener in self._listeners) >= MAX_LISTENERS_PER_CLIENT:
            raise unavailable(
                f"{MAX_LISTENERS_PER_CLIENT} pages of this token or address are open; close some.",
                TOO_MANY_RETRY_AFTER_S,
            )
        listener = Listener(page, caller, client, prefix)
        self._listeners.add(listener)
        self._listener_added.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return listener

    def remove(self, listener: Listener) -> None:
        """Forget a listener whose client disconnected."""
        self._listeners.discard(listener)

    def end(self) -> None:
        """End all streams and accept no more."""
        self._ended = True
        for listener in self._listeners:
            listener.end()

    async def _run(self) -> None:
        while self._listeners:
            started = time.monotonic()
            self._listener_added.clear()
            listeners_by_page: defaultdict[tuple[str, Role], list[Listener]] = defaultdict(list)
            for listener in self._listeners:
                if self._has_token(listener):
                    listeners_by_page[listener.page, listener.caller.role].append(listener)
                else:
                    listener.end()
            for (page, _), listeners in listeners_by_page.items():
                parts = await self._parts(page, listeners[0].caller)
                for listener in listeners:
                    listener.update(parts)
            pause = max(RENDER_INTERVAL_S, (time.monotonic() - started) * PAUSE_PER_RENDER)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(MAX_RENDER_INTERVAL_S, pause)):
                    await self._listener_added.wait()

    def _has_token(self, listener: Listener) -> bool:
        """Whether the token that opened the page is still valid, and its role the same."""
        if not self._tokens.required:
            return True
        token = self._tokens.find(listener.caller.token_id)
        return token is not None and token.role is listener.caller.role

    async def _parts(self, page: str, caller: Caller) -> Parts:
        path, _, query = page.partition("?")
        try:
            return {**await self._render(path, query, caller), ERROR_PART: ""}
        except Exception as error:  # a page that cannot be rendered must not stop the others
            return {ERROR_PART: problem_of(error, path).detail}
