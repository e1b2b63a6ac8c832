"""The client against a real daemon, on both engines."""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows
from tests.support.servers import DatabaseServer
from workerd.client import Client
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config, NodeConfig, StoreConfig
from workerd.document_types import Changed
from workerd.errors import (
    Conflict,
    HandlerNotFound,
    InvalidValue,
    NotFound,
    StoreAway,
    TooManyWaiting,
    WrongVersion,
)
from workerd.job_spec import JobSpec
from workerd.messages import Inserting
from workerd.runtime import wake_ups
from workerd.runtime.child import fork
from workerd.runtime.paths import Paths
from workerd.runtime.sockets import bind_datagram
from workerd.runtime.wake_ups import MAX_DATAGRAM_BYTES, new_row, new_rows
from workerd.store import servers
from workerd.store.engines import open_store

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
max_attempts = 1

[handlers.add]
call = "tests.support.handlers:add"

[handlers.echo]
call = "tests.support.handlers:echo"

[handlers.behave]
call = "tests.support.handlers:behave"

[handlers.says]
command = ["/bin/sh", "-c", "echo $0 >&2; exit 4", "{{word}}"]
signature = {{ word = "str" }}
fail_codes = [4]

[handlers.waits]
call = "tests.support.handlers:wait_for_file"
grace = "200ms"

[handlers.held]
call = "tests.support.handlers:noop"
max_waiting = 3

[workflows.two]
steps = [{{ name = "first", jobs = ["echo"] }}, {{ name = "second", jobs = ["echo"] }}]
"""


@pytest.fixture(scope="module", params=["mysql", "sqlite"])
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon on each engine for the whole module."""
    folder = tmp_path_factory.mktemp(request.param)
    url = f"sqlite:///{folder}/store.db"
    if request.param == "mysql":
        server: DatabaseServer = request.getfixturevalue("mysql_server")
        url = server.url(server.new_database())
    store = open_store(StoreConfig(url=url))
    store.migrate()
    store.close()
    with Daemon(folder / "node", url, CONFIG) as daemon:
        eventually(lambda: all(h in daemon.cli("handlers").stdout for h in ("a: int", "path: str")))
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.path) as client:
        yield client


def test_enqueue_wait_and_get_a_job(client: Client) -> None:
    """The returned JSON is decoded in `result`."""
    done = client.enqueue("add", {"a": 40, "b": 2}, meta={"tenant": 7})
    assert done.created
    job = client.wait(done.id, timeout=20)
    assert (job.status, job.complete, job.success, job.result) == ("completed", True, True, 42)
    assert job.meta == {"tenant": 7}
    assert [attempt.reason for attempt in job.attempts] == ["ok"]
    assert job.created_at is not None
    assert job.created_at.tzinfo is not None
    assert client.get(uuid.UUID(done.id)) == job


def test_a_bytes_payload_is_returned_as_bytes(client: Client) -> None:
    """`payload` holds JSON only."""
    job = client.wait(client.enqueue("behave", {"kind": "payload"}).id, timeout=20)
    assert isinstance(job.result, bytes)
    assert job.payload is None


def test_enqueue_many_inserts_all_or_none(client: Client, daemon: Daemon) -> None:
    """Results keep the order of the specs; one wrong spec rejects all."""
    specs = [JobSpec(handler="add", vars={"a": n}) for n in range(1000)]
    done = client.enqueue_many(specs)
    assert len({one.id for one in done}) == 1000
    eventually(lambda: client.get(done[-1].id).complete and client.get(done[500].id).complete)
    assert client.get(done[500].id).result == 501
    before = Rows(daemon.url).sql("SELECT COUNT(*) AS n FROM workerd_jobs")
    with pytest.raises(HandlerNotFound, match="known are: add, behave"):
        client.enqueue_many([*specs[:5], JobSpec(handler="none")])
    assert Rows(daemon.url).sql("SELECT COUNT(*) AS n FROM workerd_jobs") == before
    assert client.enqueue_many([]) == []


