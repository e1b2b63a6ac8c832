"""Errors as clients see them: their own mistakes are 4xx, an unavailable store 503, our bugs 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway_state import ask, gateway_state
from workerd import log
from workerd.config.model import Config, GatewayConfig, LogConfig, NodeConfig, StoreConfig
from workerd.errors import (
    CommitUnknown,
    Conflict,
    HandlerNotFound,
    InvalidValue,
    NotFound,
    StoreAway,
    StoreRefused,
    TooManyWaiting,
    WrongVersion,
)
from workerd.gateway.backend import Backend
from workerd.gateway.events import ERROR_PART
from workerd.gateway.problems import problem_of
from workerd.gateway.roles import EVERYBODY
from workerd.gateway.state import GatewayState
from workerd.store.engines import open_store

JOB = "01900000-0000-7000-8000-000000000000"


@pytest.fixture
def gateway(tmp_path: Path) -> GatewayState:
    """The state of a gateway in this process, over an empty store."""
    config = Config(
        node=NodeConfig(runtime_dir=str(tmp_path / "run"), state_dir=str(tmp_path)),
        store=StoreConfig(url=f"sqlite:///{tmp_path}/store.db"),
        gateway=GatewayConfig(listen="unix:/unused"),
    )
    store = open_store(config.store)
    store.migrate()
    store.close()
    return gateway_state(config)


def logged(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, gateway: GatewayState) -> Callable[[Exception], None]:
    """Makes each transaction of the gateway raise an error."""

    def break_(error: Exception) -> None:
        async def fail(self: Backend, work: object) -> None:
            raise type(error)(*error.args)

        monkeypatch.setattr(Backend, "read", fail)

    log.configure(LogConfig(format="json"))
    return break_


def test_a_bug_is_500_with_an_incident(
    gateway: GatewayState, broken: Callable[[Exception], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """A bare ValueError is a bug: 500 with an incident id, whose traceback is in the log and not answered."""
    broken(ValueError("secret of ours"))
    answer = ask(gateway, f"/jobs/{JOB}")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["incident"] in problem["detail"]
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    (event,) = [event for event in logged(capfd) if event["event"] == "route.crashed"]
    assert event["incident"] == problem["incident"]
    assert event["path"] == f"/jobs/{JOB}"
    assert "ValueError: secret of ours" in event["exception"]


def test_each_incident_is_in_the_log(
    gateway: GatewayState, broken: Callable[[Exception], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Also of a burst, of which the log drops repetitions: equal bugs share an id, others have their own."""
    answered = set()
    for text in ("first", "second"):
        broken(ValueError(text))
        answered |= {ask(gateway, f"/jobs/{JOB}").json()["incident"] for _ in range(20)}
    assert len(answered) == 2
    events = [event for event in logged(capfd) if event["event"] == "route.crashed"]
    assert {event["incident"] for event in events} == answered
    assert len(events) < 40


def test_a_bug_in_a_page(
    gateway: GatewayState, broken: Callable[[Exception], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """A page with a bug is an error page with the incident id; its updates show the same."""
    broken(KeyError("secret of ours"))
    answer = ask(gateway, "/ui/jobs")
    assert answer.status_code == 500
    assert answer.headers["content-type"].startswith("text/html")
    (event,) = [event for event in logged(capfd) if event["event"] == "route.crashed"]
    assert event["incident"] in answer.text
    assert "secret" not in answer.text

    async def first_update() -> dict[str, str]:
        listener = gateway.events.add("/ui/jobs", EVERYBODY, "local", "")
        await listener.changed.wait()
        gateway.events.remove(listener)
        return listener.take()

    assert "incident" in asyncio.run(first_update())[ERROR_PART]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidValue("x"), 422), (HandlerNotFound("x"), 422), (StoreRefused("x"), 422), (NotFound("x"), 404),
        (Conflict("x"), 409), (TooManyWaiting("x"), 429), (StoreAway("x"), 503), (WrongVersion("x"), 503),
        (CommitUnknown("x"), 503), (ValueError("x"), 500), (RuntimeError("x"), 500),
    ],
)  # fmt: skip
def test_statuses(error: Exception, status: int) -> None:
    """Each error has one status; retryable ones carry Retry-After."""
    problem = problem_of(error, "/")
    assert problem.status == status
    assert ("Retry-After" in problem.headers) == (status in (429, 503))


def test_a_commit_without_an_answer() -> None:
    """An error does not claim that nothing changed when that is unknown."""
    assert "nothing was changed" in problem_of(StoreAway("x"), "/").detail
    unknown = problem_of(CommitUnknown("x", ids=("a", "b")), "/")
    assert "may have been made" in unknown.detail
    assert unknown.members == {"unknown": True, "ids": ["a", "b"]}
