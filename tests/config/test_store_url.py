"""Parsing of `store.url` and its error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from workerd.config.store_url import Host, MySQLUrl, SQLiteUrl, Tls, may_be_encrypted, parse_store_url
from workerd.errors import InvalidValue


def test_an_embedded_store() -> None:
    """Four slashes: an absolute path, percent-decoded."""
    assert parse_store_url("sqlite:////var/lib/a%20b.db") == SQLiteUrl(Path("/var/lib/a b.db"))


def test_everything_that_a_mysql_url_can_say() -> None:
    """User, password, host, port and database are percent-decoded; the parameters name socket and TLS."""
    found = parse_store_url(
        "mysql://us%40er:p%3A%2F%23w@db.example:3307/jo%2Dbs?ssl_ca=/ca.pem&ssl_cert=/c&ssl_key=/k"
    )
    assert found == MySQLUrl(
        user="us@er",
        password="p:/#w",
        hosts=(Host("db.example", 3307),),
        database="jo-bs",
        tls=Tls(mode="required", ca="/ca.pem", cert="/c", key="/k", verify=True),
    )
    assert parse_store_url("mysql://u@localhost/d?unix_socket=/run/s") == MySQLUrl(
        user="u",
        password="",
        hosts=(Host("localhost", 3306),),
        database="d",
        unix_socket="/run/s",
        tls=Tls(mode="off"),
    )


def test_several_hosts_each_with_its_port() -> None:
    """In the order in which they are tried; 3306 where no port stands; IPv6 in brackets."""
    found = parse_store_url("mysql://u:p%2C@db1:3307,DB2,[::1],[fe80::1]:3308/d")
    assert isinstance(found, MySQLUrl)
    assert found.hosts == (Host("db1", 3307), Host("db2"), Host("::1"), Host("fe80::1", 3308))
    assert found.shown == "u@db1:3307,db2:3306,[::1]:3306,[fe80::1]:3308/d"
    assert found.password == "p,"
    assert found.tls.mode == "preferred"


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("mysql://u:s3cret@a,b/d?unix_socket=/run/s", "not both"),
        ("mysql://u:s3cret@a,,b/d", "before and after each ','"),
        ("mysql://u:s3cret@a:3306,a/d", "each host once"),
        ("mysql://u:s3cret@a:x,b/d", "percent-encode"),
        ("mysql://u:s3cret@a,b:70000/d", "each host a port below 65536"),
        ("mysql://u:99999/d", "percent-encode"),  # the end of a password may be behind the '/'
    ],
)
def test_a_wrong_list_of_hosts(url: str, wrong: str) -> None:
    """Each fault is named, and the password is not."""
    with pytest.raises(InvalidValue, match=wrong) as caught:
        parse_store_url(url)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "mode", "verify"),
    [
        ("", "preferred", False),
        ("?ssl=off", "off", False),
        ("?ssl=required", "required", False),
        ("?ssl_verify=true", "required", True),
        ("?ssl_ca=/ca&ssl_verify=false", "required", False),
    ],
)
def test_how_the_connection_is_encrypted(query: str, mode: str, verify: bool) -> None:
    """Another machine is asked for TLS; a certificate authority makes it a must."""
    found = parse_store_url(f"mysql://u:p@db.example/d{query}")
    assert isinstance(found, MySQLUrl)
    assert (found.tls.mode, found.tls.verify) == (mode, verify)


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u:s3cret@h/d",
        "mysql://u:s3cret@h",
        "mysql://u:s3cret@h/a/b",
        "mysql://u:s3/cret@h/d",
        "mysql://u:s3#cret@h/d",
        "mysql://u:s3?cret@h/d",
        "mysql://u:s3cret@h/d?sslca=/x",
        "mysql://u:s3cret@h/d?ssl=perhaps",
        "mysql://u:s3cret@h/d?ssl_verify=perhaps",
        "mysql://u:s3cret@h/d?ssl=off&ssl_ca=/ca",
        "mysql://u:s3cret@h/d?ssl=preferred&ssl_verify=true",
        "mysql://u:s3cret@h/d?ssl=off&ssl_verify=1",
        "sqlite://relative.db",
        "sqlite:///relative.db",
        "sqlite:////a.db?mode=ro",
        "",
    ],
)
def test_an_error_names_the_form_and_no_secret(url: str) -> None:
    """Errors name what was expected and never repeat the value."""
    with pytest.raises(InvalidValue, match=r"expected \"mysql://") as caught:
        parse_store_url(url)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "encrypted"),
    [
        ("mysql://u@db.example.org/d", True),
        ("mysql://u@db.example.org/d?ssl=off", False),
        ("mysql://u@127.0.0.1/d", False),
        ("mysql://u@127.0.0.1/d?ssl=required", True),
        ("sqlite:////var/lib/w.db", False),
    ],
)
def test_where_connections_may_use_tls(url: str, encrypted: bool) -> None:
    """There every role needs it, and it is loaded once for all."""
    assert may_be_encrypted(url) is encrypted


def test_an_address_shows_no_password() -> None:
    """Neither in repr nor in displayed URLs."""
    found = parse_store_url("mysql://u:s3cret@h:1/d")
    assert "s3cret" not in repr(found) + found.shown


def test_all_errors_of_a_url_are_reported_at_once() -> None:
    """A person corrects it in one go."""
    with pytest.raises(InvalidValue) as caught:
        parse_store_url("mysql://u:s3cret@h/a/b?ssl=foo&bogus=1#x")
    message = str(caught.value)
    for part in ("%23", "after the host", "ssl is off, preferred or required", "'bogus' is not known"):
        assert part in message
    assert "s3cret" not in message