def test_a_job_with_run_at_or_delay_is_scheduled(client: Client) -> None:
    """`retry` makes it due now."""
    moment = datetime.now(UTC) + timedelta(hours=1)
    at = client.get(client.enqueue("add", {"a": 1}, run_at=moment).id)
    assert (at.status, at.run_at) == ("scheduled", moment)
    later = client.enqueue("add", {"a": 1}, delay="1h")
    assert client.get(later.id).status == "scheduled"
    client.retry(later.id)
    assert client.wait(later.id, timeout=20).result == 2


def test_enqueue_is_idempotent_by_unique_key_and_id(client: Client) -> None:
    """The live job's id is returned, and nothing is inserted."""
    first = client.enqueue("echo", unique_key="k", delay="1h")
    assert client.enqueue("echo", unique_key="k") == type(first)(first.id, False)
    mine = uuid.uuid4()
    assert client.enqueue("add", {"a": 1}, id=mine).created
    assert not client.enqueue("add", {"a": 1}, id=mine).created
    both = client.enqueue_many([JobSpec(handler="echo", unique_key="x", delay=60)] * 2)
    assert [one.created for one in both].count(True) >= 1
    assert both[0].id == both[1].id


def test_vars_that_do_not_fit_the_signature_are_rejected_at_enqueue(client: Client) -> None:
    """The error names the field."""
    with pytest.raises(ValueError, match=r"vars\.a"):
        client.enqueue("add", {"a": "one"})
    with pytest.raises(ValueError, match=r"vars\.c"):
        client.enqueue("add", {"a": 1, "c": 2})


def test_jobs_are_checked_against_the_cached_handlers(client: Client) -> None:
    """The known handlers are not queried for each job, and wrong ones are still rejected."""
    ids = [client.enqueue("add", {"a": n}, priority=1).id for n in range(20)]
    assert len(set(ids)) == 20
    with pytest.raises(ValueError, match=r"vars\.a"):
        client.enqueue("add", {"a": "one"})
    with pytest.raises(HandlerNotFound):
        client.enqueue("none")
    assert [client.wait(one, timeout=20).result for one in ids] == list(range(1, 21))


def test_max_waiting_rejects_and_a_pause_holds_jobs(client: Client, daemon: Daemon) -> None:
    """`resume` lets the waiting jobs run, and returns whether the handler was paused."""
    client.pause("held", "testing")
    done = client.enqueue_many([JobSpec(handler="held")] * 3)
    with pytest.raises(TooManyWaiting):
        client.enqueue("held")
    assert {client.get(one.id).status for one in done} == {"new"}
    assert client.resume("held")
    assert not client.resume("held")
    assert all(client.wait(one.id, timeout=20).status == "completed" for one in done)
    with pytest.raises(HandlerNotFound):
        client.pause("none")


def test_cancel_and_retry_a_job(client: Client, tmp_path: Path) -> None:
    """A waiting job ends at once, a running one is asked to stop, an ended one conflicts."""
    waiting = client.enqueue("echo", delay=3600).id
    assert client.cancel(waiting)
    with pytest.raises(Conflict):
        client.cancel(waiting)
    running = client.enqueue("waits", {"path": f"{tmp_path}/never"}).id
    eventually(lambda: client.get(running).status == "inprogress")
    assert not client.cancel(running)
    assert client.wait(running, timeout=20).status == "cancelled"
    (tmp_path / "never").touch()
    assert client.retry(running) == 2
    assert client.wait(running, timeout=20).result == "seen"
    for call in (client.get, client.cancel, client.retry, client.wait):
        with pytest.raises(NotFound):
            call(uuid.uuid4())


