"""Messages to the service manager (sd_notify(3)): lines `KEY=value` in one datagram.

Only the supervisor sends them; its children do not inherit the address.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

MAX_DATAGRAM_BYTES = 4096
"""A longer STATUS is cut."""


class ServiceManager:
    """The service manager that started this process; without one, messages are discarded.

    `watchdog`: seconds within which it expects WATCHDOG=1, 0 for never.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog

    @classmethod
    def take(cls, environ: MutableMapping[str, str] | None = None) -> ServiceManager:
        """The manager that the environment names; its variables are removed, so no child inherits them."""
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
        """Send the lines; it neither waits nor fails when the manager does not read them."""
        if not self._address:
            return
        data = lines.encode("utf-8", "replace")[:MAX_DATAGRAM_BYTES].decode("utf-8", "ignore").encode()
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
        ):
            sock.sendto(data, self._address)


def ready() -> str:
    """The start or the reload is done."""
    return "READY=1"


def status(sentence: str) -> str:
    """The line that `systemctl status` shows."""
    return "STATUS=" + " ".join(sentence.split())


def reloading() -> str:
    """A reload began; `ready` ends it. The time tells two reloads apart."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def stopping() -> str:
    """The shutdown began."""
    return "STOPPING=1"


def alive() -> str:
    """Feed the watchdog."""
    return "WATCHDOG=1"


def extend(seconds: float) -> str:
    """Starting, reloading or stopping will take at most `seconds` from now."""
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"
