"""Logs of running jobs, asked of the pools of this node."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from workerd.errors import InvalidValue
from workerd.job import parse_id
from workerd.messages import LogText, ReadLog
from workerd.runtime.control import Reply
from workerd.runtime.loop import Loop
from workerd.supervisor.supervised_child import SupervisedChild

TIMEOUT_S = 1.0
"""A pool that has not answered by then counts as one that does not run the job."""


class LiveLogs:
    """Asks all pools at once; the one that runs the attempt, or ended it last, answers with its log."""

    def __init__(self, loop: Loop, pools: Callable[[], Iterable[SupervisedChild]]) -> None:
        self._loop = loop
        self._pools = pools
        self._tokens = itertools.count(1)
        self._open: dict[int, tuple[set[str], Reply]] = {}

    def ask(self, question: dict[str, Any], reply: Reply) -> None:
        """`job`: its id; `attempt`: 0 for the one that runs; `start`: bytes that are known already."""
        try:
            job_id = parse_id(question.get("job", ""))
            attempt, start = int(question.get("attempt", 0)), int(question.get("start", 0))
        except (InvalidValue, TypeError, ValueError) as error:
            reply({"error": str(error)})
            return
        pools = [pool for pool in self._pools() if pool.alive]
        token = next(self._tokens)
        self._open[token] = {pool.name for pool in pools}, reply
        for pool in pools:
            pool.send(ReadLog(token=token, job=job_id, attempt=attempt, start=start))
        self._loop.call_later(TIMEOUT_S, lambda: self._finish(token, {"found": False}))
        if not pools:
            self._finish(token, {"found": False})

    def on_log(self, pool: SupervisedChild, message: LogText) -> None:
        """A pool answers."""
        if message.found:
            self._finish(
                message.token,
                {
                    "found": True, "attempt": message.attempt, "text": message.text, "until": message.until,
                    "skipped": message.skipped, "ended": message.ended,
                },
            )  # fmt: skip
            return
        missing, _ = self._open.get(message.token, (set(), None))
        missing.discard(pool.name)
        if not missing:
            self._finish(message.token, {"found": False})

    def _finish(self, token: int, answer: dict[str, Any]) -> None:
        _, reply = self._open.pop(token, (set(), None))
        if reply is not None:
            reply(answer)