def test_cancel_and_retry_many_jobs(client: Client) -> None:
    """Those that a filter means are counted, and changed as far as a limit lets."""
    made = [client.enqueue("echo", delay=3600, group="bulk", meta={"n": n}).id for n in range(4)]
    assert client.cancel_many(group="bulk", dry_run=True) == Changed(4, 0)
    assert client.cancel_many(group="bulk", limit=1) == Changed(4, 1)
    now = datetime.now(UTC)
    assert client.cancel_many(group="bulk", meta={"n": "0"}, since=now - timedelta(hours=1)) == Changed(1, 1)
    assert client.cancel_many(group="bulk", status="scheduled", until=now + timedelta(1)) == Changed(2, 2)
    assert client.retry_many(group="bulk") == Changed(0, 0)  # none has failed
    assert client.retry_many(group="bulk", status="cancelled", fresh=True) == Changed(4, 4)
    assert {client.wait(job, timeout=20).status for job in made} == {"completed"}
    assert client.retry_many(error="0123456789abcdef", request=uuid.uuid4()) == Changed(0, 0)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "at least one"), ({"status": "over"}, "status: "), ({"error": "x"}, "error: "),
        ({"request": "x"}, "request: "), ({"since": datetime.now()}, "since: "),
        ({"reason": "x"}, "reason: "), ({"group": "bulk", "limit": 0}, "limit: "),
    ]  # fmt: skip
    for given, words in wrong:
        with pytest.raises(InvalidValue, match=words):
            client.retry_many(**given)


def test_wait_times_out(client: Client) -> None:
    """The job itself is not affected."""
    job_id = client.enqueue("echo", delay=3600).id
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        client.wait(job_id, timeout=0.2)
    assert time.monotonic() - began >= 0.2
    client.cancel(job_id)


def test_a_workflow_name_that_ends_in_a_space_is_rejected(store_url: str, store: Any) -> None:
    """Also by a client that has no configuration."""
    with Client(store_url) as client, pytest.raises(InvalidValue, match=r"workflow: .*no space at its end"):
        client.submit("one ")


def test_submit_wait_and_cancel_a_request(client: Client) -> None:
    """The request is returned with its jobs."""
    done = client.submit("two", {"user": 7})
    request = client.wait_request(done.id, timeout=20)
    assert (request.status, request.params) == ("completed", {"user": 7})
    assert [job.handler for job in request.jobs] == ["echo", "echo"]
    assert not client.submit("two", {"user": 7}, id=done.id).created
    with pytest.raises(Conflict):
        client.cancel_request(done.id)
    with pytest.raises(ValueError, match="known are: two"):
        client.submit("none")
    with pytest.raises(NotFound):
        client.get_request(uuid.uuid4())


def test_one_client_serves_many_threads(client: Client) -> None:
    """More threads than connections."""

    def work(number: int) -> Any:
        return client.wait(client.enqueue("add", {"a": number, "b": 0}).id, timeout=60).result

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(work, range(64))) == list(range(64))


def test_a_client_survives_a_fork(client: Client) -> None:
    """Parent and child use connections of their own."""
    job_id = client.enqueue("add", {"a": 1}).id
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, client.enqueue("add", {"a": 2}).id.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        from_child = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert client.wait(job_id, timeout=20).result == 2
    assert client.wait(from_child, timeout=20).result == 3


def test_a_client_in_a_worker_closes_no_descriptors_of_others(client: Client) -> None:
    """A worker closed its pool's connections; their numbers may belong to a handler's files by now."""
    client.enqueue("add", {"a": 1})

    def worker() -> int:
        opened = [os.open(os.devnull, os.O_RDWR) for _ in range(30)]
        client.enqueue("add", {"a": 2})
        return int(any(not os.path.samestat(os.fstat(fd), os.stat(os.devnull)) for fd in opened))

    child = fork(worker)
    eventually(lambda: child.reap() is not None)
    child.close()
    assert child.status == 0


def test_a_url_alone_is_enough(daemon: Daemon) -> None:
    """Known handlers are read from the store."""
    with Client(daemon.url) as client:
        job_id = client.enqueue("add", {"a": 1}).id
        assert client.wait(job_id, timeout=20).result == 2
        with pytest.raises(HandlerNotFound):
            client.enqueue("none")


