"""Group Replication of three private MySQL 9 servers on loopback, with one primary or with several."""

from __future__ import annotations

import os
import uuid
from urllib.parse import quote

import pymysql

from tests.support.eventually import eventually
from tests.support.servers import FAST, PASSWORD, USER, DatabaseServer, Flavour, free_port

PROGRAM = os.environ.get("MYSQL9", "/opt/mysql9/usr/sbin/mysqld")
SIZE = 3


def missing() -> str:
    """Why it cannot be started here, "" if it can."""
    if os.access(PROGRAM, os.X_OK):
        return ""
    return f"MySQL 9 is not at {PROGRAM}; tests/support/install-mysql9 unpacks it there"


class GroupReplication:
    """`members`: three servers; `single`: whether one of them is the primary, or all are."""

    def __init__(self, *, single: bool) -> None:
        self.single = single
        flavour, name = Flavour(PROGRAM), str(uuid.uuid4())
        ports = [free_port() for _ in range(SIZE)]
        seeds = ",".join(f"127.0.0.1:{port}" for port in ports)
        self.members = [
            DatabaseServer(self._options(number, port, seeds, name), flavour)
            for number, port in enumerate(ports, 1)
        ]
        self.database = ""

    def _options(self, number: int, port: int, seeds: str, name: str) -> tuple[str, ...]:
        return (
            *FAST, f"--server-id={number}", "--log-bin=binlog", "--gtid-mode=ON",
            "--enforce-gtid-consistency=ON",
            "--report-host=127.0.0.1", "--plugin-load-add=group_replication.so", "--sync-binlog=0",
            "--group-replication-start-on-boot=OFF", f"--group-replication-group-name={name}",
            f"--group-replication-local-address=127.0.0.1:{port}", f"--group-replication-group-seeds={seeds}",
            f"--group-replication-single-primary-mode={'ON' if self.single else 'OFF'}",
            f"--group-replication-enforce-update-everywhere-checks={'OFF' if self.single else 'ON'}",
            "--group-replication-member-expel-timeout=1", "--group-replication-recovery-get-public-key=ON",
        )  # fmt: skip

    def start(self) -> GroupReplication:
        """Start the members, let the first found the group, and create the database."""
        for member in self.members:
            member.launch()
        for member in self.members:
            member.start_answering()
            member.sql("RESET BINARY LOGS AND GTIDS")
        for number, member in enumerate(self.members):
            self.join(member, found=number == 0)
        self.database = self.members[0].new_database()
        self.wait_for_members(SIZE)
        return self

    def join(self, member: DatabaseServer, *, found: bool = False) -> None:
        """Let a running server join the group, or found it."""
        member.sql(
            f"CHANGE REPLICATION SOURCE TO SOURCE_USER = '{USER}', SOURCE_PASSWORD = '{PASSWORD}'"
            " FOR CHANNEL 'group_replication_recovery'"
        )
        member.sql(f"SET GLOBAL group_replication_bootstrap_group = {'ON' if found else 'OFF'}")
        member.sql("START GROUP_REPLICATION")
        member.sql("SET GLOBAL group_replication_bootstrap_group = OFF")
        eventually(lambda: self.states(member).get(member.port) == "ONLINE", within=60, state=member.log)

    def rejoin(self, member: DatabaseServer) -> None:
        """Restart a killed member, and let it catch up."""
        member.launch()
        member.wait()
        self.join(member)

    @staticmethod
    def states(member: DatabaseServer) -> dict[int, str]:
        """The state of each member by its port, as this one sees it."""
        rows = member.sql(
            "SELECT MEMBER_PORT, MEMBER_STATE FROM performance_schema.replication_group_members"
        )
        return {int(port or 0): str(state) for port, state in rows}

    def wait_for_members(self, count: int) -> None:
        """Wait until so many are online, as those see it that run."""
        running = [member for member in self.members if not member.ended]

        def online() -> bool:
            return all(list(self.states(one).values()).count("ONLINE") == count for one in running)

        eventually(online, within=60, state=lambda: [self.states(one) for one in running])

    def primary(self, among: list[DatabaseServer] | None = None) -> DatabaseServer | None:
        """The primary, or the first of several, as the first of these says that answers."""
        for member in among or self.members:
            if member.ended:
                continue
            try:
                rows = member.sql(
                    "SELECT MEMBER_PORT FROM performance_schema.replication_group_members"
                    " WHERE MEMBER_ROLE = 'PRIMARY' AND MEMBER_STATE = 'ONLINE'"
                )
            except pymysql.Error:
                continue
            ports = {int(port) for (port,) in rows}
            return next((one for one in self.members if one.port in ports and not one.ended), None)
        return None

    def switch_over(self, to: DatabaseServer) -> None:
        """Make another member the primary on purpose; sessions are kept."""
        ((ident,),) = to.sql("SELECT @@server_uuid")
        to.sql(f"SELECT group_replication_set_as_primary('{ident}')")

    def url(self, *first: DatabaseServer) -> str:
        """The URL of the store with all members, these first."""
        servers = [*first, *(one for one in self.members if one not in first)]
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        return f"mysql://{USER}:{quote(PASSWORD, safe='')}@{hosts}/{self.database}"

    def remove(self) -> None:
        """Kill all members."""
        for member in self.members:
            member.remove()
