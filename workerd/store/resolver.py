"""Names of servers to addresses within a time limit, which the C library's own lookup does not keep."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from typing import Any, NamedTuple

LOOKUP_LIMIT_S = 1.5
"""How long a caller waits for a lookup. It goes on in its thread, and a later caller gets its answer."""


class Address(NamedTuple):
    """Where to connect: an address family and the socket address in its form."""

    family: socket.AddressFamily
    sockaddr: Any


class _Lookup:
    """One lookup in a thread of its own, which nobody can end while the name server is silent."""

    def __init__(self, name: str) -> None:
        self.found: list[Address] = []
        self.error: OSError | None = None
        self.done = threading.Event()
        self._name = name
        try:
            threading.Thread(target=self._look_up, name=f"lookup {name}", daemon=True).start()
        except RuntimeError as error:  # no more threads are allowed: as if the name server were silent
            self.error = OSError(socket.EAI_AGAIN, str(error))
            self.done.set()

    def _look_up(self) -> None:
        try:
            for family, _, _, _, sockaddr in socket.getaddrinfo(self._name, None, type=socket.SOCK_STREAM):
                self.found.append(Address(family, sockaddr))
        except OSError as error:
            self.error = error
        except UnicodeError:
            self.error = OSError(f"{self._name!r} is no host name")
        self.done.set()


class Resolver:
    """Looks names up, one thread a name; the last addresses of each serve while the name server is silent.

    Thread-safe, and usable after a fork.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._running: dict[str, _Lookup] = {}
        self._known: dict[str, list[Address]] = {}

    def addresses(self, name: str, port: int, limit_s: float = LOOKUP_LIMIT_S) -> list[Address]:
        """All addresses of a name, or of a literal address itself. Raises OSError."""
        if self._pid != os.getpid():
            self._reset()  # the parent's threads are not here
        literal = _literal(name, port)
        if literal is not None:
            return [literal]
        with self._lock:
            lookup = self._running.get(name)
            if lookup is None:
                lookup = self._running[name] = _Lookup(name)
        if lookup.done.wait(min(limit_s, LOOKUP_LIMIT_S)):
            with self._lock:
                if self._running.get(name) is lookup:
                    del self._running[name]
            if lookup.error is None:
                self._known[name] = lookup.found
                return _with_port(lookup.found, port)
            if getattr(lookup.error, "errno", None) != socket.EAI_AGAIN or name not in self._known:
                raise lookup.error
        known = self._known.get(name)
        if known is None:
            raise TimeoutError(f"the name server has not answered for {name} yet")
        return _with_port(known, port)


resolver = Resolver()
"""The one of this process: all of its connections profit from what one of them looked up."""


def _literal(name: str, port: int) -> Address | None:
    try:
        version = ipaddress.ip_address(name).version
    except ValueError:
        return None
    if version == 6:
        return Address(socket.AF_INET6, (name, port, 0, 0))
    return Address(socket.AF_INET, (name, port))


def _with_port(found: list[Address], port: int) -> list[Address]:
    return [Address(family, (sockaddr[0], port, *sockaddr[2:])) for family, sockaddr in found]
