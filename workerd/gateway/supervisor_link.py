"""The gateway's questions to the supervisor, in threads: the event loop never blocks.

A supervisor that does not answer costs each question its whole timeout. So status, by which the node is
judged, has a thread of its own; the others wait in a queue with an end; and after a silence those that have
queued meanwhile are not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from workerd.config.model import NodeConfig
from workerd.gateway.problems import overloaded
from workerd.job import AttemptRef
from workerd.messages import Series
from workerd.metrics.series import SeriesSums, fitting
from workerd.operations import logs
from workerd.runtime.generations import ask_all, ask_status

T = TypeVar("T")
STATUS_MAX_AGE_S = 0.25
"""How long an answer of the supervisor is reused."""
TIMEOUT_S = 2.0
MAX_QUESTIONS = 16
"""Questions other than status that may wait for their thread; above it requests are refused with 503."""
SILENCE_S = 2.0
"""After a timeout, a thread asks nothing for this long."""


class SupervisorLink:
    """Asks the supervisor of this node, and those of the generations that end beside it."""

    def __init__(self, node: NodeConfig) -> None:
        self._node = node
        self._status_thread = _QuestionThread("status")
        self._thread = _QuestionThread("supervisor")
        self._status: dict[str, Any] = {}
        self._status_at = -STATUS_MAX_AGE_S
        self._status_lock = asyncio.Lock()

    async def status(self) -> dict[str, Any]:
        """The supervisor's status document; {} if it does not answer."""
        async with self._status_lock:
            if time.monotonic() - self._status_at > STATUS_MAX_AGE_S:
                self._status = await self._status_thread.ask(self._ask_status) or {}
                self._status_at = time.monotonic()
            return self._status

    async def live_log(self, ref: AttemptRef, start: int = 0) -> dict[str, Any] | None:
        """What a job that runs on this node logged after `start` bytes; None if it does not run here.

        Raises HTTPProblem 503 if too many wait for an answer.
        """
        if self._thread.waiting >= MAX_QUESTIONS:
            raise overloaded()
        question = logs.question(ref, start)
        answers = await self._thread.ask(lambda: self._ask_all(question)) or []
        return next((answer for answer in answers if answer.get("found")), None)

    async def counted(self) -> list[Series] | None:
        """The counters and histograms of the roles since the node started; None if there is no answer.

        With those of the generations of this daemon that end beside it, as far as they count in the same way.
        """
        if self._thread.waiting >= MAX_QUESTIONS:
            return None
        return await self._thread.ask(self._ask_counted)

    def _ask_status(self) -> dict[str, Any] | None:
        try:
            return ask_status(self._node, TIMEOUT_S)
        except OSError:
            return None

    def _ask_all(self, question: dict[str, Any]) -> list[dict[str, Any]] | None:
        return [answer for _, answer in ask_all(self._node, question, TIMEOUT_S)] or None

    def _ask_counted(self) -> list[Series] | None:
        answers = self._ask_all({"ask": "metrics"})
        if answers is None:
            return None
        sums = SeriesSums()
        for answer in answers:
            with contextlib.suppress(msgspec.ValidationError):  # of another version
                sums.add(fitting(msgspec.convert(answer.get("series"), list[Series])))
        return list(sums)

    def close(self) -> None:
        """Drop the questions that wait."""
        self._status_thread.close()
        self._thread.close()


class _QuestionThread:
    """Asks one question after the other; `waiting`: how many have not been answered."""

    def __init__(self, name: str) -> None:
        self.waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._silent_until = 0.0

    async def ask(self, question: Callable[[], T | None]) -> T | None:
        """The answer, None for none."""
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, question)
        finally:
            self.waiting -= 1

    def _ask(self, question: Callable[[], T | None]) -> T | None:
        began = time.monotonic()
        if began < self._silent_until:
            return None
        answer = question()
        now = time.monotonic()
        # A socket that nobody listens on says so at once, and may be there a moment later.
        if answer is None and now - began >= TIMEOUT_S / 2:
            self._silent_until = now + SILENCE_S
        return answer

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
