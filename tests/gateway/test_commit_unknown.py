"""A COMMIT without an answer: what may have been done is said so, with its ids, and can be sent again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway_state import ask, gateway_state
from tests.support.servers import DatabaseServer
from tests.support.silent_commit import SilentCommit
from workerd.client import Client
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config, GatewayConfig, NodeConfig, StoreConfig
from workerd.config.workflow_config import WorkflowConfig, WorkflowJob
from workerd.errors import CommitUnknown
from workerd.gateway.state import GatewayState
from workerd.job_spec import JobSpec
from workerd.operations.enqueue import KnownHandlers
from workerd.store.engines import open_store

TIMEOUT_S = 2.0
HANDLER = HandlerConfig(name="noop", call="x:y", pool="noop")
JOB = {"handler": "noop"}
POSTS: dict[str, dict[str, Any]] = {
    "/jobs": JOB,
    "/jobs/bulk": {"jobs": [JOB, JOB]},
    "/requests": {"workflow": "one"},
}


@pytest.fixture
def line(mysql_server: DatabaseServer) -> Iterator[SilentCommit]:
    """The line to a migrated database."""
    if not mysql_server.private:
        pytest.skip("another's server need not listen here")
    name = mysql_server.new_database()
    store = open_store(StoreConfig(url=mysql_server.url(name)))
    store.migrate()
    store.close()
    line = SilentCommit(mysql_server.url(name, tcp=True))
    yield line
    line.close()
    mysql_server.drop_database(name)


@pytest.fixture
def config(line: SilentCommit, tmp_path: Path) -> Config:
    workflow = WorkflowConfig(name="one", jobs=(WorkflowJob(name="a", handler="noop", step=0),))
    return Config(
        node=NodeConfig(runtime_dir=tmp_path / "run", state_dir=tmp_path),
        store=StoreConfig(url=line.url),
        gateway=GatewayConfig(listen="unix:/unused"),
        pools={"noop": PoolConfig(name="noop", handlers=(HANDLER,))},
        workflows={"one": workflow},
    )


def post(gateway: GatewayState, path: str, **headers: str) -> httpx.Response:
    return ask(gateway, path, POSTS[path], **headers)


def ids_of(answer: httpx.Response) -> list[str]:
    """The ids that an accepted POST names."""
    document = answer.json()
    return [item["id"] for item in document["items"]] if "items" in document else [document["id"]]


@pytest.fixture(params=["cached", "asked"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the handlers are known, so that a plain job is posted, or a transaction asks for them first."""
    if request.param == "asked":
        monkeypatch.setattr(KnownHandlers, "TTL_S", 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "k"}], ids=["plain", "keyed"])
def test_a_post_says_that_it_may_have_been_done(
    config: Config, line: SilentCommit, path: str, key: dict[str, str]
) -> None:
    """503 with `unknown` and the ids, which exist here; with a key, a repeat answers the same ones."""
    gateway = gateway_state(config, TIMEOUT_S)
    assert post(gateway, path, **{name: "first" for name in key}).status_code == 201
    line.armed = True
    answer = post(gateway, path, **key)
    line.armed = False
    assert answer.status_code == 503
    problem = answer.json()
    assert problem["unknown"] is True
    assert "may have been made" in problem["detail"]
    assert "nothing was changed" not in problem["detail"]
    assert int(answer.headers["retry-after"]) > 0
    kind = "requests" if path == "/requests" else "jobs"
    for ident in problem["ids"]:
        assert ask(gateway, f"/{kind}/{ident}").status_code == 200
    again = post(gateway, path, **key)
    assert again.status_code == (200 if key else 201)
    assert (ids_of(again) == problem["ids"]) == bool(key)


@pytest.mark.slow
def test_the_client_says_that_it_may_have_been_done(config: Config, line: SilentCommit) -> None:
    """By ids that can be looked up, and sent again."""
    with Client(config, timeout=TIMEOUT_S) as client:
        for call in (
            lambda: client.enqueue_many([JobSpec(handler="noop"), JobSpec(handler="noop")]),
            lambda: client.enqueue("noop", id="01900000-0000-7000-8000-00000000000a"),
            lambda: client.submit("one"),
        ):
            line.armed = False
            client.enqueue("noop")  # opens the connection
            line.armed = True
            with pytest.raises(CommitUnknown) as caught:
                call()
            assert caught.value.ids
        line.armed = False
        assert not client.enqueue("noop", id="01900000-0000-7000-8000-00000000000a").created
