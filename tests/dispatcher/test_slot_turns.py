"""Slots of a limit that nodes share by different handlers: asked for, kept, taken, and left in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import storing
from tests.support.dispatching import insert_jobs, node_config
from tests.support.rows import Rows
from workerd import clock
from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.limit_config import LimitConfig
from workerd.dispatcher import slot_turns
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.ingester import writer
from workerd.job import Claim
from workerd.store import columns
from workerd.store.base import Store, Tx
from workerd.store.claims import MAX_BATCH_BYTES, NodeIdent
from workerd.store.limited_batch import LimitedBatch
from workerd.store.limits import RateKey
from workerd.store.nodes import NodeInfo

COUNTED = [LimitConfig(concurrency=1), LimitConfig(group_concurrency=1)]


class Node:
    """The claims of a node that has these handlers, all of one limit."""

    def __init__(self, store: Store, folder: Path, limit: LimitConfig, *handlers: str) -> None:
        self._store = store
        self._ident = NodeIdent("".join(handlers).encode().ljust(16), "-".join(handlers))
        configured = tuple(HandlerConfig(name=name, call="x:y", pool="p", limit="l") for name in handlers)
        pools = {"p": PoolConfig(name="p", handlers=configured)}
        self._limited = LimitedHandlers(
            node_config(folder, "sqlite:///none", pools=pools, limits={"l": limit})
        )
        self.info = NodeInfo(limits={"l": limit}, limit_of=dict.fromkeys(handlers, "l"))
        self.batch = LimitedBatch.empty(None)

    def meet(self, *others: Node) -> None:
        """Learn what live nodes have."""
        names = ["test", *map(str, range(len(others)))]
        infos = [node.info for node in (self, *others)]
        self._limited.agree(dict(zip(names, infos, strict=True)))

    def claim(self, *handlers: str, wanted: int = 5, idle_only: bool = False) -> list[Claim]:
        """Claim for these handlers in one transaction; `batch` is then that of the last."""

        def work(tx: Tx) -> list[LimitedBatch]:
            locked = self._limited.lock(tx, handlers)
            return [
                self._limited.claim(
                    tx, handler, locked, wanted, self._ident, None, MAX_BATCH_BYTES, idle_only=idle_only
                )
                for handler in handlers
            ]

        batches = self._store.run(work)
        for handler, batch in zip(handlers, batches, strict=True):
            self._limited.learn(handler, batch)
        self.batch = batches[-1]
        return [claim for batch in batches for claim in batch.batch.claims]

    def end(self, claim: Claim) -> None:
        outcome = storing.outcome(claim)
        self._store.run(lambda tx: writer.close(tx, [outcome], self._ident.id))


def meet(*nodes: Node) -> None:
    for node in nodes:
        node.meet(*(other for other in nodes if other is not node))


@pytest.fixture
def nodes(store: Store, tmp_path: Path, limit: LimitConfig) -> tuple[Node, Node]:
    """Two that share a limit by different handlers, a flood of one and a single job of the other."""
    first, second = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "single")
    meet(first, second)
    insert_jobs(store, "flood", 9)
    insert_jobs(store, "single", 1)
    return first, second


def kept(rows: Rows) -> list[str]:
    """The handlers for which the next slot of something is kept."""
    found = rows.sql("SELECT next_handler FROM workerd_rates WHERE next_handler IS NOT NULL")
    return [row["next_handler"] for row in found]


def hold(store: Store, scope: str, group: str) -> None:
    """Let nothing of it start for an hour."""
    key = RateKey("l", scope, group)
    sql = "INSERT INTO workerd_rates (limit_name, scope, group_key) VALUES (%s, %s, %s)"
    store.run(lambda tx: tx.execute(sql + tx.dialect.keep_existing("limit_name"), key))
    sql = "UPDATE workerd_rates SET held_until = %s WHERE limit_name = %s AND scope = %s AND group_key = %s"
    store.run(lambda tx: tx.execute(sql, (clock.to_text(tx.now + 3600 * SECOND), *key)))


@pytest.mark.parametrize("limit", COUNTED)
def test_the_next_slot_is_kept_for_who_got_none(nodes: tuple[Node, Node], store_url: str) -> None:
    """Until it has been taken; then whoever is first has the next one."""
    flooding, other = nodes
    rows = Rows(store_url)
    (running,) = flooding.claim("flood")
    assert other.claim("single") == []
    assert kept(rows) == ["single"]
    flooding.end(running)
    assert flooding.claim("flood") == []
    (single,) = other.claim("single")
    assert kept(rows) == []
    other.end(single)
    (running,) = flooding.claim("flood")
    flooding.end(running)
    assert rows.sql("SELECT * FROM workerd_slots") == []


@pytest.mark.parametrize("limit", COUNTED)
def test_both_try_again_soon(nodes: tuple[Node, Node], store: Store) -> None:
    """Since nobody tells a node what another one has freed."""
    flooding, other = nodes
    (running,) = flooding.claim("flood")
    other.claim("single")
    flooding.end(running)
    flooding.claim("flood")
    for node in nodes:
        assert node.batch.retry_at is not None
        assert node.batch.retry_at <= store.read(lambda tx: tx.now) + 10 * SECOND


@pytest.mark.parametrize("limit", COUNTED)
def test_who_leaves_a_slot_to_another_looks_soon_whether_it_is_free_again(
    nodes: tuple[Node, Node], store: Store, store_url: str
) -> None:
    """The other may have had a single short job; nobody asks before its turn is over."""
    flooding, other = nodes
    (running,) = flooding.claim("flood")
    other.claim("single")
    flooding.end(running)
    (single,) = other.claim("single")
    assert flooding.claim("flood") == []
    assert flooding.batch.retry_at is not None
    assert flooding.batch.retry_at <= store.read(lambda tx: tx.now) + 10_000
    assert kept(Rows(store_url)) == []
    other.end(single)


@pytest.mark.parametrize("limit", COUNTED)
def test_nobody_asks_while_a_turn_lasts(nodes: tuple[Node, Node], store: Store, store_url: str) -> None:
    """Slots change nodes seldom; at the end of the turn whoever had nothing meanwhile looks again."""
    flooding, other = nodes
    rows = Rows(store_url)
    insert_jobs(store, "single", 5)
    (running,) = flooding.claim("flood")
    other.claim("single")
    flooding.end(running)
    (single,) = other.claim("single")
    sql = "SELECT next_until FROM workerd_rates WHERE next_until IS NOT NULL"
    (turn,) = store.read(lambda tx: tx.query(sql))
    flooding.claim("flood")
    assert kept(rows) == []
    assert flooding.batch.retry_at is not None
    assert flooding.batch.retry_at <= columns.time(turn[0])
    rows.sql("UPDATE workerd_rates SET next_until = '2026-01-01 00:00:00.000000'")
    flooding.claim("flood")
    assert kept(rows) == ["flood"]
    other.end(single)


@pytest.mark.parametrize("limit", COUNTED)
def test_who_has_the_slots_does_not_ask(nodes: tuple[Node, Node], store_url: str) -> None:
    """Or nobody could, behind long runs."""
    flooding, other = nodes
    (running,) = flooding.claim("flood")
    flooding.claim("flood")
    assert kept(Rows(store_url)) == []
    other.claim("single")
    assert kept(Rows(store_url)) == ["single"]
    flooding.end(running)


@pytest.mark.parametrize("limit", COUNTED)
@pytest.mark.parametrize("until_s", [-1, 3600])
def test_a_slot_is_not_kept_for_ever(
    nodes: tuple[Node, Node], store: Store, store_url: str, until_s: int
) -> None:
    """Who asked may have died; and the clock may have been set back since. Then others ask."""
    flooding, other = nodes
    rows = Rows(store_url)
    (running,) = flooding.claim("flood")
    other.claim("single")
    flooding.end(running)
    moment = clock.to_text(store.read(lambda tx: tx.now) + until_s * SECOND)
    rows.sql(
        "UPDATE workerd_rates SET next_handler = 'gone', next_until = %s WHERE next_until IS NOT NULL", moment
    )
    (running,) = flooding.claim("flood")
    other.claim("single")
    assert kept(rows) == ["single"]
    flooding.end(running)


@pytest.mark.parametrize("limit", COUNTED)
def test_what_is_not_wanted_any_longer_is_kept_no_longer(nodes: tuple[Node, Node], store_url: str) -> None:
    """As when the job was cancelled."""
    flooding, other = nodes
    rows = Rows(store_url)
    (running,) = flooding.claim("flood")
    other.claim("single")
    rows.sql("DELETE FROM workerd_jobs WHERE handler = 'single'")
    flooding.end(running)
    assert other.claim("single") == []
    assert kept(rows) == []
    (running,) = flooding.claim("flood")
    flooding.end(running)


@pytest.mark.parametrize("limit", COUNTED)
def test_a_node_that_has_the_handler_too_leaves_it_the_slot(
    nodes: tuple[Node, Node], store: Store, tmp_path: Path, limit: LimitConfig
) -> None:
    """Its pool may have no room for that handler."""
    _, other = nodes
    both = Node(store, tmp_path, limit, "flood", "single")
    meet(*nodes, both)
    (running,) = both.claim("flood")
    other.claim("single")
    both.end(running)
    assert both.claim("flood") == []
    assert both.batch.retry_at is not None
    (single,) = both.claim("single")
    both.end(single)


@pytest.mark.parametrize("limit", COUNTED)
def test_a_node_that_is_alone_by_now_tries_again(nodes: tuple[Node, Node]) -> None:
    """Once what it meets is kept no longer, although nobody shares its limit."""
    flooding, other = nodes
    (running,) = flooding.claim("flood")
    other.claim("single")
    flooding.meet()
    flooding.end(running)
    assert flooding.claim("flood") == []
    assert flooding.batch.retry_at is not None


def test_of_more_slots_one_is_kept(store: Store, store_url: str, tmp_path: Path) -> None:
    """The others go on."""
    limit = LimitConfig(concurrency=3)
    flooding, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "single")
    meet(flooding, other)
    insert_jobs(store, "flood", 9)
    insert_jobs(store, "single", 2)
    running = flooding.claim("flood")
    assert other.claim("single") == []
    for claim in running:
        flooding.end(claim)
    running = flooding.claim("flood")
    assert len(running) == 2
    (single,) = other.claim("single")
    other.end(single)
    for claim in running:
        flooding.end(claim)
    assert Rows(store_url).sql("SELECT * FROM workerd_slots") == []


@pytest.mark.parametrize("limit", COUNTED)
def test_nodes_with_one_handler_ask_for_nothing(
    store: Store, store_url: str, tmp_path: Path, limit: LimitConfig
) -> None:
    """Whoever is first may run what waits: a slot that is kept would only be left unused."""
    one, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "flood")
    meet(one, other)
    insert_jobs(store, "flood", 9)
    (running,) = other.claim("flood")
    assert one.claim("flood") == []
    assert one.batch.retry_at is None
    assert kept(Rows(store_url)) == []
    other.end(running)


def test_two_handlers_of_a_node_do_not_ask_for_one_slot(store: Store, store_url: str, tmp_path: Path) -> None:
    """The second would take what is kept for the first."""
    limit = LimitConfig(concurrency=1)
    flooding, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "first", "second")
    meet(flooding, other)
    for handler in ("flood", "first", "second"):
        insert_jobs(store, handler, 2)
    (running,) = flooding.claim("flood")
    assert other.claim("first", "second") == []
    assert kept(Rows(store_url)) == ["first"]
    flooding.end(running)
    (claim,) = other.claim("second", "first")
    assert claim.handler == "first"
    other.end(claim)


def test_a_full_group_asks_while_others_have_room(store: Store, store_url: str, tmp_path: Path) -> None:
    """For itself; jobs of other groups start beside it."""
    limit = LimitConfig(group_concurrency=1)
    flooding, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "single")
    meet(flooding, other)
    rows = Rows(store_url)
    insert_jobs(store, "flood", 3, group_key="a")
    (running,) = flooding.claim("flood")
    insert_jobs(store, "single", 1, group_key="a")
    insert_jobs(store, "single", 1, group_key="b")
    (beside,) = other.claim("single")
    assert beside.limited is not None
    assert beside.limited.group == "b"
    asked = "SELECT group_key FROM workerd_rates WHERE next_handler = 'single'"
    assert [row["group_key"] for row in rows.sql(asked)] == ["a"]
    flooding.end(running)
    assert flooding.claim("flood") == []
    (single,) = other.claim("single")
    for claim in (beside, single):
        other.end(claim)
    (running,) = flooding.claim("flood")
    flooding.end(running)
    assert rows.sql("SELECT * FROM workerd_slots") == []


def test_groups_that_a_handler_fills_itself_do_not_keep_others_from_asking(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    """However many they are."""
    limit = LimitConfig(group_concurrency=1)
    flooding, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "single")
    meet(flooding, other)
    for number in range(2 * slot_turns.MAX_NEW):
        insert_jobs(store, "single", 2, group_key=f"own{number}")
    running = other.claim("single", wanted=50)
    insert_jobs(store, "flood", 2, group_key="x")
    (flood,) = flooding.claim("flood")
    insert_jobs(store, "single", 1, group_key="x")
    other.claim("single", wanted=50)
    found = Rows(store_url).sql("SELECT group_key FROM workerd_rates WHERE next_handler = 'single'")
    assert [row["group_key"] for row in found] == ["x"]
    flooding.end(flood)
    for claim in running:
        other.end(claim)


def test_a_limit_is_not_asked_for_by_jobs_whose_group_is_full(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    """A slot that is kept for what cannot start would stand empty."""
    limit = LimitConfig(concurrency=2, group_concurrency=1)
    flooding, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "single")
    meet(flooding, other)
    insert_jobs(store, "flood", 1, group_key="a")
    insert_jobs(store, "flood", 9, group_key="b")
    running = flooding.claim("flood")
    assert len(running) == 2
    insert_jobs(store, "single", 1, group_key="a")
    other.claim("single")
    found = Rows(store_url).sql("SELECT scope, group_key FROM workerd_rates WHERE next_handler = 'single'")
    assert [(row["scope"], row["group_key"]) for row in found] == [("group", "a")]
    flooding.end(running[1])
    assert len(flooding.claim("flood")) == 1


@pytest.mark.parametrize("scope", ["limit", "group"])
def test_what_is_held_does_not_ask(store: Store, store_url: str, tmp_path: Path, scope: str) -> None:
    """It waits for more than a slot; when the hold ends is known."""
    limit = LimitConfig(concurrency=1)
    flooding, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "single")
    meet(flooding, other)
    insert_jobs(store, "flood", 1)
    insert_jobs(store, "single", 1, group_key="g")
    (running,) = flooding.claim("flood")
    hold(store, scope, "g" if scope == "group" else "")
    assert other.claim("single") == []
    assert kept(Rows(store_url)) == []
    flooding.end(running)


@pytest.mark.parametrize("limit", COUNTED)
def test_claims_for_newcomers_do_not_ask(nodes: tuple[Node, Node], store_url: str) -> None:
    """They are made of a pool that has no room for what would be kept."""
    flooding, other = nodes
    (running,) = flooding.claim("flood")
    other.claim("single", idle_only=True)
    assert kept(Rows(store_url)) == []
    flooding.end(running)
