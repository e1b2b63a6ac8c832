"""Enqueues plain jobs from the event loop itself, on a connection of its own, where the store allows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from workerd.config.model import Config
from workerd.document_types import Document, Enqueued
from workerd.errors import CommitUnknown, StoreError
from workerd.job_spec import NewJob
from workerd.operations.access import Store, Tx
from workerd.operations.enqueue import KnownHandlers
from workerd.operations.posting import PostedJobs, redactions
from workerd.operations.rules import HandlerRules

if TYPE_CHECKING:
    from workerd.operations.posting import Posting

T = TypeVar("T")


class PostedEnqueue:
    """One batch at a time, in turns with transactions of a thread on the same connection.

    A thread checks what is cached, and the server, about once a second; in between nothing waits for one.
    CPU time of `POST /jobs` on one connection: 0.66 → 0.51 ms, as a thread is woken by locks and a pipe, and
    competes with the loop for the interpreter; 25 system calls in place of 49.
    """

    def __init__(
        self, open_store: Callable[[], Store], config: Config, known: KnownHandlers, rules: HandlerRules
    ) -> None:
        self._open_store = open_store
        self._config = config
        self._known = known
        self._rules = rules
        self._store: Store | None = None
        self._posting: Posting | None = None

    def run(self, work: Callable[[Tx], T]) -> T:
        """Run `work` in one transaction, in a thread. Raises as Store.run."""
        self.refresh()
        if self._store is None:
            self._store = self._open_store()
        result = self._store.run(work)
        with suppress(StoreError):
            self._posting = self._store.posting()
        return result

    def refresh(self) -> None:
        """Leave a server that was not asked of late and may not be written; in a thread."""
        self._end_posting()
        if self._store is not None:
            self._store.refresh()

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[tuple[Enqueued, Document]] | None:
        """Enqueue all of them without a thread; None if nothing was done: `run` must do it.

        Raises CommitUnknown with the ids of all.
        """
        redacted = redactions(jobs, self._known, self._rules, self._config)
        if self._posting is None or redacted is None:
            return None
        try:
            return await _answer(PostedJobs(self._posting, jobs, redacted))
        except StoreError as error:
            self._end_posting()
            if isinstance(error, CommitUnknown):
                raise
            return None

    def _end_posting(self) -> None:
        posting, self._posting = self._posting, None
        if posting is not None:
            posting.end()


async def _answer(sent: PostedJobs) -> list[tuple[Enqueued, Document]]:
    """What became of them. Raises StoreError."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[tuple[Enqueued, Document]]] = loop.create_future()

    def advance(receive: Callable[[], list[tuple[Enqueued, Document]] | None]) -> None:
        if answer.done():
            return
        try:
            received = receive()
        except StoreError as error:
            answer.set_exception(error)
        else:
            if received is not None:
                answer.set_result(received)

    loop.add_reader(sent.fileno, advance, sent.receive)
    timer = loop.call_later(sent.limit_s, advance, sent.give_up)
    try:
        return await answer
    finally:
        timer.cancel()
        loop.remove_reader(sent.fileno)
