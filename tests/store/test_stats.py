"""Figures for scalers, on both engines."""

from __future__ import annotations

import msgspec
import pytest

from tests.support import storing
from workerd import clock
from workerd.clock import SECOND
from workerd.job import Status
from workerd.store import nodes, stats
from workerd.store.base import Store
from workerd.store.nodes import HandlerFigures, NodeInfo, NodeRecord
from workerd.store.stats import HandlerStats

HOUR = 3600 * SECOND


def figures(store: Store, *names: str) -> dict[str, HandlerStats]:
    return store.read(lambda tx: stats.by_handler(tx, names))


def since(store: Store, handler: str, seconds: int, where: str = "1 = 1") -> None:
    """Date its rows back."""
    store.run(
        lambda tx: tx.execute(
            f"UPDATE workerd_jobs SET run_at = %s WHERE handler = %s AND {where}",
            (clock.to_text(tx.now - seconds * SECOND), handler),
        )
    )


def test_jobs_are_due_scheduled_or_running(store: Store) -> None:
    """Of each handler apart; those that came are due or running; what is scheduled comes later."""
    for _ in range(3):
        storing.enqueue(store, "mail")
    storing.enqueue(store, "mail", delay=HOUR)
    storing.enqueue(store, "mail", priority=-5)
    storing.enqueue(store, "print", delay=HOUR)
    storing.claims(store, "mail", 1)
    found = figures(store, "mail", "print", "none")
    mail = found["mail"]
    assert (mail.due, mail.scheduled, mail.running, mail.came) == (3, 1, 1, 4)
    assert found["print"] == HandlerStats(scheduled=1)
    assert found["none"] == HandlerStats()
    assert figures(store) == {}


def test_the_oldest_due_job_is_found_whatever_its_priority(store: Store) -> None:
    """It came before the last minute, so that it does not count as one that comes."""
    for priority in (-3, 0, 7):
        storing.enqueue(store, "mail", priority=priority)
    since(store, "mail", 500, "priority = 7")
    since(store, "mail", 59, "priority = 0")
    mail = figures(store, "mail")["mail"]
    assert mail.oldest is not None
    assert 500 <= (store.read(lambda tx: tx.now) - mail.oldest) / SECOND < 530
    assert mail.came == 2


def test_rows_whose_time_has_come_are_due_while_no_node_lives(store: Store) -> None:
    """So that a scaler starts the first one."""
    storing.enqueue(store, "mail", delay=HOUR)
    storing.enqueue(store, "mail", delay=HOUR)
    ident = storing.enqueue(store, "mail", delay=HOUR)
    store.run(
        lambda tx: tx.execute(
            "UPDATE workerd_jobs SET run_at = %s WHERE id = %s",
            (clock.to_text(tx.now - 10 * SECOND), ident),
        )
    )
    mail = figures(store, "mail")["mail"]
    assert (mail.due, mail.scheduled) == (1, 2)
    assert mail.oldest is not None


def test_a_further_attempt_does_not_come_again(store: Store) -> None:
    """It is due, though."""
    storing.enqueue(store, "mail")
    storing.finish(store, "mail", Status.RETRY)
    mail = figures(store, "mail")["mail"]
    assert (mail.due + mail.scheduled, mail.came) == (1, 0)


def test_what_living_nodes_publish_is_added_up(store: Store) -> None:
    """A node whose lease has expired does not count, nor does one that says nothing."""
    said = msgspec.json.encode(NodeInfo(handlers={"mail": HandlerFigures(workers=2, came=60, ended=30)}))
    for number, (lease, info) in enumerate([(30.0, said), (30.0, said), (-1.0, said), (30.0, b"{}")]):
        node = NodeRecord(id=bytes([number]) * 16, name=f"n{number}", info=info)
        store.run(lambda tx, node=node, lease=lease: nodes.register(tx, node, lease))  # type: ignore[misc]
    storing.enqueue(store, "mail")
    assert figures(store, "mail", "print")["mail"].came == 121
    mail = figures(store, "mail")["mail"]
    assert (mail.workers, mail.ended) == (4, 60)
    assert store.read(stats.of_nodes) == {"mail": HandlerFigures(workers=4, came=120, ended=60)}


def test_counts_end_at_their_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is bounded."""
    for _ in range(5):
        storing.enqueue(store, "mail")
    monkeypatch.setattr(stats, "MAX_COUNT", 3)
    assert figures(store, "mail")["mail"].due == 3


def test_many_handlers_are_read_in_parts(store: Store) -> None:
    """A statement takes no more."""
    names = [f"h{n}" for n in range(stats.MAX_PARTS + 7)]
    for name in (names[0], names[-1]):
        storing.enqueue(store, name)
        storing.claims(store, name, 1)
        storing.enqueue(store, name)
    found = figures(store, *names)
    assert [name for name, one in found.items() if (one.due, one.running) == (1, 1)] == [names[0], names[-1]]
