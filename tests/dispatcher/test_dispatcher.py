"""The dispatcher as a real process: claims, lease, settlement and rescue, against both engines."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.dispatching import World, node
from tests.support.eventually import eventually
from tests.support.servers import DatabaseServer
from workerd.config.model import Config, DispatcherConfig, PickupConfig, StoreConfig
from workerd.dispatcher.dispatcher import read_former_incarnations, store_timeout
from workerd.dispatcher.pool_links import PoolLink
from workerd.errors import StoreRefused
from workerd.job import Key, Status, new_id
from workerd.messages import Drain, Scheduled, Stop
from workerd.outcome import Reason
from workerd.runtime.sockets import poke
from workerd.store import claims as store_claims
from workerd.store import handlers, job_control, jobs, nodes
from workerd.store.base import Store
from workerd.store.claims import NodeIdent
from workerd.store.jobs import NewJob
from workerd.store.nodes import NodeRecord

Build = Callable[..., World]

OTHER = NodeRecord(id=new_id(), name="other", host="elsewhere", pid=1, boot_id="", version="0")
DEAD = NodeIdent(OTHER.id, OTHER.name)


@pytest.fixture
def build(tmp_path: Path, store: Store, store_url: str) -> Iterator[Build]:
    """Makes the world around one dispatcher; `lease`, `poll` and `batch` as in the configuration."""
    worlds: list[World] = []

    def building(
        *, lease: float = 30.0, poll: float = 0.5, batch: int = 500, pickup: PickupConfig | None = None
    ) -> World:
        config = Config(
            node=node(tmp_path),
            store=StoreConfig(url=store_url),
            dispatcher=DispatcherConfig(lease=lease, poll=poll, batch=batch),
            pickup=pickup or PickupConfig(),
        )
        worlds.append(World(tmp_path, store, config))
        return worlds[-1]

    yield building
    for world in worlds:
        world.close()


def add(store: Store, handler: str, count: int = 1, **fields: object) -> list[bytes]:
    """So many new rows of a handler."""
    rows = [NewJob(handler=handler, **fields) for _ in range(count)]  # type: ignore[arg-type]
    return [inserted.id for inserted in store.run(lambda tx: jobs.insert(tx, rows))]


def up(world: World) -> bool:
    return world.beat.state == "up"


def status(store: Store, job_id: bytes) -> tuple[str, str | None, int]:
    """Status, reason and attempt of the newest row."""
    row = store.read(
        lambda tx: tx.one(
            "SELECT status, reason, attempt FROM workerd_jobs WHERE id = %s ORDER BY attempt DESC LIMIT 1",
            (job_id,),
        )
    )
    assert row is not None
    return row[0].decode(), row[1] and row[1].decode(), row[2]


def take(store: Store, owner: NodeIdent, handler: str, limit: int = 100) -> list[Key]:
    """Claim in the name of `owner`."""
    return [c.key for c in store.run(lambda tx: store_claims.claim(tx, handler, limit, owner)).claims]


def is_removed(store: Store, node_id: bytes) -> bool:
    return all(n.id != node_id for n in store.read(nodes.list_))


# -- claiming


def test_a_pool_gets_no_more_than_it_asked_for(build: Build, store: Store) -> None:
    """Claims never exceed the room, and what was received is not counted twice."""
    world = build()
    world.start()
    pool = world.pool("h").connect()
    add(store, "h", 30)
    pool.demand(10)
    world.until(lambda: len(pool.claims) == 10)
    world.serve(0.2)
    assert len(pool.claims) == 10
    pool.demand(10)
    world.until(lambda: len(pool.claims) == 20)


def test_a_demand_that_crosses_claims_is_harmless(build: Build, store: Store) -> None:
    """A Demand that was sent before the claims arrived does not bring them a second time."""
    world = build()
    world.start()
    pool = world.pool("h").connect()
    add(store, "h", 30)
    pool.demand(10)
    world.until(lambda: len(pool.claims) == 10)
    pool.received = 0  # as if it had not seen them yet
    pool.demand(10)
    world.serve(0.2)
    assert len(pool.claims) == 10


def test_a_wake_up_is_served_before_the_next_poll(build: Build, store: Store) -> None:
    """A row that is announced reaches the pool long before a poll of a minute is over."""
    world = build(poll=60.0)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(5)
    world.until(lambda: up(world) and world.settled())
    world.serve(0.2)
    add(store, "h")
    assert poke(world.paths.wake)
    world.until(lambda: pool.claims, within=10)


def test_rows_announced_while_their_pool_is_away_do_not_wait_for_the_poll(build: Build, store: Store) -> None:
    """A pool that comes back finds what was enqueued since it died."""
    world = build(poll=60.0)
    world.start()
    first = world.pool("h").connect()
    first.demand(5)
    world.until(lambda: up(world) and world.settled())
    world.serve(0.2)
    world.bury(first)
    world.until(lambda: world.settled(2))
    add(store, "h")
    assert poke(world.paths.wake)
    world.serve(0.2)
    second = world.pool("h").connect()
    second.demand(5)
    world.until(lambda: second.claims, within=10)


def test_a_row_that_is_due_soon_does_not_wait_for_the_poll(build: Build, store: Store) -> None:
    """Who scheduled a row says when it is due; words that mean nothing are as good as none."""
    world = build(poll=60.0)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(5)
    world.until(lambda: up(world) and world.settled())
    world.serve(0.2)
    (job,) = add(store, "h", 1, delay=200_000)
    now = store.read(lambda tx: tx.now)
    for body in (b"\xff" * 100, msgspec.msgpack.encode(Scheduled(2**63)), b"{}"):
        assert poke(world.paths.wake, body)
    assert poke(world.paths.wake, msgspec.msgpack.encode(Scheduled(now + 200_000)))
    world.until(lambda: pool.claims, within=10)
    assert [key[0] for key in pool.claims] == [job]


def test_a_row_that_nobody_announced_is_found_by_the_poll(build: Build, store: Store) -> None:
    """Without a wake-up the poll finds it."""
    world = build(poll=0.1)
    world.start()
    pool = world.pool("h", "g", "f", name="p").connect()
    pool.demand(5)
    world.until(lambda: up(world) and world.settled())
    world.serve(0.2)
    add(store, "f")
    world.until(lambda: pool.claims, within=10)


def test_a_pools_room_goes_round_its_handlers(build: Build, store: Store) -> None:
    """A handler with many rows does not keep another of the same pool from being served."""
    world = build()
    add(store, "busy", 200)
    add(store, "quiet", 2)
    world.start()
    pool = world.pool("busy", "quiet", name="p").connect()

    def quiet_served() -> bool:
        pool.demand(1)
        return any(claim.handler == "quiet" for claim in pool.claims.values())

    world.until(quiet_served)
    assert len(pool.claims) < 20


def test_smaller_priority_comes_first(build: Build, store: Store) -> None:
    """Priority orders within a handler."""
    world = build()
    add(store, "h", 3, priority=5)
    (urgent,) = add(store, "h", 1, priority=-5)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(1)
    world.until(lambda: pool.claims)
    assert [key[0] for key in pool.claims] == [urgent]


def test_due_rows_become_new_in_time(build: Build, store: Store) -> None:
    """A scheduled row is claimed when it is due, although the poll is long."""
    world = build(poll=0.5)
    (job,) = add(store, "h", 1, delay=1_000_000)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(1)
    world.until(lambda: pool.claims)
    claim = pool.claims[job, 1]
    assert 0 <= claim.claimed_at - claim.run_at < 500_000


def test_a_row_that_cannot_be_read_ends_and_the_others_run(
    build: Build, store: Store, store_url: str, mysql_url: str, mysql_server: DatabaseServer
) -> None:
    """One unreadable row becomes a failure; the rest of its handler is claimed."""
    world = build()
    (bad,) = add(store, "h")
    store.run(lambda tx: tx.execute("UPDATE workerd_jobs SET vars = %s WHERE id = %s", ("[1]", bad)))
    good = add(store, "h", 3)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(10)
    world.until(lambda: {key[0] for key in pool.claims} >= set(good))
    assert {key[0] for key in pool.claims} <= {*good, bad}


def test_a_handler_that_the_store_refuses_keeps_no_other_waiting(build: Build, store: Store) -> None:
    """Claims of several handlers share a transaction; one that is refused is found and left out."""
    world = build(poll=0.05)
    add(store, "bad", 2)
    add(store, "good", 2)

    def refuse() -> None:
        claim = store_claims.claim

        def refusing(tx: object, handler: str, *rest: object) -> object:
            if handler == "bad":
                raise StoreRefused("no such thing", 1146)
            return claim(tx, handler, *rest)  # type: ignore[arg-type]

        store_claims.claim = refusing  # type: ignore[assignment]

    world.start(refuse)
    pool = world.pool("bad", "good", name="p").connect()
    pool.demand(10)
    world.until(lambda: len(pool.claims) == 2)
    assert {claim.handler for claim in pool.claims.values()} == {"good"}


def test_nothing_is_claimed_where_pickup_is_off(build: Build, store: Store) -> None:
    """`pickup.enabled = false`: the node renews its lease and takes no work."""
    world = build(poll=0.05, pickup=PickupConfig(enabled=False))
    add(store, "h")
    world.start()
    pool = world.pool("h").connect()
    pool.demand(5)
    world.until(lambda: up(world))
    world.serve(0.5)
    assert not pool.claims


def test_pickup_at_set_times(build: Build, store: Store) -> None:
    """With `pickup.jobs` a cron expression, rows are taken at its ticks, all that are there."""
    world = build(poll=0.05, pickup=PickupConfig(jobs="* * * * * *"))
    add(store, "h", 12)
    world.start()
    pool = world.pool("h").connect()
    pool.on_claims = lambda claims: pool.demand(5)
    pool.demand(5)
    world.until(lambda: len(pool.claims) == 12)


# -- cancels and pauses


def test_cancel_requests_reach_the_pool(build: Build, store: Store) -> None:
    """A cancel asked for in the store is passed on to who holds the claim."""
    world = build(poll=0.05)
    (job,) = add(store, "h")
    world.start()
    pool = world.pool("h").connect()
    pool.demand(1)
    world.until(lambda: pool.claims)
    assert store.run(lambda tx: job_control.cancel(tx, job)) == "asked"
    world.until(lambda: (job, 1) in pool.cancelled)


def test_a_paused_handler_is_given_back_and_not_claimed(build: Build, store: Store) -> None:
    """Pools are told to give back what waits; claiming begins again when it is resumed."""
    world = build(poll=0.05)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(10)
    world.until(lambda: up(world))
    store.run(lambda tx: handlers.pause(tx, "h", "me", None))
    world.until(lambda: ("h",) in pool.given_back)
    add(store, "h")
    poke(world.paths.wake)
    world.serve(0.3)
    assert not pool.claims
    store.run(lambda tx: handlers.resume(tx, "h"))
    world.until(lambda: pool.claims)


# -- settlement


def test_a_killed_dispatcher_loses_nothing_between_commit_and_hand_over(build: Build, store: Store) -> None:
    """Claims that were committed but never sent are given back; no attempt is spent."""
    world = build()
    ids = add(store, "h", 5)

    def die_before_hand_over() -> None:
        def die(link: PoolLink, claims: object) -> list[object]:
            os.kill(os.getpid(), signal.SIGKILL)
            return []

        PoolLink.hand_over = die  # type: ignore[method-assign,assignment]

    child = world.start(die_before_hand_over)
    pool = world.pool("h").connect()
    pool.demand(10)
    world.until(lambda: child.reap() is not None)
    assert {status(store, job) for job in ids} == {("inprogress", None, 1)}
    world.start()
    pool.disconnect()
    pool.connect()
    pool.demand(10)
    world.until(lambda: len(pool.claims) == 5)
    assert set(pool.claims) == {(job, 1) for job in ids}
    assert {outcome.status for outcome in world.ingester.outcomes} == {Status.NEW}


def test_what_a_pool_holds_is_left_to_it(build: Build, store: Store) -> None:
    """After a restart of the dispatcher, claims in a pool's hand stay there."""
    world = build()
    ids = add(store, "h", 5)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(5)
    world.until(lambda: len(pool.claims) == 5)
    world.kill()
    world.start()
    pool.connect()
    world.until(lambda: world.settled())
    assert not world.ingester.outcomes
    assert {status(store, job)[0] for job in ids} == {"inprogress"}


