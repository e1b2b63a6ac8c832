"""Schedules: ticks fire once, chains survive, pauses, and manual runs."""

from __future__ import annotations

import threading

import msgspec
import pytest

from tests.support import storing as s
from workerd import documents
from workerd import workflow as wf
from workerd.clock import SECOND, to_text
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config
from workerd.config.schedule_config import NamedSchedule, Overlap, ScheduleConfig
from workerd.errors import Conflict, NotFound
from workerd.job import COOLER_KEY, Status
from workerd.outcome import NextAttempt, Reason
from workerd.store import claims, intervals, job_control, nodes, requests, schedule_control, schedules, ticks
from workerd.store.base import Store

EVERY_MINUTE = ScheduleConfig(cron="* * * * *", timezone="Europe/Berlin")
T = ticks.Fired
MAIL = schedules.short_form("mail", ScheduleConfig(cron="* * * * *"))


def upsert(store: Store, **given: ScheduleConfig) -> list[str]:
    return store.run(lambda tx: schedule_control.upsert(tx, given))


def tick(
    store: Store,
    name: str,
    moment: int,
    *,
    overlap: Overlap = "allow",
    workflow: bool = False,
    void: int | None = None,
) -> ticks.Tick:
    schedule = schedules.short_form(name, ScheduleConfig(overlap=overlap), workflow=workflow)
    return store.run(lambda tx: ticks.tick(tx, schedule, moment, void=void))


def hour_ago(store: Store, name: str) -> int:
    """Let the schedule have been dealt with up to an hour ago, so that ticks since then are due."""
    moment = last_tick(store, name) - 3600 * SECOND
    s.sql(store, "UPDATE workerd_schedules SET last_tick = %s WHERE name = %s", to_text(moment), name)
    return moment


def listed(store: Store) -> dict[str, schedules.ScheduleRow]:
    return {row.name: row for row in store.read(schedules.list_)}


def last_tick(store: Store, name: str) -> int:
    moment = listed(store)[name].last_tick
    assert moment is not None
    return moment


# -- cron --------------------------------------------------------------------------------------


def test_a_schedule_that_another_program_padded_is_found_and_fires(store: Store) -> None:
    """MySQL takes both names for one; SQLite has two schedules."""
    s.sql(
        store,
        "INSERT INTO workerd_schedules (name, kind, expression) VALUES (%s, 'cron', '1 1 1 1 *')",
        "h ",
    )
    upsert(store, h=EVERY_MINUTE)
    row = store.read(lambda tx: schedules.find_all(tx, ["h"]))["h"]
    assert row.expression == "* * * * *"
    assert row.last_tick is not None
    assert tick(store, "h", row.last_tick + 60 * SECOND).fired is T.FIRED


def test_a_tick_fires_once(store: Store) -> None:
    """The job's `run_at` is its tick; the same or an earlier tick changes nothing."""
    upsert(store, mail=EVERY_MINUTE)
    moment = hour_ago(store, "mail") + SECOND
    first = tick(store, "mail", moment)
    assert first.fired is T.FIRED
    assert first.job is not None
    assert s.job(store, first.job).row.run_at == moment
    assert tick(store, "mail", moment).fired is T.TAKEN
    assert tick(store, "mail", moment - SECOND).fired is T.TAKEN
    assert (last_tick(store, "mail"), listed(store)["mail"].last_job) == (moment, first.job)
    assert s.value(store, "SELECT COUNT(*) FROM workerd_jobs") == 1


