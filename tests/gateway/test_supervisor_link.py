"""Questions to a supervisor that does not answer: each of them costs a timeout, so that few are asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workerd.config.model import NodeConfig
from workerd.gateway.history import totals_of
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.supervisor_link import MAX_QUESTIONS, SupervisorLink
from workerd.job import AttemptRef
from workerd.metrics import families
from workerd.metrics.exposition import from_series
from workerd.runtime.paths import Paths

REF = AttemptRef(bytes(16), 1)
_LENGTH = struct.Struct("!i")


class Supervisor:
    """Listens where the supervisor does; `silent`: questions that it leaves without an answer."""

    def __init__(self, path: Path, silent: set[str]) -> None:
        self.answer: dict[str, Any] = {"state": "ready", "found": True, "series": []}
        path.parent.mkdir(parents=True)
        self.asked: list[str] = []
        self._silent = silent
        self._open: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(100)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._socket.accept()[0]
                question = json.loads(client.recv(65536)[4:])["ask"]
                self.asked.append(question)
                self._open.append(client)
                if question not in self._silent:
                    body = json.dumps(self.answer).encode()
                    client.sendall(_LENGTH.pack(len(body)) + body)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for one in (self._socket, *self._open):
            one.close()


Ask = Callable[..., Any]


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[..., tuple[Supervisor, SupervisorLink]]]:
    """A supervisor that leaves some questions without an answer, and the link to it."""
    opened: list[Any] = []

    def start(*silent: str) -> tuple[Supervisor, SupervisorLink]:
        node = NodeConfig(runtime_dir=tmp_path / "run")
        opened[:] = [Supervisor(Paths(node).supervisor, set(silent)), SupervisorLink(node)]
        return opened[0], opened[1]

    yield start
    for one in reversed(opened):
        one.close()


def test_status_does_not_wait_behind_other_questions(listening: Ask) -> None:
    """It is answered while nobody answers those."""
    _, link = listening("log")

    async def ask() -> tuple[dict[str, Any], bool]:
        log = asyncio.create_task(link.live_log(REF))
        while not link._thread.waiting:
            await asyncio.sleep(0)
        status = await link.status()
        done = log.done()
        await log
        return status, done

    status, log_is_answered = asyncio.run(ask())
    assert status["state"] == "ready"
    assert not log_is_answered


def test_after_a_silence_those_that_wait_are_not_asked(listening: Ask) -> None:
    """One timeout, not one for each of them."""
    supervisor, link = listening("log", "metrics")

    async def ask() -> list[Any]:
        return await asyncio.gather(link.counted(), *(link.live_log(REF) for _ in range(MAX_QUESTIONS - 1)))

    assert asyncio.run(ask()) == [None] * MAX_QUESTIONS
    assert supervisor.asked == ["metrics"]


def test_more_questions_than_may_wait_are_refused(listening: Ask) -> None:
    """With 503; metrics are then missing."""
    _, link = listening("log")

    async def ask() -> tuple[list[Any], Any]:
        many = asyncio.gather(*(link.live_log(REF) for _ in range(MAX_QUESTIONS + 3)), return_exceptions=True)
        while link._thread.waiting < MAX_QUESTIONS:
            await asyncio.sleep(0)
        counted = await link.counted()
        return await many, counted

    answers, counted = asyncio.run(ask())
    refused = [answer for answer in answers if isinstance(answer, HTTPProblem)]
    assert [problem.status for problem in refused] == [503] * 3
    assert counted is None


def test_a_supervisor_that_answers_is_asked(listening: Ask) -> None:
    """Each time."""
    supervisor, link = listening()

    async def ask() -> list[Any]:
        return [await link.live_log(REF), await link.counted(), await link.live_log(REF)]

    log, counted, again = asyncio.run(ask())
    assert (log["found"], counted, again["found"]) == (True, [], True)
    assert supervisor.asked == ["log", "metrics", "log"]


BUCKETS = [1] * (len(families.SECONDS) + 1)
OWN: list[list[Any]] = [
    ["workerd_run_seconds", ["a", "true"], [1.0, *BUCKETS]],
    ["workerd_attempts_total", ["a", "ok", "true"], [3]],
]


@pytest.mark.parametrize(
    "answer",
    [
        {"error": 'expected {"ask": …}'},
        {"series": 7},
        {"series": [*OWN, ["workerd_run_seconds", ["a", "true"], [1.0, *BUCKETS, 1]]]},
        {"series": [*OWN, ["workerd_run_seconds", ["b", "true"], [1.0]]]},
        {"series": [*OWN, ["workerd_run_seconds", ["b"], [1.0, *BUCKETS]]]},
        {"series": [*OWN, ["workerd_attempts_total", ["a", "ok", "true"], []]]},
        {"series": [*OWN, ["workerd_new_total", ["a"], [1.0]]]},
    ],
)
def test_what_another_version_counts_differently_is_left_out(listening: Ask, answer: dict[str, Any]) -> None:
    """While its daemon ends beside this one: families, labels and bounds that this one does not have."""
    supervisor, link = listening()
    supervisor.answer = answer
    counted = asyncio.run(link.counted()) or []
    known = OWN if isinstance(answer.get("series"), list) else []
    assert [[name, list(labels), list(numbers)] for name, labels, numbers in counted] == known
    assert len(from_series(counted)) == len(known)
    assert totals_of(counted).succeeded == (3 if known else 0)