def test_settlement_waits_for_every_pool_that_lives(build: Build, store: Store) -> None:
    """A pool that has not answered yet may hold anything."""
    world = build()
    ids = add(store, "h", 3)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(3)
    world.until(lambda: len(pool.claims) == 3)
    world.kill()
    world.start()
    world.until(lambda: up(world))
    world.serve(0.3)
    assert world.beat.info["settlement"] == "collecting"
    pool.mute = True
    pool.connect()
    world.serve(0.3)
    assert {status(store, job)[0] for job in ids} == {"inprogress"}
    pool.mute = False
    pool.disconnect()
    pool.connect()
    world.until(lambda: world.settled())
    assert not world.ingester.outcomes


def test_claims_of_a_dead_pool_are_lost(build: Build, store: Store) -> None:
    """What a pool held when it died is retried as lost, after its last words were written."""
    world = build()
    ids = add(store, "h", 4)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(4)
    world.until(lambda: len(pool.claims) == 4)
    world.bury(pool)
    world.until(lambda: len(world.ingester.outcomes) == 4)
    assert pool.life in world.ingester.barriers[-1].lives
    assert {(o.status, o.reason, o.node_id) for o in world.ingester.outcomes} == {
        (Status.RETRY, Reason.LOST, None)
    }
    assert {status(store, job)[2] for job in ids} == {2}


