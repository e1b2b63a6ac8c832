"""A Galera cluster of private MariaDB servers on loopback, one address a node."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pymysql

from tests.support.eventually import eventually
from tests.support.servers import DatabaseServer, free_port

PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")


class Galera:
    """`size` servers that replicate; started together, killed and brought back one by one."""

    def __init__(self, size: int = 3) -> None:
        if not PROVIDER.exists():
            raise RuntimeError(
                "The tests need Galera, which is not here: run `make test-all`, it installs it."
            )
        ports = [(free_port(), free_port(), free_port()) for _ in range(size)]
        peers = ",".join(f"127.0.0.1:{group}" for group, _, _ in ports)
        self.servers = [DatabaseServer(self._options(n, *ports[n], peers)) for n in range(size)]
        self._dead: set[int] = set()

    @staticmethod
    def _options(number: int, group: int, ist: int, sst: int, peers: str) -> tuple[str, ...]:
        provider = (
            f"base_host=127.0.0.1;base_port={group};gmcast.listen_addr=tcp://127.0.0.1:{group};"
            f"ist.recv_addr=127.0.0.1:{ist};ist.recv_bind=127.0.0.1:{ist};"
            "evs.keepalive_period=PT0.5S;evs.inactive_check_period=PT0.5S;evs.suspect_timeout=PT3S;"
            "evs.inactive_timeout=PT10S;gcache.size=64M;pc.recovery=FALSE"
        )
        return (
            "--wsrep-on=ON", f"--wsrep-provider={PROVIDER}", "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2", "--wsrep-cluster-name=tests",
            f"--wsrep-cluster-address=gcomm://{peers}", f"--wsrep-node-name=n{number}",
            f"--wsrep-node-address=127.0.0.1:{group}", f"--wsrep-sst-receive-address=127.0.0.1:{sst}",
            "--wsrep-sst-method=rsync", f"--wsrep-provider-options={provider}",
            "--innodb-flush-log-at-trx-commit=0",
        )  # fmt: skip

    def start(self) -> Galera:
        """Bootstrap the first, let the others join, wait until all are one cluster."""
        first = self.servers[0]
        first.options = (*first.options, "--wsrep-new-cluster")
        first.start()
        for server in self.servers[1:]:
            server.launch()
        eventually(lambda: all(self._synced(server, len(self.servers)) for server in self.servers), within=90)
        first.options = first.options[:-1]
        return self

    @staticmethod
    def _synced(server: DatabaseServer, least: int = 0, most: int = 100) -> bool:
        # PyMySQL leaves the socket open of a connection that found no server.
        if not server.socket.exists():
            return False
        try:
            status = dict(server.sql("SHOW GLOBAL STATUS LIKE 'wsrep%'"))
        except pymysql.Error:
            return False
        ready = status.get("wsrep_ready") == "ON" and status.get("wsrep_cluster_status") == "Primary"
        return ready and least <= int(status["wsrep_cluster_size"]) <= most

    def urls(self, database: str) -> list[str]:
        """The URL of one database through each node."""
        self.servers[0].sql(f"CREATE DATABASE IF NOT EXISTS {database}")
        return [server.url(database) for server in self.servers]

    def kill9(self, number: int) -> None:
        """Kill a node."""
        self.servers[number].kill9()
        self._dead.add(number)

    def revive(self) -> None:
        """Bring back what was killed, and wait until it has caught up."""
        eventually(self._has_noticed, within=90, state=self._logs)
        for number in sorted(self._dead):
            self.servers[number].launch()
            eventually(lambda n=number: self._is_back(n), within=100, every=0.1, state=self._logs)
        self._dead.clear()

    def _has_noticed(self) -> bool:
        """Whether the others go on without the dead; a joiner that comes earlier splits the cluster."""
        alive = [server for number, server in enumerate(self.servers) if number not in self._dead]
        return all(self._synced(server, len(alive), len(alive)) for server in alive)

    def _is_back(self, number: int) -> bool:
        server = self.servers[number]
        if server.ended:  # it gives up when the others take too long to let it in
            server.launch()
        return self._synced(server)

    def _logs(self) -> str:
        return "\n".join(f"--- node {n}\n{server.log()[-4000:]}" for n, server in enumerate(self.servers))

    def remove(self) -> None:
        """Leave nothing behind."""
        for server in self.servers:
            with contextlib.suppress(ProcessLookupError):
                server.remove()