def test_a_job_that_waits_is_found_and_changed(client: Client) -> None:
    """By filters, over pages; with arguments that do not fit nothing is changed."""
    group = uuid.uuid4().hex
    later = timedelta(hours=1)
    made = [client.enqueue("add", {"a": n}, delay=later, group=group).id for n in range(3)]
    found = client.jobs(group=group, status="scheduled")
    assert [job.id for job in found] == made[::-1]
    assert len(client.jobs(group=group, limit=2)) == 2
    moved = client.edit(made[0], vars={"b": 5}, priority=-3, group=None)
    assert (moved.vars, moved.priority, moved.group) == ({"a": 0, "b": 5}, -3, None)
    assert len(client.jobs(group=group)) == 2
    for wrong in ({"vars": {"a": "x"}}, {"vars": {"a": None}}, {"priority": 2**40}, {"run_at": "soon"}, {}):
        with pytest.raises(InvalidValue):
            client.edit(made[1], **wrong)
    assert client.get(made[1]).vars == {"a": 1}
    client.edit(made[1], vars={"b": None, "a": 7}, run_at=datetime.now(UTC))
    assert client.wait(made[1], timeout=20).result == 8
    with pytest.raises(Conflict):
        client.edit(made[1], priority=1)
    with pytest.raises(InvalidValue, match="status"):
        client.jobs(status="done")


def test_an_ended_job_is_run_again_with_other_vars(client: Client) -> None:
    """Each attempt has its log, and the audit says who did it."""
    failed = client.wait(client.enqueue("says", {"word": "one"}).id, timeout=20)
    with pytest.raises(InvalidValue, match="nothing"):
        client.retry(failed.id, vars={"nothing": 1})
    assert client.retry(failed.id, vars={"word": "two"}) == 2
    assert client.wait(failed.id, timeout=20).vars == {"word": "two"}
    assert (client.log(failed.id).strip(), client.log(failed.id, 1).strip()) == ("two", "one")
    with pytest.raises(NotFound, match="no attempt 7"):
        client.log(failed.id, 7)
    [act] = client.audit(target=failed.id)
    assert (act.action, act.via, act.detail) == ("retry", "client", {"attempt": 2, "vars": ["word"]})
    assert client.audit(actor=act.actor, target=failed.id, since=act.at) == [act]


def test_an_unreachable_store_raises_store_away() -> None:
    """Each call tries to connect again."""
    with Client("sqlite:////nonexistent/x.db", timeout=0.05, connections=1) as client:
        for _ in range(2):
            with pytest.raises(StoreAway):
                client.enqueue("add")