def test_claims_of_other_pools_survive_the_death_of_one(build: Build, store: Store) -> None:
    """Settlement after a death touches nothing that somebody holds."""
    world = build()
    add(store, "h", 2)
    others = add(store, "g", 2)
    world.start()
    dying, living = world.pool("h").connect(), world.pool("g").connect()
    dying.demand(2)
    living.demand(2)
    world.until(lambda: len(dying.claims) == 2 and len(living.claims) == 2)
    world.bury(dying)
    world.until(lambda: len(world.ingester.outcomes) == 2)
    world.until(lambda: world.settled(2))
    assert {o.handler for o in world.ingester.outcomes} == {"h"}
    assert {status(store, job)[0] for job in others} == {"inprogress"}


def test_claims_made_during_a_settlement_are_nobodys_loss(build: Build, store: Store) -> None:
    """While a settlement waits for the ingester, new claims reach the pool and stay with it."""
    world = build()
    world.start()
    pool = world.pool("h").connect()
    world.until(lambda: world.settled())
    world.ingester.away = True
    dying = world.pool("g").connect()
    world.serve(0.1)
    world.bury(dying)
    add(store, "h", 5)
    pool.demand(5)
    poke(world.paths.wake)
    world.until(lambda: len(pool.claims) == 5)
    world.ingester.back()
    world.until(lambda: world.settled(2))
    assert not world.ingester.outcomes


