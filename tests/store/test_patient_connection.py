"""A connection over a slow line: what moves is waited for, what does not move is lost."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pymysql
import pytest

from tests.support.interrupting import Interrupted
from tests.support.servers import FAST, DatabaseServer
from tests.support.slow_line import slow_line
from workerd.errors import StoreAway
from workerd.store.base import Store
from workerd.store.mysql_session import MySQLSession

LIMIT_S = 0.3
BYTES_S = 200_000

Opened = Callable[..., Store]


@pytest.fixture
def tcp_url(mysql_server: DatabaseServer) -> Iterator[str]:
    """The URL of a migrated database over TCP."""
    if not mysql_server.private:
        pytest.skip("another's server need not listen here")
    name = mysql_server.new_database()
    yield mysql_server.url(name, tcp=True)
    mysql_server.drop_database(name)


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


def test_results_arrive_whole_over_tls(opened: Opened) -> None:
    """The driver reads its first packet before TLS and the rest within it; no byte is lost between them."""
    openssl = shutil.which("openssl")
    if openssl is None or "MYSQLD" in os.environ:
        pytest.skip("needs the command openssl, and MariaDB's options")
    folder = Path(tempfile.mkdtemp(prefix="tls."))  # not below tmp_path: the server's user may not go there
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    key.chmod(0o644)
    folder.chmod(0o755)
    server = DatabaseServer((*FAST, f"--ssl-cert={certificate}", f"--ssl-key={key}"))
    try:
        url = server.start().url(server.new_database(), tcp=True) + "?ssl=required&ssl_verify=false"
        store = opened(url)
        cipher = store.read(lambda tx: tx.one("SHOW STATUS LIKE 'Ssl_cipher'"))
        assert cipher is not None
        assert cipher[1], "the connection is not encrypted"
        for size in (0, 1, 8191, 8192, 8193, 300_000):
            text = b"y" * size
            assert store.read(lambda tx, t=text: tx.one("SELECT %s", (t.decode(),))) == (text,)
    finally:
        server.remove()
        shutil.rmtree(folder)


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
