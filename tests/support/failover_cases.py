"""The clusters that fail over, and what happens to each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import quote

from tests.support import group_replication, haproxy
from tests.support.eventually import eventually
from tests.support.failover import Fault
from tests.support.group_replication import GroupReplication
from tests.support.haproxy import HAProxy
from tests.support.replication import PLAIN_PASSWORD, PLAIN_USER, ReplicatedPair
from tests.support.servers import DatabaseServer, Flavour

HOLD_S = 4.0
"""How long a majority is lost, or a replica kept from applying."""


class Group:
    """Group Replication of three; `single`: with one primary."""

    def __init__(self, *, single: bool) -> None:
        self.group = GroupReplication(single=single).start()
        self.single = single

    @staticmethod
    def missing() -> str:
        """Why it cannot be started here, "" if it can."""
        return group_replication.missing()

    @property
    def servers(self) -> Sequence[DatabaseServer]:
        return self.group.members

    @property
    def database(self) -> str:
        return self.group.database

    def store_url(self) -> str:
        return self.group.url()

    def writable(self) -> DatabaseServer:
        return eventually(self.group.primary)

    def remove(self) -> None:
        self.group.remove()

    def _others(self, server: DatabaseServer) -> list[DatabaseServer]:
        return [one for one in self.group.members if one is not server]

    def _in_use(self) -> DatabaseServer:
        return self.writable() if self.single else self.group.members[0]

    def _next(self, former: DatabaseServer) -> DatabaseServer:
        others = self._others(former)

        def found() -> DatabaseServer | None:
            primary = self.group.primary(others)
            return primary if primary in others else None

        return eventually(found, within=60) if self.single else others[0]

    def killed(self) -> Fault:
        """The server in use is killed."""
        former = self._in_use()

        def strike() -> DatabaseServer:
            former.kill9()
            return self._next(former)

        def heal() -> None:
            self.group.rejoin(former)

        return Fault("server in use killed", strike, heal)

    def frozen(self) -> Fault:
        """The server in use is frozen, expelled, and comes back as read-only."""
        former = self._in_use()

        def strike() -> DatabaseServer:
            former.freeze()
            return self._next(former)

        def heal() -> None:
            former.thaw()
            self.group.wait_for_members(len(self.servers))

        return Fault("server in use frozen and thawed", strike, heal)

    def switched(self) -> Fault:
        """Another one is made the primary on purpose."""
        chosen = self._others(self.writable())[0]

        def strike() -> DatabaseServer:
            self.group.switch_over(chosen)
            return chosen

        return Fault("switched over, sessions kept", strike)

    def without_majority(self) -> Fault:
        """Two of three are frozen: COMMIT does not answer."""
        left = self._in_use()

        def strike() -> DatabaseServer:
            for other in self._others(left):
                other.freeze()
            time.sleep(HOLD_S)
            for other in self._others(left):
                other.thaw()
            return left

        def heal() -> None:
            self.group.wait_for_members(len(self.servers))

        return Fault("majority lost and back", strike, heal)

    def behind(self) -> Fault:
        """A server that is behind by what was written meanwhile becomes the primary."""
        chosen = self._others(self.writable())[0]

        def strike() -> DatabaseServer:
            with chosen.root(self.database) as connection, connection.cursor() as cursor:
                cursor.execute("LOCK TABLES workerd_jobs READ")
                time.sleep(HOLD_S)
                # While it is being made the primary, it would not even take this.
                cursor.execute("UNLOCK TABLES")
            self.group.switch_over(chosen)
            return chosen

        return Fault("switched over to a member that is behind", strike)


class Pair:
    """MariaDB, a primary and its replica: behind HAProxy, or both in the URL."""

    def __init__(self, *, proxied: bool) -> None:
        self.pair = ReplicatedPair(privileged=False).start()
        self.proxy = HAProxy(self.servers) if proxied else None
        self._promoted = False
        self._direct(self.pair.primary)

    @staticmethod
    def missing() -> str:
        """Why it cannot be started here, "" if it can."""
        return "its statements are MariaDB's" if Flavour().oracle else haproxy.missing()

    @property
    def servers(self) -> Sequence[DatabaseServer]:
        return [self.pair.primary, self.pair.replica]

    @property
    def database(self) -> str:
        return self.pair.database

    def store_url(self) -> str:
        if self.proxy is None:
            return self.pair.url()
        password = quote(PLAIN_PASSWORD, safe="")
        return f"mysql://{PLAIN_USER}:{password}@127.0.0.1:{self.proxy.port}/{self.database}"

    def writable(self) -> DatabaseServer:
        return self.pair.replica if self._promoted else self.pair.primary

    def remove(self) -> None:
        if self.proxy is not None:
            self.proxy.remove()
        self.pair.remove()

    def _direct(self, server: DatabaseServer, *, keep_sessions: bool = False) -> None:
        if self.proxy is not None:
            self.proxy.use(server, keep_sessions=keep_sessions)

    def _promote(self) -> DatabaseServer:
        """What has arrived is applied first."""
        replica = self.pair.replica
        replica.sql("START SLAVE SQL_THREAD")  # first: it forgets what has arrived if both are stopped
        replica.sql("STOP SLAVE IO_THREAD")

        def applied() -> bool:
            columns = "Read_Master_Log_Pos", "Exec_Master_Log_Pos"
            with replica.root() as connection, connection.cursor() as cursor:
                cursor.execute("SHOW SLAVE STATUS")
                names = [column[0] for column in cursor.description or ()]
                (row,) = cursor.fetchall()
            read, executed = (row[names.index(name)] for name in columns)
            return bool(read == executed)

        eventually(applied, within=60, every=0.02)
        replica.sql("STOP SLAVE")
        replica.sql("SET GLOBAL read_only = 0")
        self._promoted = True
        self._direct(replica)
        return replica

    def killed(self) -> Fault:
        """The primary is killed, its replica promoted."""

        def strike() -> DatabaseServer:
            self.pair.primary.kill9()
            return self._promote()

        return Fault("primary killed", strike, loses=True)

    def frozen(self) -> Fault:
        """The primary is frozen, its replica promoted; then it is back, as read-only."""
        primary = self.pair.primary

        def strike() -> DatabaseServer:
            # Whoever thaws it has made it read-only first: there is nobody else who could.
            primary.sql("SET GLOBAL read_only = 1")
            primary.freeze()
            return self._promote()

        return Fault("primary frozen and thawed as read-only", strike, primary.thaw, loses=True)

    def switched(self) -> Fault:
        """Roles are changed on purpose; every session stays where it is."""

        def strike() -> DatabaseServer:
            self.pair.promote()
            self._promoted = True
            self._direct(self.pair.replica, keep_sessions=True)
            return self.pair.replica

        return Fault("switched over, sessions kept", strike)

    def behind(self) -> Fault:
        """The primary is killed while the replica has not applied what it has."""

        def strike() -> DatabaseServer:
            self.pair.replica.sql("STOP SLAVE SQL_THREAD")
            time.sleep(HOLD_S)
            self.pair.primary.kill9()
            return self._promote()

        return Fault("primary killed, replica behind", strike, loses=True)