def test_claims_on_a_connection_that_broke_are_given_back(build: Build, store: Store) -> None:
    """The pool lives but never read them: they are claimed again, with no attempt spent."""
    world = build()
    ids = add(store, "h", 5)
    world.start()
    pool = world.pool("h").connect()
    world.until(lambda: up(world) and world.settled())
    pool.demand(5)
    assert pool.channel is not None
    pool.channel.flush()
    eventually(lambda: {status(store, job)[0] for job in ids} == {"inprogress"})
    pool.disconnect()  # what was sent is still in the socket, unread
    pool.connect()
    pool.demand(5)
    world.until(lambda: len(pool.claims) == 5)
    assert set(pool.claims) == {(job, 1) for job in ids}


def test_a_commit_without_an_answer_is_settled(build: Build, store: Store) -> None:
    """The server committed the claim and its answer was lost: the rows are given back."""
    world = build()
    ids = add(store, "h", 5)

    def lose_one_answer() -> None:
        from workerd.errors import StoreAway
        from workerd.store import claims as store_claims
        from workerd.store.base import Session, Store

        commit = Store._commit

        def losing(self: Store, session: Session, write: bool) -> None:
            if claimed:
                claimed.clear()
                session.commit()
                session.commit = unanswered  # type: ignore[method-assign]
            commit(self, session, write)

        def unanswered() -> None:
            raise StoreAway("connection lost during COMMIT", 2013)

        claimed: list[int] = []
        claim = store_claims.claim

        def noted(*args: object, **named: object) -> object:
            batch = claim(*args, **named)  # type: ignore[arg-type]
            if batch.claims and not done:
                claimed.append(1)
                done.append(1)
            return batch

        done: list[int] = []
        Store._commit = losing  # type: ignore[method-assign]
        store_claims.claim = noted  # type: ignore[assignment]

    world.start(lose_one_answer)
    pool = world.pool("h").connect()
    pool.demand(5)
    world.until(lambda: len(pool.claims) == 5)
    assert set(pool.claims) == {(job, 1) for job in ids}
    assert {outcome.status for outcome in world.ingester.outcomes} == {Status.NEW}
    assert len(world.ingester.outcomes) == 5


