"""What the service manager is told (sd_notify(3)): lines `KEY=value` in one datagram.

Only the supervisor speaks; what it forks does not inherit the address.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

LIMIT = 4096
"""Bytes of one datagram; a longer STATUS is cut."""


class ServiceManager:
    """The one who started this process and wants to hear of it; without one every message goes nowhere.

    `watchdog`: seconds within which WATCHDOG=1 is expected, 0 for never.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog

    @classmethod
    def take(cls, environ: MutableMapping[str, str] | None = None) -> ServiceManager:
        """The manager that the environment names; its variables are taken out, so that no child speaks."""
        env = os.environ if environ is None else environ
        address = env.pop("NOTIFY_SOCKET", "")
        usec, pid = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", "")
        ours = not pid or pid == str(os.getpid())
        watchdog = int(usec) / 1e6 if ours and usec.isascii() and usec.isdigit() else 0.0
        return cls(address if address[:1] in ("/", "@") else "", watchdog)

    @property
    def listens(self) -> bool:
        """Whether there is one."""
        return bool(self._address)

    def notify(self, lines: str) -> None:
        """Send the lines; never waits and never fails: a manager that does not hear is no fault of ours."""
        if not self._address:
            return
        data = lines.encode("utf-8", "replace")[:LIMIT].decode("utf-8", "ignore").encode()
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
        ):
            sock.sendto(data, self._address)


def ready() -> str:
    """Started, or the reload is done."""
    return "READY=1"


def status(sentence: str) -> str:
    """What `systemctl status` shows: one line."""
    return "STATUS=" + " ".join(sentence.split())


def reloading() -> str:
    """A reload began; `ready` ends it. The time lets the manager tell two reloads apart."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def stopping() -> str:
    """The end began."""
    return "STOPPING=1"


def alive() -> str:
    """Feeds the manager's watchdog."""
    return "WATCHDOG=1"


def extend(seconds: float) -> str:
    """Starting, reloading or stopping goes on and needs no more than `seconds` from now."""
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"
