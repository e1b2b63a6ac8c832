"""TLS to the database: encrypted where the URL demands it, and to nobody but the named server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.servers import FAST, DatabaseServer
from workerd.errors import StoreAway
from workerd.store.base import Store

Opened = Callable[..., Store]


class TlsServer(NamedTuple):
    """A server with a certificate for `localhost`, signed by itself."""

    url: str
    certificate: Path


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsServer]:
    openssl = shutil.which("openssl")
    if openssl is None or "MYSQLD" in os.environ:
        pytest.skip("needs the command openssl, and MariaDB's options")
    folder = Path(tempfile.mkdtemp(prefix="tls."))  # not below tmp_path: the server's user may not go there
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    key.chmod(0o644)
    folder.chmod(0o755)
    server = DatabaseServer((*FAST, f"--ssl-cert={certificate}", f"--ssl-key={key}"))
    try:
        yield TlsServer(server.start().url(server.new_database(), tcp=True), certificate)
    finally:
        server.remove()
        shutil.rmtree(folder)


def cipher(store: Store) -> str:
    row = store.read(lambda tx: tx.one("SHOW STATUS LIKE 'Ssl_cipher'"))
    assert row is not None
    return str(row[1].decode())


def test_results_arrive_whole(tls: TlsServer, opened: Opened) -> None:
    """The driver reads its first packet before TLS and the rest within it; no byte is lost between them."""
    store = opened(f"{tls.url}?ssl=required")
    assert cipher(store), "the connection is not encrypted"
    for size in (0, 1, 8191, 8192, 8193, 300_000):
        text = b"y" * size
        assert store.read(lambda tx, t=text: tx.one("SELECT %s", (t.decode(),))) == (text,)


@pytest.mark.parametrize("query", ["ssl=required", "ssl=required&ssl_verify=false", "ssl_verify=true"])
def test_a_server_without_tls_is_refused_where_it_is_required(
    mysql_url: str, tcp_url: str, opened: Opened, query: str
) -> None:
    """Whoever is on the way could say that the server has none."""
    assert cipher(opened(tcp_url)) == ""
    with pytest.raises(StoreAway, match="SSL is required"):
        opened(f"{tcp_url}?{query}").read(lambda tx: tx.now)


@pytest.mark.parametrize(
    ("host", "named", "refused"),
    [
        ("localhost", True, ""),
        ("127.0.0.1", True, "IP address mismatch"),
        ("localhost", False, "self-signed certificate"),
    ],
)
def test_only_the_named_server_is_trusted(
    tls: TlsServer, opened: Opened, host: str, named: bool, refused: str
) -> None:
    """With a certificate authority, or with those of the system: its certificate, and its name."""
    query = f"ssl_ca={tls.certificate}" if named else "ssl_verify=true"
    store = opened(f"{tls.url.replace('127.0.0.1', host)}?{query}")
    if not refused:
        assert cipher(store)
        return
    with pytest.raises(StoreAway, match=refused):
        store.read(lambda tx: tx.now)


def test_a_file_that_is_missing_is_named(tls: TlsServer, opened: Opened, tmp_path: Path) -> None:
    """As the reason why there is no connection."""
    store = opened(f"{tls.url}?ssl_ca={tmp_path}/missing.pem")
    with pytest.raises(StoreAway, match="No such file"):
        store.read(lambda tx: tx.now)
