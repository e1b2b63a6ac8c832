"""A connection over a slow line: what moves is waited for, what does not move is lost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, cast

import pymysql
import pytest

from tests.support.interrupting import Interrupted
from tests.support.slow_line import slow_line
from workerd.errors import StoreAway
from workerd.store.base import Store
from workerd.store.mysql_session import MySQLSession

LIMIT_S = 0.6
BYTES_S = 100_000

Opened = Callable[..., Store]


@pytest.mark.slow
def test_a_statement_and_a_result_may_take_longer_than_the_time_limit(tcp_url: str, opened: Opened) -> None:
    """Each needs twice the limit and more; progress is shown all the while."""
    opened(tcp_url).migrate()
    with slow_line(tcp_url, BYTES_S) as line:
        store = opened(line.url(tcp_url), timeout=LIMIT_S)
        moments = [time.monotonic()]
        store.on_progress = lambda: moments.append(time.monotonic())
        store.read(lambda tx: tx.now)
        text = "x" * 150_000
        began = time.monotonic()
        found = store.run(lambda tx: tx.one("SELECT %s", (text,)))
        assert found == (text.encode(),)
        assert time.monotonic() - began > 4 * LIMIT_S, "the line was not slow"
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        assert len(gaps) > 4
        assert max(gaps) < 4 * LIMIT_S


def test_a_server_that_sends_no_byte_is_lost_after_the_time_limit(tcp_url: str, opened: Opened) -> None:
    """However much was sent before, the wait is limited; the role shows progress until then."""
    with slow_line(tcp_url, BYTES_S) as line:
        store = opened(line.url(tcp_url), timeout=LIMIT_S)
        calls: list[float] = []
        store.on_progress = lambda: calls.append(time.monotonic())
        store.read(lambda tx: tx.now)
        calls.clear()
        line.bytes_s = 0
        with pytest.raises(StoreAway):
            store.read(lambda tx: tx.one("SELECT %s", ("x" * 2000,)))
        assert calls
        line.bytes_s = BYTES_S
        assert store.read(lambda tx: tx.one("SELECT 1")) == (1,)


class _Cut:
    """A socket that raises in the middle of what it sends; `sent`: how often it was asked to send."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        self.sent += 1
        self._sock.send(data[:7])
        raise Interrupted


@pytest.mark.parametrize("statements", [1, 2])
def test_nothing_is_sent_after_a_statement_that_was_cut_short(mysql: Store, statements: int) -> None:
    """Not even where closing was cut short too: the server would take it for the rest of the statement."""
    mysql.read(lambda tx: tx.now)
    link = cast(MySQLSession, mysql._session).link
    cut = link._sock = _Cut(link._sock)
    close, link._force_close = link._force_close, lambda: None
    asked = [b"SELECT 1"] * statements
    with pytest.raises(Interrupted):
        link.ask(asked[0]) if statements == 1 else link.pipeline(asked)
    assert link.is_unusable()
    for again in (lambda: link.ask(asked[0]), lambda: link.pipeline(asked)):
        with pytest.raises(pymysql.InterfaceError):
            again()
    link._force_close = close
    link.close()
    assert cut.sent == 1
    assert mysql.read(lambda tx: tx.one("SELECT 7")) == (7,)
