"""A primary and its replica, private MariaDB servers on loopback; the replica can be promoted."""

from __future__ import annotations

from urllib.parse import quote

from tests.support.eventually import eventually
from tests.support.servers import FAST, PASSWORD, USER, DatabaseServer

PLAIN_USER, PLAIN_PASSWORD = "plain", "plain"


class ReplicatedPair:
    """`primary` and `replica`, and one database on both.

    `privileged`: the store's user may write on read-only servers too.
    """

    def __init__(self, *, privileged: bool) -> None:
        self.privileged = privileged
        self.user = USER if privileged else PLAIN_USER
        self.primary, self.replica = (
            DatabaseServer((*FAST, f"--server-id={number}", "--log-bin=binlog", "--binlog-format=ROW"))
            for number in (1, 2)
        )
        self.database = ""

    def start(self) -> ReplicatedPair:
        """Start both, let the replica follow, and create the database."""
        for server in (self.primary, self.replica):
            server.start()
            server.sql("RESET MASTER")
        self.replica.sql(
            f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {self.primary.port},"
            f" MASTER_USER = '{USER}', MASTER_PASSWORD = '{PASSWORD}', MASTER_USE_GTID = slave_pos,"
            " MASTER_CONNECT_RETRY = 1"
        )
        self.replica.sql("SET GLOBAL read_only = 1")
        self.replica.sql("START SLAVE")
        self.database = self.primary.new_database()
        if not self.privileged:
            self.primary.sql(
                f"GRANT ALL ON {self.database}.* TO {PLAIN_USER}@'%' IDENTIFIED BY '{PLAIN_PASSWORD}'"
            )
        self.wait_for_replica()
        return self

    def wait_for_replica(self) -> None:
        """Wait until the replica has everything that the primary has committed."""
        eventually(lambda: _position(self.replica) == _position(self.primary), state=self._replica_state)

    def _replica_state(self) -> object:
        return self.replica.sql("SHOW SLAVE STATUS")

    def promote(self) -> None:
        """Switch over as planned, with all sessions kept: first the primary is made read-only."""
        self.primary.sql("SET GLOBAL read_only = 1")
        self.wait_for_replica()
        self.replica.sql("STOP SLAVE")
        self.replica.sql("SET GLOBAL read_only = 0")

    def url(self, *servers: DatabaseServer) -> str:
        """The URL of the store with these hosts, primary and replica without any."""
        password = PASSWORD if self.privileged else PLAIN_PASSWORD
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers or (self.primary, self.replica))
        return f"mysql://{self.user}:{quote(password, safe='')}@{hosts}/{self.database}"

    def sessions(self, server: DatabaseServer) -> int:
        """How many connections the store's user has in the database of this server."""
        ((count,),) = server.sql(
            "SELECT COUNT(*) FROM information_schema.PROCESSLIST"
            f" WHERE USER = '{self.user}' AND DB = '{self.database}'"
        )
        return int(count)

    def remove(self) -> None:
        """Kill both."""
        self.replica.remove()
        self.primary.remove()


def _position(server: DatabaseServer) -> object:
    return server.sql("SELECT @@gtid_current_pos")
