"""Ticks of schedules by name: vars, params, jitter, coolers, and the history."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import storing as s
from workerd import job_spec
from workerd.clock import SECOND, to_text
from workerd.config.schedule_config import NamedSchedule, ScheduleConfig
from workerd.config.workflow_config import WorkflowConfig
from workerd.errors import Conflict, InvalidValue, NotFound
from workerd.schedule import Cron
from workerd.store import requests, schedule_control, schedules, ticks
from workerd.store.base import Store
from workerd.store.ticks import Fired


def daily(**more: Any) -> NamedSchedule:
    keys = {"handler": "report", "cron": "0 7 * * *", "vars": {"region": "eu"}, **more}
    return NamedSchedule(name="eu", **keys)


def put(store: Store, schedule: NamedSchedule) -> bool:
    return store.run(lambda tx: schedule_control.set_(tx, schedule))


def row(store: Store, name: str = "eu") -> schedules.ScheduleRow:
    return store.read(lambda tx: schedules.find(tx, name))


def tick(store: Store, schedule: NamedSchedule, moment: int, revision: int | None = None) -> ticks.Tick:
    return store.run(lambda tx: ticks.tick(tx, schedule, moment, revision=revision))


def cooler(store: Store, schedule: NamedSchedule, *, now: bool = False) -> ticks.Tick:
    return store.run(lambda tx: ticks.run_cooler(tx, schedule, now=now))


def later(store: Store, seconds: int = 3600) -> int:
    return store.read(lambda tx: tx.now) // SECOND * SECOND + seconds * SECOND


def pickup(store: Store, flow: WorkflowConfig) -> int:
    return store.run(lambda tx: requests.pickup(tx, {flow.name: flow}, 10)).picked_up


def test_the_job_of_a_tick_has_the_schedules_vars_priority_and_group(store: Store) -> None:
    """The row says all that a node needs to fire it."""
    put(store, daily(priority=-3, group="eu"))
    stored = schedules.definition(row(store))
    assert stored == daily(priority=-3, group="eu")
    made = tick(store, stored, later(store)).job
    assert made is not None
    found = s.job(store, made).row
    assert (found.handler, found.vars, found.priority, found.group_key) == (
        "report", b'{"region":"eu"}', -3, "eu"
    )  # fmt: skip


def test_the_request_of_a_tick_has_the_schedules_params(store: Store) -> None:
    """With jitter it is not picked up before its time."""
    flow = s.workflow("flow", "a")
    schedule = NamedSchedule(
        name="eu", workflow="flow", cron="0 7 * * *", params={"full": True}, jitter=3600.0
    )
    put(store, schedule)
    moment = later(store)
    made = tick(store, schedule, moment).job
    assert made is not None
    assert s.request(store, made)[0].params == b'{"full":true}'
    assert pickup(store, flow) == 0
    s.sql(store, "UPDATE workerd_requests SET begins_at = '2026-01-01 00:00:00'")
    assert pickup(store, flow) == 1


def test_jitter_is_the_same_on_every_node_and_differs_between_ticks() -> None:
    """It is within its bound."""
    schedule = daily(jitter=120.0)
    delays = [ticks.jitter_us(schedule, n * SECOND) for n in range(200)]
    assert delays == [ticks.jitter_us(daily(jitter=120.0), n * SECOND) for n in range(200)]
    assert all(0 <= delay < 120 * SECOND for delay in delays)
    assert len(set(delays)) > 150
    assert ticks.jitter_us(daily(), 0) == 0


def test_a_job_with_jitter_waits_for_its_time(store: Store) -> None:
    """Its tick stays the one of the expression."""
    put(store, daily(jitter=3600.0))
    moment = later(store)
    made = tick(store, daily(jitter=3600.0), moment).job
    assert made is not None
    assert s.job(store, made).row.run_at == moment + ticks.jitter_us(daily(jitter=3600.0), moment)
    assert row(store).last_tick == moment


def test_a_changed_schedule_does_not_fire_as_it_was(store: Store) -> None:
    """A node that has not read the change yet loses; so does one that knows a removed and set one."""
    put(store, daily())
    known = row(store).revision
    put(store, daily(vars={"region": "us"}))
    assert tick(store, daily(), later(store), known).fired is Fired.TAKEN
    assert tick(store, daily(), later(store), row(store).revision).fired is Fired.FIRED
    known = row(store).revision
    store.run(lambda tx: schedule_control.remove(tx, "eu"))
    assert tick(store, daily(), later(store, 7200), known).fired is Fired.GONE
    put(store, daily())
    assert tick(store, daily(), later(store, 7200), known).fired is Fired.TAKEN


def test_setting_the_same_again_changes_nothing(store: Store) -> None:
    """Other vars keep the ticks; other times start anew."""
    assert put(store, daily())
    tick(store, daily(), later(store))
    before = row(store)
    assert not put(store, daily())
    assert (row(store).revision, row(store).last_tick) == (before.revision, before.last_tick)
    put(store, daily(vars={}))
    assert row(store).revision > before.revision
    assert row(store).last_tick == before.last_tick
    put(store, daily(cron="0 8 * * *"))
    assert row(store).last_tick != before.last_tick


def test_a_configured_name_wins(store: Store) -> None:
    """It takes over one that was set at run time, and refuses to be set or removed."""
    put(store, daily())
    assert store.run(lambda tx: schedule_control.upsert(tx, {"eu": daily(vars={"region": "config"})})) == [
        "eu"
    ]
    assert (row(store).origin, row(store).vars) == ("config", b'{"region":"config"}')
    with pytest.raises(Conflict, match="is configured"):
        put(store, daily())
    with pytest.raises(Conflict, match="is configured"):
        store.run(lambda tx: schedule_control.remove(tx, "eu"))
    with pytest.raises(NotFound):
        store.run(lambda tx: schedule_control.remove(tx, "nope"))


def test_no_node_removes_what_was_set_at_run_time(store: Store) -> None:
    """Only configured ones can be orphans."""
    put(store, daily())
    store.run(lambda tx: schedule_control.upsert(tx, {"old": ScheduleConfig(cron="* * * * *")}))
    assert store.read(lambda tx: schedule_control.orphans(tx, [])) == ["old"]
    assert store.run(lambda tx: schedule_control.retire(tx, ["old", "eu"])) == 1
    assert row(store).origin == "api"


def test_there_is_a_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node keeps each of them."""
    monkeypatch.setattr(schedule_control, "MAX_SET", 1)
    put(store, daily())
    put(store, daily(vars={}))
    with pytest.raises(InvalidValue, match="remove some"):
        put(store, NamedSchedule(name="more", handler="h", cron="* * * * *"))


