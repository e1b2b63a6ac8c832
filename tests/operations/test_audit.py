"""Every operation that changes something leaves its act, in its own transaction."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import storing
from workerd import operations
from workerd.config.model import Config
from workerd.errors import Conflict
from workerd.job import Status, id_text, parse_id
from workerd.job_filter import JobFilter
from workerd.operations import (
    audit,
    bulk,
    edit,
    errors,
    handlers,
    jobs,
    limits,
    request_graphs,
    requests,
    schedules,
)
from workerd.operations.actor import Actor, Role
from workerd.operations.edit import Edit
from workerd.redaction import REDACTED
from workerd.store import audit as rows
from workerd.store import handlers as stored_handlers
from workerd.store import job_control, schedule_control
from workerd.store import schedules as stored_schedules
from workerd.store.base import Store, Tx

TABLES = (
    "workerd_jobs", "workerd_requests", "workerd_handlers", "workerd_schedules", "workerd_errors",
    "workerd_rates", "workerd_audit",
)  # fmt: skip
ANN = Actor("ann", "http", Role.OPERATOR, "10.0.0.7")


def _functions() -> dict[str, Callable[..., Any]]:
    """All functions of the operations, by module and name."""
    found = {}
    for module in pkgutil.iter_modules(operations.__path__, "workerd.operations."):
        loaded = importlib.import_module(module.name)
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            if function.__module__ == module.name and not name.startswith("_"):
                found[f"{module.name.rpartition('.')[2]}.{name}"] = function
    return found


ACTING = {
    name
    for name, function in _functions().items()
    if "actor" in inspect.signature(function).parameters and not name.startswith("audit.")
} - {"bulk.change_all"}
"""The operations that take an Actor and a transaction."""
ENQUEUEING = {
    "enqueue.admit", "enqueue.admit_each", "enqueue.insert", "enqueue.insert_alone",
    "requests.submit", "request_graphs.submit", "request_graphs.submit_in_slices",
}  # fmt: skip
"""What adds rows without an act."""
PARTS = {"audit.reveal", "edit.retry_vars"}
"""The act itself, and a part of `jobs.retry`, which records it."""


def _rows(store: Store) -> list[Any]:
    return [
        sorted(map(str, store.read(lambda tx, t=table: tx.query(f"SELECT * FROM {t}")))) for table in TABLES
    ]


class Example:
    """Calls one operation; `target`: of its act."""

    def __init__(self, store: Store, config: Config) -> None:
        self.store, self.config = store, config
        self.job = storing.enqueue(store, "mail")
        self.request = parse_id(store.run(lambda tx: requests.submit(tx, "ship", b"{}")).id)
        store.run(lambda tx: schedule_control.upsert(tx, stored_schedules.wanted(config)))

    def failed(self) -> bytes:
        """The fingerprint of a failure."""
        fingerprint = bytes(range(8))
        for claim in storing.claims(self.store, "mail"):
            told = storing.outcome(claim, Status.FAILURE, error_class="E", fingerprint=fingerprint)
            storing.close(self.store, [told])
        return fingerprint

    def _of_group(self, name: str) -> tuple[Any, str]:
        failed = self.failed()
        if name == "errors.mute":
            return lambda tx: errors.mute(tx, ANN, failed, 60.0), failed.hex()
        return lambda tx: errors.resolve(tx, ANN, failed), failed.hex()

    def run(self, name: str) -> tuple[Any, str]:
        """The operation to run in a transaction, and the target of its act."""
        config = self.config
        match name:
            case "jobs.cancel":
                return lambda tx: jobs.cancel(tx, ANN, self.job), id_text(self.job)
            case "jobs.retry":
                self.store.run(lambda tx: job_control.cancel(tx, self.job))
                return lambda tx: jobs.retry(tx, ANN, self.job), id_text(self.job)
            case "requests.cancel":
                return lambda tx: requests.cancel(tx, ANN, self.request), id_text(self.request)
            case "handlers.pause":
                return lambda tx: handlers.pause(tx, ANN, config, "mail", "why"), "mail"
            case "handlers.resume":
                self.store.run(lambda tx: stored_handlers.pause(tx, "mail", "bob", None))
                return lambda tx: handlers.resume(tx, ANN, config, "mail"), "mail"
            case "schedules.pause":
                return lambda tx: schedules.pause(tx, ANN, config, "beat"), "beat"
            case "schedules.resume":
                self.store.run(lambda tx: schedule_control.pause(tx, "beat", "bob"))
                return lambda tx: schedules.resume(tx, ANN, config, "beat"), "beat"
            case "schedules.run_now":
                return lambda tx: schedules.run_now(tx, ANN, config, "beat"), "beat"
            case "errors.resolve" | "errors.mute":
                return self._of_group(name)
        return self._of_own(name)

    def _of_own(self, name: str) -> tuple[Any, str]:
        config, given = self.config, {"handler": "mail", "cron": "0 * * * *"}
        match name:
            case "edit.edit":
                return lambda tx: edit.edit(tx, ANN, config, self.job, Edit(priority=3)), id_text(self.job)
            case "bulk.change":
                search = bulk.Search(bulk.Act.CANCEL, JobFilter(handler="mail"))
                search.finish(self.store.read)
                return lambda tx: bulk.change(tx, ANN, search, search.found), "mail"
            case "requests.signal":
                graph = {"jobs": [{"name": "asked", "signal": "approved"}]}
                plan = self.store.read(lambda tx: request_graphs.checked(tx, config, graph))
                waiting = parse_id(self.store.run(lambda tx: request_graphs.submit(tx, plan)).id)
                return lambda tx: requests.signal(tx, ANN, config, waiting, "approved"), id_text(waiting)
            case "limits.unhold":
                sql = "INSERT INTO workerd_rates (limit_name, held_until) VALUES ('l', '2099-01-01 00:00:00')"
                self.store.run(lambda tx: tx.execute(sql))
                return lambda tx: limits.unhold(tx, ANN, config, "l"), "l"
            case "schedules.set_":
                return lambda tx: schedules.set_(tx, ANN, config, "nightly", given), "nightly"
            case "schedules.set_texts":
                return lambda tx: schedules.set_texts(tx, ANN, config, "nightly", given), "nightly"
            case "schedules.remove":
                self.store.run(lambda tx: schedules.set_(tx, Actor("bob", "cli"), config, "nightly", given))
                self.store.run(lambda tx: tx.execute("DELETE FROM workerd_audit"))
                return lambda tx: schedules.remove(tx, ANN, config, "nightly"), "nightly"
        raise AssertionError(f"give {name} an example here: each operation that takes an Actor has its act")


@pytest.mark.parametrize("name", sorted(ACTING))
def test_each_act_is_recorded(name: str, store: Store, config: Config) -> None:
    """One row for it; if its transaction is not committed, neither is the row."""
    work, target = Example(store, config).run(name)

    def undone(tx: Tx) -> None:
        work(tx)
        raise Conflict("undone")

    with pytest.raises(Conflict):
        store.run(undone)
    assert not store.read(audit.list_).audit
    store.run(work)
    (act,) = store.read(audit.list_).audit
    assert (act["actor"], act["role"], act["via"]) == ("ann", "operator", "http")
    assert (act["target"], act["address"]) == (target, "10.0.0.7")
    assert act["action"] in set(audit.Action)


@pytest.mark.parametrize("name", sorted(ACTING))
def test_no_act_without_its_record(
    name: str, store: Store, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the row cannot be written, the act fails."""
    work, _ = Example(store, config).run(name)
    before = _rows(store)

    def refuse(*_: Any, **__: Any) -> None:
        raise Conflict("the audit cannot be written")

    monkeypatch.setattr(rows, "insert", refuse)
    with pytest.raises(Conflict, match="audit"):
        store.run(work)
    assert _rows(store) == before


