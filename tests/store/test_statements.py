"""What a job without limits and groups costs: no statement is there for those of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.support.storing import NODE, enqueue, outcome
from workerd.ingester import writer
from workerd.store import claims
from workerd.store.base import Store, Tx


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of all transactions, as they are asked for."""
    found: list[str] = []

    def spy(name: str, texts: Callable[..., Sequence[str]]) -> None:
        real = getattr(Tx, name)

        def call(tx: Tx, *arguments: Any, **more: Any) -> Any:
            found.extend(texts(*arguments))
            return real(tx, *arguments, **more)

        monkeypatch.setattr(Tx, name, call)

    for name in ("execute", "execute_last", "query", "one"):
        spy(name, lambda sql, *_: [sql])
    spy("queries", lambda *asked: [sql for sql, _ in asked])
    return found


def test_a_job_without_a_limit_costs_no_statement_more(store: Store, statements: list[str]) -> None:
    """A claim of plain jobs asks two things and writes one; closing them writes."""
    for _ in range(5):
        enqueue(store, "h")
    store.run(lambda tx: claims.claim(tx, "h", 1, NODE))  # makes the row of the handler
    statements.clear()
    batch = store.run(lambda tx: claims.claim(tx, "h", 3, NODE))
    assert len(batch.claims) == 3
    assert [text.split()[0] for text in statements][:2] == ["SELECT", "SELECT"]
    assert len(statements) <= 3
    store.run(lambda tx: writer.close(tx, [outcome(claim) for claim in batch.claims], NODE.id))
    assert len(statements) <= 3 + len(batch.claims)
    of_limits = ("workerd_slots", "workerd_rates", "group_key")
    assert not [text for text in statements if any(word in text for word in of_limits)]