def test_many_nodes_fire_each_tick_once(store: Store, store_url: str, opened: s.Opening) -> None:
    """Three nodes that meet at the same 20 ticks make 20 jobs."""
    upsert(store, mail=EVERY_MINUTE)
    begin = hour_ago(store, "mail")
    meet = threading.Barrier(3)
    fired: list[bytes | None] = []

    def node(by: Store) -> None:
        for n in range(1, 21):
            meet.wait(20)
            done = by.run(lambda tx, n=n: ticks.tick(tx, MAIL, begin + n * SECOND))
            fired.append(done.job)

    threads = [threading.Thread(target=node, args=(opened(store_url),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [job for job in fired if job is not None]
    assert len(made) == len(set(made)) == s.value(store, "SELECT COUNT(*) FROM workerd_jobs") == 20


def test_overlap_skips_or_holds_a_tick(store: Store) -> None:
    """While the last run is not over `skip` drops the tick, `queue` keeps it, `allow` does not look."""
    upsert(store, mail=EVERY_MINUTE)
    begin = hour_ago(store, "mail")
    first = tick(store, "mail", begin + 1 * SECOND)
    assert tick(store, "mail", begin + 2 * SECOND, overlap="queue").fired is T.HELD
    assert last_tick(store, "mail") == begin + 1 * SECOND
    assert tick(store, "mail", begin + 2 * SECOND, overlap="skip").fired is T.SKIPPED
    assert (last_tick(store, "mail"), listed(store)["mail"].last_job) == (begin + 2 * SECOND, first.job)
    s.claims(store, "mail")
    assert tick(store, "mail", begin + 3 * SECOND, overlap="skip").fired is T.SKIPPED
    assert tick(store, "mail", begin + 4 * SECOND, overlap="allow").fired is T.FIRED
    s.finish(store, "mail", Status.RETRY)
    assert tick(store, "mail", begin + 5 * SECOND, overlap="queue").fired is T.HELD
    s.finish(store, "mail")
    assert tick(store, "mail", begin + 5 * SECOND, overlap="queue").fired is T.FIRED


def test_a_workflow_on_a_cron_makes_requests(store: Store) -> None:
    """Its tick is a request; overlap looks at the request's end."""
    steps = s.workflow("sync", "a", schedule=EVERY_MINUTE)
    upsert(store, sync=EVERY_MINUTE)
    begin = hour_ago(store, "sync")
    first = tick(store, "sync", begin + SECOND, workflow=True)
    assert first.job is not None
    store.run(lambda tx: requests.pickup(tx, {"sync": steps}, 10))
    assert tick(store, "sync", begin + 2 * SECOND, workflow=True, overlap="queue").fired is T.HELD
    s.finish(store, "a", reason=Reason.IGNORED)
    assert s.request(store, first.job)[0].status == "completed"
    row = listed(store)["sync"]
    assert (row.last_status, row.last_end is not None) == ("completed", True)
    assert tick(store, "sync", begin + 2 * SECOND, workflow=True, overlap="queue").fired is T.FIRED


def test_a_paused_schedule_does_not_fire(store: Store) -> None:
    """The pause records who set it and survives a new configuration; resume continues from now."""
    upsert(store, mail=EVERY_MINUTE)
    moment = last_tick(store, "mail") + SECOND
    store.run(lambda tx: schedule_control.pause(tx, "mail", "ann"))
    assert tick(store, "mail", moment).fired is T.PAUSED
    upsert(store, mail=ScheduleConfig(cron="*/5 * * * *"))
    row = listed(store)["mail"]
    assert (row.paused_by, row.expression, row.timezone) == ("ann", "*/5 * * * *", "UTC")
    assert store.run(lambda tx: schedule_control.resume(tx, "mail")) is True
    assert store.run(lambda tx: schedule_control.resume(tx, "mail")) is False
    assert last_tick(store, "mail") >= row.paused_at  # type: ignore[operator]
    assert tick(store, "mail", last_tick(store, "mail") + SECOND).fired is T.FIRED


def test_run_now_fires_beside_the_ticks(store: Store) -> None:
    """A manual run replaces no tick."""
    upsert(store, mail=EVERY_MINUTE)
    begin = last_tick(store, "mail")
    job_id = store.run(lambda tx: schedule_control.run_now(tx, "mail"))
    assert s.status(store, job_id) == "new"
    assert last_tick(store, "mail") == begin
    with pytest.raises(NotFound):
        store.run(lambda tx: schedule_control.run_now(tx, "none"))


def test_an_unchanged_configuration_changes_nothing(store: Store) -> None:
    """A restart loses no tick; a new expression starts now."""
    assert upsert(store, mail=EVERY_MINUTE, sync=ScheduleConfig(cooler=30.0)) == ["mail", "sync"]
    begin = last_tick(store, "mail")
    s.sql(store, "UPDATE workerd_schedules SET last_tick = '2026-01-01 00:00:00'")
    assert upsert(store, mail=EVERY_MINUTE, sync=ScheduleConfig(cooler=30.0)) == []
    assert last_tick(store, "mail") < begin
    assert upsert(store, mail=ScheduleConfig(cron="0 * * * *")) == ["mail"]
    assert last_tick(store, "mail") >= begin


def test_what_is_configured_nowhere_is_retired(store: Store) -> None:
    """Only when every live node has reported its schedules, and none has it."""
    upsert(store, mail=EVERY_MINUTE, sync=ScheduleConfig(cooler=30.0), old=ScheduleConfig(cooler=30.0))
    store.run(lambda tx: intervals.ensure_next(tx, "old", 30.0))

    def node(name: str, info: object) -> None:
        told = None if info is None else msgspec.json.encode(info)
        record = nodes.NodeRecord(id=name.encode().ljust(16, b"-"), name=name, info=told)
        store.run(lambda tx: nodes.register(tx, record, 60.0))

    def orphans() -> list[str]:
        return store.read(lambda tx: schedule_control.orphans(tx, ["mail"]))

    assert orphans() == ["old", "sync"]
    node("two", {"schedules": ["sync"]})
    assert orphans() == ["old"]
    node("three", None)
    assert orphans() == []
    store.run(lambda tx: schedule_control.retire(tx, ["old"]))
    assert sorted(listed(store)) == ["mail", "sync"]
    assert s.value(store, "SELECT COUNT(*) FROM workerd_jobs") == 0


def test_the_configurations_schedules() -> None:
    """Handlers and workflows that recur, by name."""
    beat = HandlerConfig(name="beat", call="x:y", pool="p", schedule=ScheduleConfig(cooler=1.5))
    plain = HandlerConfig(name="plain", call="x:y", pool="p")
    config = Config(
        pools={"p": PoolConfig(name="p", handlers=(beat, plain))},
        workflows={"sync": s.workflow("sync", "plain", schedule=EVERY_MINUTE)},
    )
    assert schedules.wanted(config) == {
        "beat": schedules.short_form("beat", beat.schedule),
        "sync": schedules.short_form("sync", EVERY_MINUTE, workflow=True),
    }
    assert schedules.described(beat.schedule) == ("cooler", "1.5s", "UTC")
    assert schedules.described(EVERY_MINUTE) == ("cron", "* * * * *", "Europe/Berlin")


# -- coolers of handlers -----------------------------------------------------------------------

HOUR = 3600 * SECOND


def live_rows(store: Store, name: str) -> int:
    return int(
        s.value(
            store,
            "SELECT COUNT(*) FROM workerd_jobs WHERE handler = %s AND unique_key = %s"
            " AND status IN ('new','scheduled','inprogress')",
            name,
            COOLER_KEY,
        )
    )


def test_many_nodes_begin_one_chain(store: Store, store_url: str, opened: s.Opening) -> None:
    """The first node inserts the row; there is never a second one."""
    upsert(store, beat=ScheduleConfig(cooler=1.0))
    meet = threading.Barrier(3)
    made: list[bool] = []

    def node(by: Store) -> None:
        for _ in range(10):
            meet.wait(20)
            made.append(by.run(lambda tx: intervals.ensure_next(tx, "beat", 1.0)))

    threads = [threading.Thread(target=node, args=(opened(store_url),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(made), live_rows(store, "beat")) == (1, 1)


@pytest.mark.parametrize("ending", [Status.COMPLETED, Status.FAILURE, Status.CANCELLED])
def test_every_end_of_a_run_is_followed_by_the_next(store: Store, ending: Status) -> None:
    """The closing transaction inserts the next row, due the pause after the end."""
    upsert(store, beat=ScheduleConfig(cooler=3600.0))
    store.run(lambda tx: intervals.ensure_next(tx, "beat", 3600.0))
    (claim,) = s.finish(store, "beat", ending, next_run_us=HOUR)
    row = listed(store)["beat"]
    assert (row.last_job, row.last_status, row.next_at) == (claim.id, ending, (row.last_end or 0) + HOUR)
    assert live_rows(store, "beat") == 1
    shown = documents.schedule(row)
    assert (shown["kind"], shown["last_status"], shown["next_at"] is not None) == ("cooler", ending, True)


def test_a_broken_chain_goes_on_after_its_pause(store: Store) -> None:
    """A run that ended without a next one does not begin again at once."""
    upsert(store, beat=ScheduleConfig(cooler=3600.0))
    store.run(lambda tx: intervals.ensure_next(tx, "beat", 3600.0))
    s.finish(store, "beat", Status.FAILURE, reason=Reason.LOST)
    assert live_rows(store, "beat") == 0
    assert store.run(lambda tx: intervals.ensure_next(tx, "beat", 3600.0)) is True
    row = listed(store)["beat"]
    assert row.next_at == (row.last_end or 0) + HOUR


def test_a_run_by_hand_moves_the_waiting_one(store: Store) -> None:
    """It is the same row, now; while it runs there is nothing to move."""
    upsert(store, beat=ScheduleConfig(cooler=3600.0))
    store.run(lambda tx: intervals.ensure_next(tx, "beat", 3600.0))
    s.finish(store, "beat", next_run_us=HOUR)
    moved = store.run(lambda tx: schedule_control.run_now(tx, "beat"))
    (claim,) = s.claims(store, "beat")
    assert claim.id == moved
    with pytest.raises(Conflict, match="already running"):
        store.run(lambda tx: schedule_control.run_now(tx, "beat"))
    s.close(store, [s.outcome(claim, next_run_us=HOUR)])
    assert listed(store)["beat"].next_at is not None


def test_a_paused_chain_waits_for_resume(store: Store) -> None:
    """The waiting row goes, a running one ends without a next; resume starts it now."""
    upsert(store, beat=ScheduleConfig(cooler=0.0))
    store.run(lambda tx: intervals.ensure_next(tx, "beat", 0.0))
    (claim,) = s.claims(store, "beat")
    store.run(lambda tx: schedule_control.pause(tx, "beat", "ann"))
    s.close(store, [s.outcome(claim, next_run_us=0)])
    assert live_rows(store, "beat") == 0
    assert store.run(lambda tx: intervals.ensure_next(tx, "beat", 0.0)) is False
    store.run(lambda tx: schedule_control.run_now(tx, "beat"))
    assert len(s.finish(store, "beat", next_run_us=0)) == 1
    assert live_rows(store, "beat") == 0
    store.run(lambda tx: schedule_control.resume(tx, "beat"))
    assert len(s.claims(store, "beat")) == 1


def test_a_pause_leaves_no_history_without_an_end(store: Store) -> None:
    """A run that was lost, and waits for its second attempt, is cancelled and not removed."""
    upsert(store, beat=ScheduleConfig(cooler=0.0))
    store.run(lambda tx: intervals.ensure_next(tx, "beat", 0.0))
    (claim,) = s.finish(store, "beat", Status.RETRY, reason=Reason.LOST, next=NextAttempt(HOUR, 0, 0, 1))
    assert live_rows(store, "beat") == 1
    store.run(lambda tx: schedule_control.pause(tx, "beat", "ann"))
    assert live_rows(store, "beat") == 0
    found = s.job(store, claim.id)
    assert [(a.status, a.reason) for a in found.attempts] == [("retry", "lost"), ("cancelled", "cancelled")]


def test_a_changed_cooler_holds_at_once(store: Store) -> None:
    """The run that waits for the end of the old pause waits for the new one; with a cron it is gone."""
    upsert(store, beat=ScheduleConfig(cooler=3600.0))
    store.run(lambda tx: intervals.ensure_next(tx, "beat", 3600.0))
    s.finish(store, "beat", next_run_us=HOUR)
    assert upsert(store, beat=ScheduleConfig(cooler=60.0)) == ["beat"]
    assert store.run(lambda tx: intervals.ensure_next(tx, "beat", 60.0)) is True
    row = listed(store)["beat"]
    assert row.next_at == (row.last_end or 0) + 60 * SECOND
    upsert(store, beat=EVERY_MINUTE)
    assert live_rows(store, "beat") == 0


# -- coolers of workflows ----------------------------------------------------------------------

SYNC = s.workflow("sync", "a", "b<a", schedule=ScheduleConfig(cooler=3600.0))


def start(store: Store) -> requests.PickedUp:
    return store.run(lambda tx: requests.start_recurring(tx, SYNC))


def began(store: Store) -> bytes:
    """Begin the chain and its first run; the request's id."""
    upsert(store, sync=SYNC.schedule)
    assert start(store).picked_up == 0
    assert start(store) == requests.PickedUp(1, {"a"})
    row = store.read(lambda tx: intervals.live_run(tx, "sync"))
    assert row is not None
    assert row.status is Status.INPROGRESS
    return row.id


def test_a_recurring_workflow_runs_again_after_its_end(store: Store) -> None:
    """One row stands for the run, is closed with its request, and the next waits for the pause."""
    request_id = began(store)
    assert start(store) == requests.PickedUp(0, set())
    s.finish(store, "a")
    assert live_rows(store, "sync") == 1
    s.finish(store, "b")
    row = s.request(store, request_id)[0]
    run = store.read(lambda tx: intervals.live_run(tx, "sync"))
    assert row.status == "completed"
    assert run is not None
    assert (run.status, run.run_at) == (Status.SCHEDULED, (row.completed_at or 0) + HOUR)
    assert s.status(store, request_id) == "completed"
    assert start(store).picked_up == 0


def test_the_row_of_a_run_is_not_retried(store: Store) -> None:
    """Its attempt would never be claimed, and would block the next run."""
    request_id = began(store)
    store.run(lambda tx: schedule_control.pause(tx, "sync", "ann"))
    s.finish(store, "a", Status.FAILURE, reason=Reason.ERROR)
    assert live_rows(store, "sync") == 0
    with pytest.raises(Conflict, match="workerd schedules run sync"):
        store.run(lambda tx: job_control.retry(tx, request_id))
    store.run(lambda tx: schedule_control.resume(tx, "sync"))
    assert start(store).picked_up == 1


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [(Status.FAILURE, Reason.ERROR, "failed"), (Status.COMPLETED, Reason.IGNORED, "completed")],
)
def test_an_error_ends_the_run_and_not_the_chain(
    store: Store, status: Status, reason: Reason, expected: str
) -> None:
    """The first error ends that run, an ignored one quietly; the next run is its retry."""
    request_id = began(store)
    (claim,) = s.finish(store, "a", status, reason=reason)
    assert s.request(store, request_id)[0].status == expected
    assert live_rows(store, "sync") == 1
    with pytest.raises(Conflict, match="schedules run sync"):
        store.run(lambda tx: job_control.retry(tx, claim.id))


def test_a_submitted_run_begins_at_once_and_alone(store: Store) -> None:
    """It takes the place of the waiting run; while one runs, it waits for its end."""
    first = began(store)
    by_hand = store.run(lambda tx: requests.submit(tx, "sync", b'{"x":1}')).id
    assert start(store).picked_up == 0
    s.finish(store, "a")
    s.finish(store, "b")
    assert s.request(store, first)[0].status == "completed"
    assert start(store).picked_up == 1
    row = s.request(store, by_hand)[0]
    assert (row.status, row.params) == ("inprogress", b'{"x":1}')
    assert live_rows(store, "sync") == 1
    s.finish(store, "a")
    s.finish(store, "b")
    run = store.read(lambda tx: intervals.live_run(tx, "sync"))
    assert run is not None
    assert run.run_at == (s.request(store, by_hand)[0].completed_at or 0) + HOUR


def test_cancelling_the_run_goes_on_with_the_chain(store: Store) -> None:
    """By its request or by its row, the run is cancelled and the next one waits."""
    request_id = began(store)
    assert store.run(lambda tx: job_control.cancel(tx, request_id)) == "ended"
    assert (s.request(store, request_id)[0].status, s.status(store, request_id)) == ("cancelled", "cancelled")
    assert live_rows(store, "sync") == 1


@pytest.mark.parametrize("left", ["no request", "ended", "queuing", "no row"])
def test_a_workflows_chain_is_mended(store: Store, left: str) -> None:
    """Whatever was left behind, there is one live row, and a run follows."""
    request_id = began(store)
    if left == "no request":
        s.sql(store, "DELETE FROM workerd_requests")
    elif left == "ended":
        s.sql(store, "UPDATE workerd_requests SET status = 'failed', completed_at = created_at")
    elif left == "queuing":
        s.sql(store, "UPDATE workerd_requests SET status = 'queuing'")
        s.sql(store, "DELETE FROM workerd_jobs WHERE request_id IS NOT NULL")
    else:
        s.sql(store, "DELETE FROM workerd_jobs WHERE id = %s", request_id)
    start(store)
    assert live_rows(store, "sync") == 1
    if left == "queuing":
        assert s.states(store, request_id) == ("inprogress", {"a": "new"})


def test_many_nodes_never_run_a_recurring_workflow_twice(
    store: Store, store_url: str, opened: s.Opening
) -> None:
    """Three nodes start, end and submit runs at the same moments; there is one run at a time."""
    eager = s.workflow("sync", "a", schedule=ScheduleConfig(cooler=0.0))
    upsert(store, sync=eager.schedule)
    meet = threading.Barrier(3)
    overlaps: list[int] = []

    def node(by: Store, number: int) -> None:
        mine = claims.NodeIdent(bytes([number]) * 16, str(number))
        for n in range(15):
            meet.wait(20)
            if n % 5 == number:
                by.run(lambda tx: requests.submit(tx, "sync", b"{}"))
            by.run(lambda tx: requests.start_recurring(tx, eager))
            running = by.read(
                lambda tx: tx.one("SELECT COUNT(*) FROM workerd_requests WHERE status = 'inprogress'")
            )
            overlaps.append(int(running[0]) if running else 0)
            s.close(by, [s.outcome(claim) for claim in s.claims(by, "a", node=mine)], mine)

    threads = [threading.Thread(target=node, args=(opened(store_url), n)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(overlaps) == 1
    assert int(s.value(store, "SELECT COUNT(*) FROM workerd_requests WHERE status = 'completed'")) > 5
    assert wf.RequestStatus.FAILED not in {
        r.status for r in store.read(lambda tx: requests.list_(tx, limit=200)).rows
    }


@pytest.mark.parametrize(
    ("cooler", "text"),
    [
        (30 * 86400.0, "2592000s"), (36500 * 86400.0, "3153600000s"), (1_000_000.0, "1000000s"),
        (123456.789, "123456.789s"), (0.00005, "0.00005s"), (30.0, "30s"), (0.0, "0s"),
    ],
)  # fmt: skip
def test_the_pause_of_an_interval_is_stored_exactly(store: Store, cooler: float, text: str) -> None:
    """However long it is; what is read is what was set."""
    given = NamedSchedule(name="x", handler="h", cooler=cooler)
    store.run(lambda tx: schedule_control.set_(tx, given))
    row = listed(store)["x"]
    assert row.expression == text
    assert schedules.definition(row) == given


@pytest.mark.parametrize(
    ("stored", "cooler"), [("2.592e+06s", 2_592_000.0), ("1e+06s", 1_000_000.0), ("5e-05s", 0.00005)]
)
def test_a_pause_with_an_exponent_is_read(store: Store, stored: str, cooler: float) -> None:
    """Earlier versions wrote these."""
    upsert(store, x=NamedSchedule(name="x", handler="h", cooler=cooler))
    s.sql(store, "UPDATE workerd_schedules SET expression = %s", stored)
    row = listed(store)["x"]
    assert schedules.definition(row).cooler == cooler
    assert ticks.pause_us(row.expression) == round(cooler * SECOND)


@pytest.mark.parametrize("cooler", [30 * 86400.0, 123456.789])
def test_a_long_pause_of_the_key_is_not_taken_for_one_of_the_class(store: Store, cooler: float) -> None:
    """Nor one with more than six digits."""
    upsert(store, sync=ScheduleConfig(cooler=cooler))
    store.run(lambda tx: intervals.ensure_next(tx, "sync", cooler))
    s.finish(store, "sync", next_run_us=round(cooler * SECOND))
    assert listed(store)["sync"].own_pause_s is None


def test_a_pause_that_the_class_decided_is_told_from_that_of_the_key(store: Store) -> None:
    """By the waiting run; after a crash or a change that run counts from the end of the last one."""
    store.run(lambda tx: schedule_control.upsert(tx, {"sync": ScheduleConfig(cooler=30.0)}))

    def own_pause() -> float | None:
        return store.read(schedules.list_)[0].own_pause_s

    for pause_s, expected in ((30.0, None), (12.5, 12.5)):
        store.run(lambda tx: intervals.make_due(tx, "sync") or intervals.ensure_next(tx, "sync", 30.0))
        assert own_pause() is None, "it is due now"
        (claim,) = s.claims(store, "sync")
        s.close(store, [s.outcome(claim, next_run_us=int(pause_s * SECOND))])
        assert own_pause() == expected
    s.sql(store, "DELETE FROM workerd_jobs WHERE status = 'scheduled'")
    store.run(lambda tx: intervals.ensure_next(tx, "sync", 30.0))
    assert own_pause() is None
