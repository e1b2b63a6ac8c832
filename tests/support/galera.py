"""A Galera cluster of private MariaDB servers on loopback."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pymysql

from tests.support.eventually import eventually
from tests.support.servers import DatabaseServer, free_port

PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")


class Galera:
    """`size` replicating servers; started together, killed and restarted one by one."""

    def __init__(self, size: int = 3) -> None:
        if not PROVIDER.exists():
            raise RuntimeError("Galera is not installed; run `make test-all`, which installs it.")
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
        """Bootstrap the first server, let the others join, and wait until all are in one cluster."""
        first = self.servers[0]
        first.options = (*first.options, "--wsrep-new-cluster")
        first.launch()
        # It answers a while before it takes part in the cluster, and until then refuses statements.
        eventually(lambda: self._synced(first), within=90, state=self._logs)
        first.start_answering()
        for server in self.servers[1:]:
            server.launch()
        first.options = first.options[:-1]
        eventually(self._is_complete, within=180, every=0.1, state=self._logs)
        return self

    @staticmethod
    def _synced(server: DatabaseServer, least: int = 0, most: int = 100) -> bool:
        # PyMySQL leaks the socket of a refused connection, so try only when the server's socket exists.
        if not server.socket.exists():
            return False
        try:
            status = dict(server.sql("SHOW GLOBAL STATUS LIKE 'wsrep%'"))
        except pymysql.Error:
            return False
        ready = status.get("wsrep_ready") == "ON" and status.get("wsrep_cluster_status") == "Primary"
        return ready and least <= int(status["wsrep_cluster_size"]) <= most

    def urls(self, database: str) -> list[str]:
        """Return the URL of one database through each node."""
        self.servers[0].sql(f"CREATE DATABASE IF NOT EXISTS {database}")
        return [server.url(database) for server in self.servers]

    def catch_up(self) -> None:
        """Wait until each server has applied what any has committed; a read does not wait for that."""
        eventually(lambda: len({self._last_committed(server) for server in self.servers}) == 1, within=90)

    @staticmethod
    def _last_committed(server: DatabaseServer) -> int:
        ((_, value),) = server.sql("SHOW GLOBAL STATUS LIKE 'wsrep_last_committed'")
        return int(value)

    def kill9(self, number: int) -> None:
        """Kill a node."""
        self.servers[number].kill9()
        self._dead.add(number)

    def restart_killed(self) -> None:
        """Restart the killed nodes and wait until they have caught up."""
        eventually(self._excludes_dead, within=90, state=self._logs)
        for number in sorted(self._dead):
            self.servers[number].launch()
            eventually(lambda n=number: self._is_back(n), within=100, every=0.1, state=self._logs)
        self._dead.clear()

    def _excludes_dead(self) -> bool:
        """Whether the others have excluded the dead nodes; a node that rejoins earlier splits the cluster."""
        alive = [server for number, server in enumerate(self.servers) if number not in self._dead]
        return all(self._synced(server, len(alive), len(alive)) for server in alive)

    def _is_complete(self) -> bool:
        return all([self._is_back(n, len(self.servers)) for n in range(len(self.servers))])

    def _is_back(self, number: int, least: int = 0) -> bool:
        server = self.servers[number]
        if server.ended:  # it gives up if joining takes too long
            server.launch()
        return self._synced(server, least)

    def _logs(self) -> str:
        return "\n".join(f"--- node {n}\n{server.log()[-4000:]}" for n, server in enumerate(self.servers))

    def remove(self) -> None:
        """Kill all servers and delete their folders."""
        for server in self.servers:
            with contextlib.suppress(ProcessLookupError):
                server.remove()