def test_what_takes_no_actor_changes_nothing() -> None:
    """Operations without an Actor have the names of look-ups; another that changes something needs one."""
    changing = ("cancel", "retry", "edit", "pause", "resume", "set", "remove", "run", "resolve", "mute",
                "signal", "reveal", "delete", "update", "insert", "admit", "submit")  # fmt: skip
    named = {
        name
        for name in _functions()
        if name.partition(".")[2].startswith(changing) and name not in {*ACTING, *PARTS}
    }
    assert named == ENQUEUEING


def test_nothing_is_recorded_of_what_changed_nothing(store: Store, config: Config) -> None:
    """A handler that was not paused is not resumed; an error group that is closed stays so."""
    assert not store.run(lambda tx: handlers.resume(tx, ANN, config, "mail"))
    assert not store.read(audit.list_).audit
    failed = Example(store, config).failed()
    first = store.run(lambda tx: errors.resolve(tx, ANN, failed))
    again = store.run(lambda tx: errors.resolve(tx, Actor("bob", "cli"), failed))
    assert (again["resolved_at"], again["resolved_by"]) == (first["resolved_at"], "ann")
    assert len(store.read(audit.list_).audit) == 1


def test_who_did_what_to_a_job(store: Store) -> None:
    """Newest first."""
    job_id = storing.enqueue(store, "mail")
    store.run(lambda tx: jobs.cancel(tx, ANN, job_id))
    store.run(lambda tx: jobs.retry(tx, Actor("cli:bob@host", "cli"), job_id))
    acts = store.read(lambda tx: audit.of_job(tx, jobs.get(tx, job_id)))
    assert [(act["actor"], act["action"]) for act in acts] == [("cli:bob@host", "retry"), ("ann", "cancel")]


@pytest.mark.parametrize(
    ("query", "recorded"),
    [
        ({"handler": "mail", "meta.token": "tok-123456"}, {"handler": "mail", "meta.token": REDACTED}),
        ({"meta": {"token": "tok-123456"}, "group": "g"}, {"meta": {"token": REDACTED}, "group": "g"}),
        ({"limit": "5"}, {"limit": "5"}),
    ],
)
def test_what_is_searched_for_in_meta_is_not_kept(
    store: Store, query: dict[str, Any], recorded: dict[str, Any]
) -> None:
    """It may be the very value that is redacted; by which keys was searched is."""
    store.run(lambda tx: audit.reveal(tx, ANN, None, query))
    (act,) = store.read(audit.list_).audit
    assert (act["action"], act["detail"]) == ("reveal", {"query": recorded})
    store.run(lambda tx: audit.reveal(tx, ANN, "x"))
    assert store.read(audit.list_).audit[0]["detail"] is None
