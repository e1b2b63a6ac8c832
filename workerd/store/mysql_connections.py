"""Opens connections to MySQL and MariaDB: addresses, sockets, TLS, the driver."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workerd import lean_imports
from workerd.config.store_url import Host, MySQLUrl, Tls
from workerd.errors import StoreAway
from workerd.store.mysql_errors import NO_ANSWER
from workerd.store.mysql_session import CONVERSIONS, NoSession, code_and_message
from workerd.store.patient_connection import PatientConnection
from workerd.store.resolver import Address, resolver

if TYPE_CHECKING:
    import ssl


class _UnixLink(PatientConnection):
    """A connection over a Unix socket, which servers consider as safe as TLS."""

    _secure = True  # the driver sets it only for sockets that it connected itself


def no_session(where: str, error: Exception) -> NoSession:
    """Why the driver could not connect."""
    code, message = code_and_message(error)
    answered = code not in NO_ANSWER
    does = "refuses the connection" if answered else "does not answer"
    return NoSession(where, f"{does}: {message}", code, answered=answered)


def none_usable(failed: list[NoSession]) -> StoreAway:
    """The error of a store none of whose servers may be written; its code is of one that answered, if any."""
    if len(failed) == 1:
        return failed[0]
    telling = next((error for error in failed if error.answered), failed[0])
    each = "; ".join(f"{error.where} {error.clause}" for error in failed)
    return StoreAway(
        f"The store has no server that can be written: {each}", telling.code, answered=telling.answered
    )


def open_link(
    address: MySQLUrl,
    host: Host,
    peer: Address,
    password: str,
    limit_s: float,
    on_progress: Callable[[], None],
) -> PatientConnection:
    """A connection to one address of a host. Raises pymysql.Error, OSError, ValueError, RuntimeError."""
    try:
        return _connected(address, host, peer, password, limit_s, on_progress)
    except RuntimeError:
        # The driver needs RSA and does not have it.
        if not lean_imports.load_rsa():
            raise
    return _connected(address, host, peer, password, limit_s, on_progress)


def _connected(
    address: MySQLUrl,
    host: Host,
    peer: Address,
    password: str,
    limit_s: float,
    on_progress: Callable[[], None],
) -> PatientConnection:
    tls = address.tls
    link = (PatientConnection if address.unix_socket is None else _UnixLink)(
        limit_s=limit_s,
        on_progress=on_progress,
        user=address.user,
        password=password.encode("utf-8"),
        host=host.name,
        database=address.database,
        charset="utf8mb4",
        collation="utf8mb4_bin",
        use_unicode=False,
        conv=dict(CONVERSIONS),
        autocommit=False,
        program_name="workerd",
        ssl_disabled=True if tls.mode == "off" else None,
        ssl=_tls_context(tls) if tls.mode == "required" else None,
        defer_connect=True,
    )
    link.connect(_dial(peer, limit_s))
    return link


def _tls_context(tls: Tls) -> ssl.SSLContext:
    """For a connection that must be encrypted: the driver refuses a server without TLS only if it gets one.

    It also checks no host name where no certificate authority is named. Raises OSError.
    """
    import ssl  # on demand, see lean_imports

    if tls.verify:
        context = ssl.create_default_context(cafile=tls.ca)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key)
    return context


def is_secure(link: Any) -> bool:
    """Whether nobody on the way can read what is sent."""
    return bool(link._secure)  # the driver's own mark: TLS, or a Unix socket


def addresses(address: MySQLUrl, host: Host, limit_s: float) -> list[Address]:
    """Where a host may be reached. Raises OSError."""
    if address.unix_socket is not None:
        return [Address(socket.AF_UNIX, address.unix_socket)]
    return resolver.addresses(host.name, host.port, limit_s)


def _dial(peer: Address, limit_s: float) -> socket.socket:
    """A connected socket; connected here because the driver leaks it when there is no answer."""
    link = socket.socket(peer.family, socket.SOCK_STREAM)
    try:
        link.settimeout(limit_s)
        if peer.family != socket.AF_UNIX:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link.connect(peer.sockaddr)
    except OSError:
        link.close()
        raise
    return link
