"""HAProxy before the servers of a store: all connections go to one of them, until it is told another."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.eventually import eventually
from tests.support.servers import DatabaseServer, free_port

CONFIG = """global
    stats socket {folder}/admin level admin
defaults
    mode tcp
    timeout connect 1s
    timeout client 1h
    timeout server 1h
listen store
    bind 127.0.0.1:{port}
"""


def missing() -> str:
    """Why it cannot be started here, "" if it can."""
    found = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    return "" if found else "HAProxy is not installed; tests/support/install-servers installs it"


class HAProxy:
    """Listens at `port`; `use` sends new connections to a server, and keeps or ends those of the others."""

    def __init__(self, servers: Sequence[DatabaseServer]) -> None:
        self.port = free_port()
        self._servers = list(servers)
        self._folder = Path(tempfile.mkdtemp(prefix="whp."))
        lines = [f"    server s{n} 127.0.0.1:{server.port} disabled" for n, server in enumerate(servers)]
        config = self._folder / "haproxy.cfg"
        config.write_text(CONFIG.format(folder=self._folder, port=self.port) + "\n".join(lines) + "\n")
        program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "haproxy"
        self._process = subprocess.Popen(
            [program, "-db", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually((self._folder / "admin").exists)

    def _command(self, text: str) -> None:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._folder / "admin"))
            admin.sendall(text.encode() + b"\n")
            answer = admin.recv(4096).strip()
        assert answer == b"", answer

    def use(self, server: DatabaseServer, *, keep_sessions: bool = False) -> None:
        """Send new connections to this one alone."""
        number = self._servers.index(server)
        for other in range(len(self._servers)):
            if other != number:
                self._command(f"disable server store/s{other}")
                if not keep_sessions:
                    self._command(f"shutdown sessions server store/s{other}")
        self._command(f"enable server store/s{number}")

    def remove(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