def test_outcomes_are_sent_again_to_a_restarted_ingester(build: Build, store: Store) -> None:
    """An outcome that was not acknowledged reaches the next ingester, and so does the barrier."""
    world = build()
    ids = add(store, "h", 3)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(3)
    world.until(lambda: len(pool.claims) == 3 and world.settled())
    world.ingester.away = True
    world.bury(pool)
    world.until(lambda: world.beat.info["settlement"] == "writing")
    world.ingester.restart()
    world.ingester.away = False
    world.until(lambda: all(status(store, job)[2] == 2 for job in ids))


# -- lease


def test_the_lease_is_renewed(build: Build, store: Store) -> None:
    """The node's row says that it lives, again and again."""
    world = build(lease=0.6)
    world.start()
    world.until(lambda: up(world))
    (first,) = store.read(nodes.list_)
    world.until(lambda: store.read(nodes.list_)[0].lease_until > first.lease_until + 500_000)
    assert first.id == world.incarnation
    assert first.name == "test"


def test_a_row_that_was_removed_is_registered_again(build: Build, store: Store) -> None:
    """A node that was taken for dead and comes back is there again."""
    world = build(lease=0.6)
    world.start()
    world.until(lambda: up(world))
    store.run(lambda tx: tx.execute("DELETE FROM workerd_nodes"))
    world.until(lambda: not is_removed(store, world.incarnation))


def test_a_name_that_a_living_node_has_is_refused(build: Build, store: Store) -> None:
    """The second node of a name says so, claims nothing and asks the supervisor to stop."""
    world = build()
    twin = NodeRecord(id=new_id(), name="test", host="elsewhere", pid=1, boot_id="", version="0")
    store.run(lambda tx: nodes.register(tx, twin, 30.0))
    add(store, "h")
    world.start()
    pool = world.pool("h").connect()
    pool.demand(1)
    world.until(lambda: any(beat.fatal == 2 for beat in world.beats))
    world.serve(0.2)
    assert world.beat.state == "failed"
    assert "node.name" in world.beat.trouble
    assert not pool.claims


def test_a_wrong_schema_is_refused(build: Build, store: Store) -> None:
    """With another version of the schema nothing is claimed, and the sentence says what to do."""
    store.run(lambda tx: tx.execute("INSERT INTO workerd_migrations (version, name) VALUES (99, 'newer')"))
    world = build()
    world.start()
    world.until(lambda: any(beat.fatal == 2 for beat in world.beats))
    assert world.beat.state == "failed"
    assert "99" in world.beat.trouble


def test_a_stopped_dispatcher_tells_the_pools_before_it_goes_on(build: Build, store: Store) -> None:
    """Stopped for longer than its lease, it first lets go and has given back what waits, then renews."""
    world = build(lease=1.0)
    world.start()
    pool = world.pool("h").connect()
    world.until(lambda: up(world) and world.settled())
    assert world.dispatcher is not None
    world.dispatcher.kill(signal.SIGSTOP)
    world.serve(1.2)
    world.dispatcher.kill(signal.SIGCONT)
    world.until(lambda: pool.held[-2:] == [False, True])
    assert pool.given_back == [()]


