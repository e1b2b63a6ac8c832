"""A name server on loopback that answers with one address, or swallows what it is asked."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from pathlib import Path

ADDRESS = "127.0.0.77"
"""Where it listens, on port 53: only root may."""
_TYPE_A = 1


class NameServer:
    """Answers every question for an IPv4 address with `address`, unless it is `silent`."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.silent = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((ADDRESS, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def prefix(self, folder: Path) -> tuple[str, ...]:
        """The beginning of a command whose processes ask this name server alone."""
        path = folder / "resolv.conf"
        path.write_text(f"nameserver {ADDRESS}\n")
        mount = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", mount, str(path))

    def _serve(self) -> None:
        while True:
            try:
                question, peer = self._socket.recvfrom(512)
            except OSError:
                return
            if not self.silent:
                self._socket.sendto(self._answer(question), peer)

    def _answer(self, message: bytes) -> bytes:
        end = message.index(0, 12) + 5
        question = message[12:end]
        (kind,) = struct.unpack("!H", question[-4:-2])
        count = int(kind == _TYPE_A)
        header = message[:2] + struct.pack("!HHHHH", 0x8180, 1, count, 0, 0)
        record = struct.pack("!HHHIH", 0xC00C, kind, 1, 0, 4) + socket.inet_aton(self.address)
        return header + question + record * count


def may_mount() -> bool:
    """Whether processes can be given a name server of their own here."""
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