def test_the_dispatcher_is_told_of_which_handlers_there_are_new_rows(
    tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It need not look which of many have some; of a plain job before MySQL has answered, too."""
    monkeypatch.setattr(wake_ups, "AWAKE_S", 0.0)
    monkeypatch.setattr(servers, "shows_early", lambda *_: True)
    node = NodeConfig(runtime_dir=tmp_path)
    config = Config(
        node=node,
        store=StoreConfig(url=store_url),
        pools={"p": PoolConfig(name="p", handlers=(HandlerConfig(name="mail", call="m:f", pool="p"),))},
    )
    store = open_store(config.store)
    store.migrate()
    store.close()
    renamed = partial(dataclasses.replace, handler="mail")
    with bind_datagram(Paths(node).wake) as sock, Client(config, before_enqueue=[renamed]) as client:
        alone = client.enqueue("before the hook")
        # Its id may be that of a job which was claimed before, and waits again.
        client.enqueue("mail", unique_key="k")
        client.enqueue_many([JobSpec(handler="mail"), JobSpec(handler="mail")])
        expected = [new_row("mail", uuid.UUID(alone.id).bytes), *[new_rows(["mail"])] * 2]
        if not store_url.startswith("sqlite"):
            expected.insert(0, msgspec.msgpack.encode(Inserting(("mail",))))
        assert [sock.recv(MAX_DATAGRAM_BYTES) for _ in expected] == expected


def test_an_empty_store_raises_wrong_version(tmp_path: Path) -> None:
    """The message names the command that helps."""
    with Client(f"sqlite:///{tmp_path}/new.db") as client, pytest.raises(WrongVersion, match="migrate"):
        client.enqueue("add")


def test_a_schedule_is_set_and_removed(client: Client) -> None:
    """The document says what it will do."""
    made = client.schedule("sums", handler="add", cron="0 7 * * *", vars={"a": 1}, jitter="2m", priority=-1)
    assert (made.handler, made.vars, made.jitter, made.priority) == ("add", {"a": 1}, 120.0, -1)
    assert client.get_schedule("sums").origin == "api"
    client.remove_schedule("sums")
    with pytest.raises(NotFound):
        client.get_schedule("sums")
    with pytest.raises(InvalidValue, match="cron: "):
        client.schedule("sums", handler="add", cron="never")


@pytest.mark.parametrize("wrong", ["\ud800", object(), float("nan")], ids=["surrogate", "object", "nan"])
def test_values_that_json_cannot_represent(client: Client, wrong: object) -> None:
    """The same error by every way in, which names the place."""
    job = {"name": "a", "handler": "add", "vars": {"a": wrong}}
    other = {"name": "b", "handler": "add", "vars": {"a": 1}}
    for call in (
        lambda: client.enqueue("add", {"a": wrong}),
        lambda: client.schedule("odd", handler="add", cron="0 7 * * *", vars={"a": wrong}),
        lambda: client.batch([job]),
        lambda: client.batch([other], then=[job]),
        lambda: client.batch([job, {**other, "needs": ["a"]}]),
    ):
        with pytest.raises(InvalidValue, match=r"vars: |vars\.a: "):
            call()


def test_a_filter_that_is_no_unicode(client: Client) -> None:
    """No job has such a text, and no engine can look for it."""
    for wanted in (
        {"handler": "\ud800"},
        {"group": "\ud800"},
        {"meta": {"a": "\ud800"}},
        {"meta": {"\ud800": ""}},
    ):
        with pytest.raises(InvalidValue, match="lone surrogate"):
            client.jobs(**wanted)


def test_a_batch_runs_then_and_finally(client: Client) -> None:
    """Of JobSpecs, written in slices; `then` sees no failure, `finally_` follows."""
    specs = [JobSpec(handler="add", vars={"a": n}, priority=-1) for n in range(25)]
    then = {"name": "then", "handler": "add", "vars": {"a": 0}}
    made = client.batch(specs, then=then, finally_=[{"name": "end", "handler": "add", "vars": {"a": 0}}])
    ended = client.wait_request(made.id, timeout=30)
    assert (ended.status, ended.done, ended.failed, ended.total) == ("completed", 25, 0, 25)
    assert {"1", "25", "then", "end"} <= {job.name for job in ended.jobs}


def test_what_is_no_list_of_jobs_is_a_wrong_value(client: Client) -> None:
    """As anything else that is wrong with a graph."""
    wrong: Any = 5
    for lists in ({"then": wrong}, {"finally_": wrong}):
        with pytest.raises(InvalidValue, match="expected a list of jobs"):
            client.batch([], **lists)
    with pytest.raises(InvalidValue, match="jobs: expected a list of jobs"):
        client.batch(wrong)


def test_a_signal_is_given(client: Client) -> None:
    """Its payload is what the next job needs."""
    made = client.batch(
        [
            {"name": "ok", "signal": "ok"},
            {"name": "sum", "handler": "add", "vars": {"a": 1}, "needs": ["ok"]},
        ]
    )
    client.signal(made.id, "ok", {"by": "me"})
    with pytest.raises(Conflict):
        client.signal(made.id, "ok")
    assert client.wait_request(made.id, timeout=30).status == "completed"
