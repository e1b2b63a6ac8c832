"""One connection to a store, as its engine implements it, and what a server is for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from workerd.errors import StoreAway, StoreBusy, StoreError
from workerd.store.dialect import Dialect

Row = tuple[Any, ...]
Params = Sequence[object]


class ServerRole(StrEnum):
    """What a server is for a store."""

    WRITABLE = "writable"
    READ_ONLY = "read-only"
    AWAY = "away"


class ServerState(NamedTuple):
    """One server of a store; `reason`: why it is not writable, or what else to know of it."""

    host: str
    version: str
    role: ServerRole
    reason: str


class LockLost(StoreAway):
    """Another transaction held the locks; the whole transaction is run again."""


class LastStatement(NamedTuple):
    """A statement to run with the COMMIT, and how many rows it is to change."""

    sql: str
    params: Params
    expected: int

    def check(self, changed: int) -> None:
        """Raises StoreBusy if it changed another number of rows."""
        if changed != self.expected:
            raise StoreBusy("another transaction took some of these rows at the same time; none was changed")


class Session(ABC):
    """One open connection; its methods raise LockLost, StoreAway or StoreRefused.

    `server`: the server in use, as people know it. `latest`: what a query ends with to see what others have
    committed since the transaction began. `counts_rows`: whether `execute` counts no row that was left alone.
    """

    dialect: Dialect
    server: str
    server_version: str
    max_packet: int | None
    plain_text = False
    latest = ""
    counts_rows = True

    @abstractmethod
    def begin(self, write: bool) -> None: ...

    def begin_alone(self, write: bool) -> None:
        """As `begin`, for a transaction of one statement."""
        self.begin(write)

    def is_dead(self) -> bool:
        """Whether the server has closed the connection, which is in no transaction; asks nothing."""
        return False

    def check_server(self) -> None:
        """Ask the server whether it may be written. Raises StoreAway unless it may."""
        return

    def may_have_committed(self, error: StoreAway) -> bool:
        """Whether a statement begun alone may have taken effect despite this error."""
        return False

    def was_not_committed(self, error: StoreError) -> bool:
        """Whether this answer to COMMIT means that nothing was committed."""
        return False

    @abstractmethod
    def commit(self) -> None: ...

    def commit_after(self, last: LastStatement) -> StoreError | None:
        """Run the only statement of the transaction that writes, and COMMIT, in one round trip if it can be.

        Returns the error of the statement, after which nothing is committed; raises that of the COMMIT.
        """
        try:
            last.check(self.execute(last.sql, last.params))
        except StoreError as error:
            return error
        self.commit()
        return None

    def execute_after(self, last: LastStatement, sql: str, params: Params = ()) -> int:
        """Run `last` and then another statement, in one round trip if it can be; what the latter changed.

        The latter may have been run too where `last` fails, which is raised: the transaction is then undone.
        """
        last.check(self.execute(last.sql, last.params))
        return self.execute(sql, params)

    @abstractmethod
    def rollback(self) -> None: ...

    @abstractmethod
    def execute(self, sql: str, params: Params = ()) -> int: ...

    def execute_alone(self, sql: str, params: Params, on_sent: Callable[[], None]) -> int:
        """As `execute`, for the only statement of the transaction, which is committed with it.

        `on_sent` is called while the answer is awaited, where others may see before it what the statement
        changes.
        """
        return self.execute(sql, params)

    def execute_each(self, sql: str, rows: Sequence[Params]) -> int:
        """As `execute` with the parameters of each row; returns how many rows they changed in all."""
        return sum(self.execute(sql, params) for params in rows)

    def queries(self, statements: Sequence[tuple[str, Params]]) -> list[list[Row]]:
        """As `query` for each, in one round trip if it can be; all answers but the last are small."""
        return [self.query(sql, params) for sql, params in statements]

    @abstractmethod
    def query(self, sql: str, params: Params = ()) -> list[Row]: ...

    @abstractmethod
    def clock(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...