def test_an_outage_ends_the_lease_in_time_and_work_goes_on_by_itself(
    tmp_path: Path, own_server: DatabaseServer, opened: Callable[..., Store]
) -> None:
    """Store frozen: the lease is let go, the loop goes on turning; thawed: claims go on."""
    url = own_server.url(own_server.new_database())
    store = opened(url)
    store.migrate()
    config = Config(node=node(tmp_path), store=StoreConfig(url=url), dispatcher=DispatcherConfig(lease=2.0))
    world = World(tmp_path, store, config)
    try:
        world.start()
        pool = world.pool("h").connect()
        pool.demand(5)
        world.until(lambda: up(world) and world.settled())
        own_server.freeze()
        world.until(lambda: pool.held[-1:] == [False])
        world.until(lambda: world.beat.state == "waiting")
        assert "goes on by itself" in world.beat.trouble
        own_server.thaw()
        world.until(lambda: pool.held[-2:] == [False, True])
        add(store, "h")
        world.until(lambda: len(pool.claims) == 1)
    finally:
        world.close()


def test_it_waits_for_a_store_that_is_not_there_yet(
    tmp_path: Path, own_server: DatabaseServer, opened: Callable[..., Store]
) -> None:
    """Started while the server is down, it comes up when the server does, without spinning."""
    url = own_server.url(own_server.new_database())
    store = opened(url)
    store.migrate()
    own_server.stop()
    world = World(tmp_path, store, Config(node=node(tmp_path), store=StoreConfig(url=url)))
    try:
        child = world.start()
        world.until(lambda: world.beat.state == "waiting")
        before = cpu_seconds(child.pid)
        world.serve(1.0)
        assert cpu_seconds(child.pid) - before < 0.5
        own_server.start()
        world.until(lambda: up(world))
    finally:
        world.close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_empty_embedded_store_is_made(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """The daemon migrates an empty SQLite store by itself."""
    url = f"sqlite:///{tmp_path}/fresh.db"
    store = opened(url)
    world = World(tmp_path, store, Config(node=node(tmp_path), store=StoreConfig(url=url)))
    try:
        world.start()
        world.until(lambda: up(world))
        store.check_version()
    finally:
        world.close()


# -- rescue


def test_claims_of_a_dead_node_are_rescued(build: Build, store: Store) -> None:
    """When its lease is over, its claims are lost in its own name, and its row goes."""
    store.run(lambda tx: nodes.register(tx, OTHER, 0.1))
    ids = add(store, "h", 3)
    take(store, DEAD, "h")
    world = build(lease=0.9)
    world.start()
    world.until(lambda: is_removed(store, OTHER.id))
    assert {status(store, job)[2] for job in ids} == {2}
    assert {(o.reason, o.node_id) for o in world.ingester.outcomes} == {(Reason.LOST, OTHER.id)}


def test_a_living_node_is_left_alone(build: Build, store: Store) -> None:
    """A node whose lease runs is not rescued, whatever it holds."""
    store.run(lambda tx: nodes.register(tx, OTHER, 60.0))
    add(store, "h", 3)
    take(store, DEAD, "h")
    world = build(lease=0.6)
    world.start()
    world.until(lambda: up(world))
    world.serve(1.5)
    assert not world.ingester.outcomes


def test_a_lease_counts_as_over_only_to_who_has_seen_the_store_for_a_lease(
    build: Build, store: Store
) -> None:
    """Right after its start a node rescues nobody: an outage may have kept the others from renewing."""
    store.run(lambda tx: nodes.register(tx, OTHER, 0.01))
    add(store, "h", 3)
    take(store, DEAD, "h")
    world = build(lease=4.0, poll=0.05)
    world.start()
    world.until(lambda: up(world))
    world.serve(2.0)
    assert not world.ingester.outcomes
    world.until(lambda: len(world.ingester.outcomes) == 3)


def test_former_incarnations_are_rescued_at_once_but_after_the_spool(build: Build, store: Store) -> None:
    """The lock shows that they are dead; what they spooled is written first."""
    world = build(lease=600.0)
    former = NodeRecord(id=OTHER.id, name="test", host="here", pid=1, boot_id="", version="0")
    store.run(lambda tx: nodes.register(tx, former, 600.0))
    ids = add(store, "h", 3)
    take(store, NodeIdent(former.id, "test"), "h")
    world.paths.incarnations.write_text(f"{former.id.hex()}\n{world.incarnation.hex()}\n")
    world.ingester.away = True
    world.start()
    world.until(lambda: world.beat.info.get("settlement") == "writing")
    world.serve(0.2)
    assert {status(store, job)[0] for job in ids} == {"inprogress"}
    world.ingester.back()
    world.until(lambda: is_removed(store, former.id))
    assert {status(store, job)[2] for job in ids} == {2}


def test_claims_of_a_node_without_a_row_are_rescued(build: Build, store: Store) -> None:
    """A claim that was committed after its node's row had been removed is found too, after a lease."""
    ids = add(store, "h", 3)
    take(store, DEAD, "h")
    world = build(lease=0.9)
    world.start()
    world.until(lambda: all(status(store, job)[2] == 2 for job in ids))
    assert {(o.reason, o.node_id) for o in world.ingester.outcomes} == {(Reason.LOST, OTHER.id)}


# -- the end


def test_draining_keeps_the_lease_and_claims_nothing(build: Build, store: Store) -> None:
    """From Drain to Stop the lease is renewed, and nothing is claimed."""
    world = build(lease=0.6, poll=0.05)
    world.start()
    pool = world.pool("h").connect()
    pool.demand(5)
    world.until(lambda: up(world))
    world.say(Drain(seconds=30))
    world.until(lambda: world.beat.state == "draining")
    add(store, "h")
    poke(world.paths.wake)
    (before,) = store.read(nodes.list_)
    world.until(lambda: store.read(nodes.list_)[0].lease_until > before.lease_until + 500_000)
    assert not pool.claims


def test_the_last_act_leaves_nothing_behind(build: Build, store: Store) -> None:
    """At Stop what nobody holds is settled, then the node's row goes, then the process ends with 0."""
    world = build()
    ids = add(store, "h", 2)
    child = world.start()
    pool = world.pool("h").connect()
    pool.demand(2)
    world.until(lambda: len(pool.claims) == 2)
    world.say(Drain(seconds=30))
    pool.mute = True
    world.bury(pool)
    world.say(Stop())
    world.until(lambda: child.reap() is not None)
    assert child.status == 0
    assert is_removed(store, world.incarnation)
    assert {status(store, job)[0] for job in ids} == {"scheduled"}


def test_it_ends_at_once_when_the_store_is_away(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """Stop does not wait for a store that nobody can reach."""
    url = "mysql://u:p@127.0.0.1:1/none"
    world = World(tmp_path, opened(url), Config(node=node(tmp_path), store=StoreConfig(url=url)))
    try:
        child = world.start()
        world.until(lambda: world.beat.state == "waiting")
        world.say(Stop())
        world.until(lambda: child.reap() is not None)
        assert child.status == 0
    finally:
        world.close()


def test_an_orphan_ends(build: Build) -> None:
    """Without a supervisor it has no right to its claims."""
    world = build()
    child = world.start()
    world.until(lambda: up(world))
    assert world.supervisor is not None
    world.supervisor.close()
    world.until(lambda: child.reap() is not None)
    assert child.status == 71


def test_former_incarnations_are_all_but_our_own(tmp_path: Path) -> None:
    """The list is read leniently; a torn line counts for nothing."""
    path = tmp_path / "incarnations"
    assert read_former_incarnations(path, bytes(16)) == []
    path.write_text(f"{'ab' * 16}\n{'00' * 16}\nabcd\nzz{'ab' * 15}\n")
    assert read_former_incarnations(path, bytes(16)) == [bytes.fromhex("ab" * 16)]


@pytest.mark.parametrize(
    ("watchdog", "lease", "expected"),
    [(10.0, 30.0, 4.0), (60.0, 30.0, 5.0), (60.0, 8.0, 2.0), (1.0, 30.0, 0.4)],
)
def test_no_statement_outlasts_the_watchdog_or_the_lease(
    watchdog: float, lease: float, expected: float
) -> None:
    """Connecting and one statement together stay below both."""
    assert store_timeout(watchdog, lease) == pytest.approx(expected)