def test_the_last_20_ticks_are_kept(store: Store) -> None:
    """With what became of their jobs, the newest first; a skipped one has no job."""
    schedule = daily(overlap="skip")
    put(store, schedule)
    start = later(store)
    first = tick(store, schedule, start).job
    assert tick(store, schedule, start + SECOND).fired is Fired.SKIPPED
    past = store.read(lambda tx: ticks.history(tx, "eu"))
    assert [(p.tick, p.job_id, p.status) for p in past] == [
        (start + SECOND, None, "skipped"),
        (start, first, "scheduled"),
    ]
    for n in range(2, 30):
        tick(store, schedule, start + n * SECOND)
    past = store.read(lambda tx: ticks.history(tx, "eu"))
    assert [p.tick for p in past] == [start + n * SECOND for n in range(29, 9, -1)]
    assert s.value(store, "SELECT COUNT(*) FROM workerd_ticks") == 20
    store.run(lambda tx: schedule_control.remove(tx, "eu"))
    assert s.value(store, "SELECT COUNT(*) FROM workerd_ticks") == 0


def test_a_cooler_by_name_waits_for_the_end_of_its_run(store: Store) -> None:
    """The pause counts from there; "now" starts it earlier, but never beside a run."""
    schedule = NamedSchedule(name="eu", handler="h", cooler=60.0, vars={"a": 1})
    put(store, schedule)
    first = cooler(store, schedule)
    assert first.job is not None
    assert s.job(store, first.job).row.vars == b'{"a":1}'
    assert cooler(store, schedule) == ticks.Tick(Fired.HELD)
    assert cooler(store, schedule, now=True).fired is Fired.HELD
    with pytest.raises(Conflict, match="already running"):
        store.run(lambda tx: schedule_control.run_now(tx, "eu"))
    s.finish(store, "h")
    ended_at = s.job(store, first.job).row.finished_at
    assert ended_at is not None
    assert cooler(store, schedule) == ticks.Tick(Fired.HELD, due=ended_at + 60 * SECOND)
    s.sql(store, "UPDATE workerd_jobs SET finished_at = %s", to_text(ended_at - 61 * SECOND))
    assert cooler(store, schedule).fired is Fired.FIRED
    assert s.value(store, "SELECT COUNT(*) FROM workerd_jobs") == 2


def test_each_tick_around_a_change_of_time_fires_once(store: Store) -> None:
    """Both ways in Berlin: 02:30 is missing in spring and comes twice in autumn."""
    for day, ticks_utc in (
        ("2026-03-28", ["01:30", "01:00", "00:30"]),
        ("2026-10-24", ["00:30", "00:30", "01:30"]),
    ):
        cron = Cron("30 2 * * *", "Europe/Berlin")
        start = job_spec.clock.from_rfc3339(f"{day}T00:00:00Z")
        found = [to_text(moment)[11:16] for moment in cron.between(start, start + 3 * 86400 * SECOND, 9)]
        assert found == ticks_utc
        schedule = NamedSchedule(name=day, handler="h", cron="30 2 * * *", timezone="Europe/Berlin")
        put(store, schedule)
        s.sql(store, "UPDATE workerd_schedules SET last_tick = %s WHERE name = %s", to_text(start), day)
        for moment in cron.between(start, start + 3 * 86400 * SECOND, 9):
            assert tick(store, schedule, moment).fired is Fired.FIRED
            assert tick(store, schedule, moment).fired is Fired.TAKEN
