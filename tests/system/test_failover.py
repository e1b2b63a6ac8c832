"""A planned switchover with sessions kept: work goes on elsewhere, and nobody stays on the old primary."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from tests.support.gateway import Api
from tests.support.replication import ReplicatedPair
from tests.support.rows import Rows, assert_settled
from tests.support.servers import FAST, DatabaseServer, Flavour
from workerd import Client
from workerd.errors import HandlerNotFound, StoreError

CONFIG = f"""
[dispatcher]
lease = "3s"
poll = "100ms"
[defaults]
path = ["{ROOT}"]
[handlers.noop]
call = "tests.support.handlers:noop"
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
max_attempts = 1
"""


class FailoverHarness:
    """A daemon, its HTTP interface and a client on a store of two hosts."""

    def __init__(self, folder: Path, pair: ReplicatedPair) -> None:
        self.pair = pair
        self.folder = folder
        self.api = Api(folder / "node", pair.url(), CONFIG)
        self.client = Client(pair.url(), timeout=3)

    def enqueue_by_client(self) -> uuid.UUID | None:
        """Enqueue as a program does that retries."""
        with suppress(StoreError, HandlerNotFound):
            return uuid.UUID(self.client.enqueue("noop").id)
        return None

    def enqueue_by_http(self) -> uuid.UUID | None:
        """Enqueue as a service does that retries."""
        answer = self.api.post("/jobs", {"handler": "noop"})
        return uuid.UUID(answer.json()["id"]) if answer.status_code == 201 else None

    def roles(self) -> dict[str, str]:
        """What `workerd check --store` says of each host."""
        done = self.api.daemon.cli("check", "--store", "--json", check=False)
        return {server["host"]: server["role"] for server in json.loads(done.stdout)["store"]}


@pytest.fixture(params=[False, True], ids=["plain user", "privileged user"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FailoverHarness]:
    """A node on a primary and its replica."""
    if Flavour().oracle:
        pytest.skip("the statements that promote a replica are MariaDB's")
    pair = ReplicatedPair(privileged=request.param)
    try:
        harness = FailoverHarness(tmp_path, pair.start())
        with harness.api:
            yield harness
            harness.client.close()
            harness.api.daemon.stop()
    finally:
        pair.remove()


@pytest.mark.slow
def test_work_goes_on_on_the_promoted_server(harness: FailoverHarness) -> None:
    """The user may or may not write on read-only servers; gateway and client hold idle connections."""
    pair, api, rows = harness.pair, harness.api, Rows(harness.pair.url(harness.pair.replica))
    first = [eventually(harness.enqueue_by_client), harness.enqueue_by_http()]
    waits = uuid.UUID(api.enqueue("waits", {"path": str(harness.folder / "go")}))
    eventually(lambda: api.daemon.runs(waits.bytes), state=api.daemon.tail)
    eventually(lambda: all(job and harness.client.get(job).complete for job in first))
    primary, replica = (f"127.0.0.1:{server.port}" for server in (pair.primary, pair.replica))
    assert harness.roles() == {primary: "writable", replica: "read-only"}
    pair.promote()
    eventually(lambda: pair.sessions(pair.primary) == 1, state=api.daemon.tail)  # the client's, unused
    found = eventually(harness.enqueue_by_client)
    eventually(lambda: pair.sessions(pair.primary) == 0)
    eventually(lambda: api.get("/ready").status_code == 200, state=api.daemon.tail)
    later = [found, eventually(harness.enqueue_by_http)]
    (harness.folder / "go").touch()
    eventually(lambda: rows.ended(*(job.bytes for job in (waits, *later))), state=api.daemon.tail)
    assert rows.last(waits.bytes)["reason"] == "ok"
    assert api.get(f"/jobs/{later[0]}").json()["complete"]
    assert pair.sessions(pair.primary) == 0
    assert harness.roles() == {primary: "read-only", replica: "writable"}
    assert f"up on {replica} (" in api.daemon.cli("status").stdout
    changes = [json.loads(line) for line in api.daemon.logged().splitlines() if "server_changed" in line]
    assert {change["process"] for change in changes} == {"dispatcher", "ingester"}
    for change in changes:
        assert change["previous"].startswith(f"{primary} (")
        assert change["server"].startswith(f"{replica} (")
    eventually(lambda: not rows.sql("SELECT id FROM workerd_jobs WHERE status IN ('new', 'inprogress')"))
    assert api.daemon.stop() == 0
    assert_settled(rows)


@pytest.mark.slow
def test_a_server_whose_commit_hangs_is_named(tmp_path: Path) -> None:
    """Semi-synchronous replication without a replica: only COMMIT waits, as without a majority."""
    if Flavour().oracle:
        pytest.skip("MariaDB has semi-synchronous replication built in")
    server = DatabaseServer((*FAST, "--server-id=1", "--log-bin=binlog", "--binlog-format=ROW"))
    try:
        url = server.start().url(server.new_database(), tcp=True)
        with Api(tmp_path / "node", url, CONFIG) as api:
            api.ended(api.enqueue("noop"))
            server.sql("SET GLOBAL rpl_semi_sync_master_timeout = 4000000")
            server.sql("SET GLOBAL rpl_semi_sync_master_enabled = ON")
            words = "reads answer, COMMIT does not: has the cluster lost its majority?"
            eventually(lambda: words in api.daemon.status()["store"]["error"], state=api.daemon.tail)
            eventually(lambda: words in api.daemon.logged(), state=api.daemon.tail)
            eventually(lambda: words in api.get("/ready").text, state=api.daemon.tail)
            assert "does not answer" not in api.get("/ready").text
            server.sql("SET GLOBAL rpl_semi_sync_master_enabled = OFF")
            eventually(lambda: api.get("/ready").status_code == 200, state=api.daemon.tail)
            api.ended(api.enqueue("noop"))
            rows = Rows(url)
            assert api.daemon.stop() == 0
            assert_settled(rows)
    finally:
        server.remove()


@pytest.mark.slow
def test_a_schema_that_is_read_only_for_a_while(tmp_path: Path, own_server: DatabaseServer) -> None:
    """MySQL's ALTER SCHEMA … READ ONLY: good outcomes wait, and none is refused or runs again."""
    if not Flavour().oracle:
        pytest.skip("only MySQL has read-only schemas")
    name = own_server.new_database()
    with Api(tmp_path / "node", own_server.url(name, tcp=True), CONFIG) as api:
        jobs = [api.enqueue("waits", {"path": str(tmp_path / "go")}) for _ in range(3)]
        eventually(lambda: api.daemon.runs(uuid.UUID(jobs[0]).bytes), state=api.daemon.tail)
        own_server.sql(f"ALTER SCHEMA {name} READ ONLY = 1")
        (tmp_path / "go").touch()
        eventually(lambda: api.daemon.status()["store"]["state"] == "away", state=api.daemon.tail)
        assert "read only" in api.daemon.status()["store"]["error"].lower()
        own_server.sql(f"ALTER SCHEMA {name} READ ONLY = 0")
        assert [api.ended(job)["reason"] for job in jobs] == ["ok", "ok", "ok"]
        assert api.daemon.status()["roles"]["ingester"]["set_aside"] == 0
