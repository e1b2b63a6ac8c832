"""Descriptors that user code opened while handlers were imported: named, kept, or made dead in workers."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_DEAD_ENDS = ("socket:", "anon_inode:")
"""Sockets, and kernel objects such as epoll: two processes that use one of them take each other's messages
and events."""
_SILENT = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero")


@dataclass(frozen=True)
class OpenDescriptor:
    """A descriptor, and what it was when it was found.

    `target`: of its link in /proc/self/fd. `identity`: device and inode, which stay when a file is renamed.
    """

    fd: int
    target: str
    identity: tuple[int, int]

    @classmethod
    def of(cls, fd: int) -> OpenDescriptor | None:
        """What the descriptor is now; None when it is closed."""
        try:
            status = os.fstat(fd)
            return cls(fd, os.readlink(f"/proc/self/fd/{fd}"), (status.st_dev, status.st_ino))
        except OSError:
            return None

    def is_same(self, other: OpenDescriptor | None) -> bool:
        """Whether both stand for the same thing."""
        if other is None or self.identity != other.identity:
            return False
        # All anonymous inodes may have the same number.
        return self.target == other.target or not self.target.startswith("anon_inode:")

    @property
    def is_shareable(self) -> bool:
        """Whether forked processes may go on using it: a file, folder, device or pipe."""
        return not self.target.startswith(_DEAD_ENDS)

    @property
    def is_unchanged(self) -> bool:
        """Whether the number still stands for the same thing."""
        return self.is_same(OpenDescriptor.of(self.fd))

    @property
    def words(self) -> str:
        """What it is, for people: `socket to 127.0.0.1:3306`, or the path of a file."""
        if not self.target.startswith("socket:"):
            return self.target.removeprefix("anon_inode:").strip("[]")
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.fd)) as sock:
            for preposition, address in (("to", sock.getpeername), ("at", sock.getsockname)):
                with contextlib.suppress(OSError):
                    if shown := _address(address()):
                        return f"socket {preposition} {shown}"
        return "socket"


def open_descriptors() -> dict[int, OpenDescriptor]:
    """Every open descriptor above 2, by number."""
    found = (OpenDescriptor.of(int(name)) for name in os.listdir("/proc/self/fd"))
    return {descriptor.fd: descriptor for descriptor in found if descriptor is not None and descriptor.fd > 2}


def opened_since(before: Mapping[int, OpenDescriptor]) -> tuple[OpenDescriptor, ...]:
    """The descriptors that are open now and were not, or were something else."""
    return tuple(
        descriptor
        for fd, descriptor in sorted(open_descriptors().items())
        if not descriptor.is_same(before.get(fd))
    )


def make_dead(descriptors: Iterable[OpenDescriptor]) -> None:
    """Replace those that cannot be shared by a socket that is shut down, in this process alone.

    They fail at once when they are used. Their numbers stay taken: closed, they would be given to the next
    file, and the object that still holds the number would write to that, or close it.
    """
    fds = [descriptor.fd for descriptor in descriptors if not descriptor.is_shareable]
    if not fds:
        return
    dead, other = socket.socketpair()
    other.close()
    dead.shutdown(socket.SHUT_RDWR)
    for fd in fds:
        os.dup2(dead.fileno(), fd, inheritable=False)
    dead.close()


def named(descriptors: Iterable[OpenDescriptor], *, shareable: bool) -> list[str]:
    """What those that can be shared, or cannot, are; devices that everybody may use are left out."""
    return [
        f"{descriptor.words} (descriptor {descriptor.fd})"
        for descriptor in descriptors
        if descriptor.is_shareable is shareable and descriptor.target not in _SILENT
    ]


def _address(address: object) -> str:
    match address:
        case (str(host), int(port), *_) if port:
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case str() | bytes():
            return os.fsdecode(address)
    return ""
