"""Results are read as the driver reads them, and faster."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pymysql
import pytest

from tests.support.servers import DatabaseServer
from workerd.store import mysql_results
from workerd.store.mysql_session import CONVERSIONS
from workerd.store.patient_connection import PatientConnection

MANY_ROWS = "information_schema.columns AS a, information_schema.columns AS b"
Both = tuple[PatientConnection, Any]


@pytest.fixture
def both(mysql_server: DatabaseServer) -> Iterator[Both]:
    """A connection of ours, and one of the driver's with the same settings."""
    name = mysql_server.new_database()
    parts = urlsplit(mysql_server.url(name, tcp=True))
    options: dict[str, Any] = {
        "host": parts.hostname, "port": parts.port, "database": name, "user": parts.username,
        "password": unquote(parts.password or "").encode(), "charset": "utf8mb4", "use_unicode": False,
        "conv": dict(CONVERSIONS),
    }  # fmt: skip
    ours = PatientConnection(limit_s=20.0, on_progress=lambda: None, **options)
    drivers: Any = pymysql.connect(**options)
    yield ours, drivers
    ours.close()
    drivers.close()
    mysql_server.drop_database(name)


def of_driver(connection: Any, statement: str) -> Any:
    connection.query(statement)
    return connection._result


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1, -7, 18446744073709551615, 1.5e0, 2.50, NULL, '', 'é', x'00ff', NULL",
        "SELECT CAST('2026-01-02 03:04:05.678901' AS DATETIME(6)), TIME '01:02:03', DATE '2026-01-02'",
        "SELECT REPEAT('a', 250), REPEAT('b', 251), REPEAT('c', 65535), REPEAT('d', 65536), NULL",
        "SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT NULL",
        "SELECT 1 AS n FROM DUAL WHERE 1 = 0",
        "SHOW GLOBAL VARIABLES LIKE 'max_%'",
    ],
)
def test_values_are_those_of_the_driver(both: Both, statement: str) -> None:
    """Whatever their type and length, NULL among them."""
    ours, drivers = both
    found, expected = ours.ask(statement.encode()), of_driver(drivers, statement)
    assert found.rows == expected.rows
    assert [list(map(type, row)) for row in found.rows] == [list(map(type, row)) for row in expected.rows]
    assert (found.affected_rows, found.warning_count) == (expected.affected_rows, expected.warning_count)


@pytest.mark.parametrize(
    "statement",
    [
        "SET SESSION AUTOCOMMIT = 1",
        "INSERT INTO t VALUES (7)",
        f"INSERT INTO t SELECT 1 FROM {MANY_ROWS} LIMIT 300",
        f"INSERT INTO t SELECT 1 FROM {MANY_ROWS} LIMIT 70000",
        "INSERT INTO t VALUES (SIGN(LAST_INSERT_ID(18446744073709551615)))",
        "INSERT INTO t VALUES (SIGN(LAST_INSERT_ID(251)))",
        "DROP TABLE IF EXISTS nothing_of_this_name",
    ],
)
def test_answers_without_rows_are_those_of_the_driver(both: Both, statement: str) -> None:
    """Numbers of any length, warnings, whether a transaction is open."""
    ours, drivers = both
    drivers.query("CREATE TABLE t (a BIGINT)")
    found, expected = ours.ask(statement.encode()), of_driver(drivers, statement)
    for name in ("affected_rows", "insert_id", "server_status", "warning_count", "has_next", "rows"):
        assert getattr(found, name) == getattr(expected, name), name
    assert ours.server_status == drivers.server_status


def test_a_row_may_need_several_packets(both: Both) -> None:
    """A packet has less than 16 MiB."""
    ours, _ = both
    half = 9 << 20
    statement = f"SELECT REPEAT('x', {half}), REPEAT('y', {half}), 5".encode()
    assert ours.ask(statement).rows == ((b"x" * half, b"y" * half, 5),)


def test_an_error_among_the_rows_is_raised_and_the_connection_goes_on(both: Both) -> None:
    """Also for the statements behind it."""
    ours, _ = both
    fails = (
        b"SELECT CASE n WHEN 3 THEN EXP(1000 * n) ELSE n END"
        b" FROM (SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3) AS t"
    )
    with pytest.raises(pymysql.OperationalError, match="out of range"):
        ours.ask(fails)
    failed, following = ours.pipeline([fails, b"SELECT 7"])
    assert isinstance(failed, pymysql.OperationalError)
    assert not isinstance(following, pymysql.Error)
    assert following.rows == ((7,),)


def test_a_packet_out_of_order_ends_the_connection(both: Both) -> None:
    """What follows it cannot be told apart from another answer."""
    ours, _ = both
    read, packets = ours._read_bytes, iter(range(20))

    def out_of_order(count: int) -> bytes:
        data = read(count)
        return data[:3] + b"\x63" if count == 4 and next(packets) == 2 else data

    ours._read_bytes = out_of_order  # type: ignore[method-assign]
    with pytest.raises(pymysql.OperationalError, match="Lost connection"):
        ours.ask(b"SELECT 1, 2")
    assert not ours.open


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (b"\xff\xbf\x0f#HY000The client was disconnected by the server because of inactivity.", 4031),
        (b"\x01no error", 2013),
        (b"\xff" * 2000, 2013),
    ],
    ids=["farewell", "other", "too long"],
)
def test_what_the_server_said_before_it_hung_up_is_the_error(packet: bytes, code: int) -> None:
    """MySQL numbers it 0, as it answers no statement."""
    near, far = socket.socketpair()
    with near, far, near.makefile("rb") as received:
        connection = PatientConnection(limit_s=20.0, on_progress=lambda: None, defer_connect=True)
        connection._sock, connection._rfile = near, received  # type: ignore[attr-defined]
        connection._next_seq_id = 1  # type: ignore[attr-defined]
        far.sendall(len(packet).to_bytes(3, "little") + b"\0" + packet)
        with pytest.raises(pymysql.OperationalError) as caught:
            mysql_results._packet(connection)
    assert caught.value.args[0] == code
