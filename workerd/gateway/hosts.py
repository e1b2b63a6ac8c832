"""Which Host and Origin headers are served: what keeps pages of other sites from reaching the API."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping

from workerd.gateway.problems import HTTPProblem

ANY_IPV4 = ".".join(["0"] * 4)
"""All interfaces; the configuration requires tokens to listen there."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class HostRules:
    """The accepted Host headers: names, suffixes (`*.example.org`), and IP addresses.

    What is allowed with a port is served under that port alone, everything else under any.

    A literal address is always served: a page of another site reaches this node by DNS rebinding only under a
    name. On a Unix socket any Host is: file permissions decide who reaches it.
    """

    def __init__(self, listen: str, allowed: Iterable[str]) -> None:
        self._any = listen.startswith("unix:")
        names = {name.lower() for name in allowed}
        self._suffixes = tuple(name[1:].partition(":")[::2] for name in names if name.startswith("*."))
        self._names = {name for name in names if not name.startswith("*.")} | _names_of(listen)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises HTTPProblem 403 for a Host that is not served."""
        host = headers.get("host", "").lower()
        name = _without_port(host)
        if self._any or host in self._names or name in self._names or _is_address(name):
            return
        for suffix, port in self._suffixes:
            if len(name) > len(suffix) and name.endswith(suffix) and (not port or host == f"{name}:{port}"):
                return
        raise HTTPProblem(403, f"Host {host[:100]!r} is not allowed; add it to gateway.allowed_hosts.")


def check_origin(method: str, headers: Mapping[str, str]) -> None:
    """Refuse what a page of another site, or of another port of this host, makes a browser send.

    Programs send neither header. Raises HTTPProblem 403.
    """
    if method in SAFE_METHODS:
        return
    site = headers.get("sec-fetch-site")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise _foreign(f"Sec-Fetch-Site: {site[:60]}")
        return
    origin = headers.get("origin")
    if origin is None:
        return
    own = {headers.get("host", "").lower(), headers.get("x-forwarded-host", "").lower()} - {""}
    if origin.lower().partition("://")[2] not in own:
        raise _foreign(f"Origin: {origin[:100]}")


def _foreign(got: str) -> HTTPProblem:
    return HTTPProblem(403, f"Only pages of this node may send this request from a browser, got {got}.")


def _names_of(listen: str) -> set[str]:
    address = listen.rpartition(":")[0]
    names = {address.lower()} - {""}
    if address in (*_LOOPBACK, "::1", ANY_IPV4, "[::]", "") or address.startswith("127."):
        names.update(_LOOPBACK)
    if address in (ANY_IPV4, "[::]", ""):
        names.add(os.uname().nodename.lower())
    return names


def _is_address(name: str) -> bool:
    try:
        if name.startswith("["):
            ipaddress.IPv6Address(name[1:-1])
        else:
            ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _without_port(host: str) -> str:
    if host.startswith("[") and "]" in host:
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
