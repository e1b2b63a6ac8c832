"""A store, its sessions and transactions: each transaction is one function, run again when locks are lost."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from workerd.errors import CommitUnknown, StoreAway, StoreBusy, StoreError, StoreRefused
from workerd.job import id_text
from workerd.store import migrations
from workerd.store.dialect import Dialect
from workerd.store.session import LastStatement, LockLost, Params, Row, ServerState, Session

if TYPE_CHECKING:
    from workerd.store.mysql_posting import Posting

T = TypeVar("T")

MAX_TRIES = 10
RETRY_FOR_S = 2.0
"""How often, and for how long, a transaction that loses its locks is run again."""
SERVER_CHECK_AGE_S = 2.0
"""A connection is used for so long before its server is asked again whether it may be written."""
IDLE_LIMIT_S = 60.0
"""Of what is neither dispatcher nor ingester."""
LEAST_IDLE_LIMIT_S = 5.0


def idle_limit(lease_s: float) -> float:
    """`Store.idle_limit_s` of dispatcher and ingester, longer than any pause of theirs: seconds.

    When the lease is over, other nodes need the rows that a transaction of this one has locked.
    """
    return max(lease_s, LEAST_IDLE_LIMIT_S)


class Tx:
    """An open transaction. `%s` is a parameter in every engine; the SQL must contain no other `%`.

    Columns are int, float, None or bytes. Text and times are bytes too, so that an unreadable value fails
    where it is read, by `workerd.store.columns`, and not in the driver.

    `enqueued`: the jobs and requests that were enqueued in it, or found, in this order. `failed_requests`:
    those that have failed in it.
    """

    __slots__ = (
        "_has_written", "_last", "_now", "_session", "counts_rows", "dialect", "enqueued", "failed_requests",
        "latest",
    )  # fmt: skip

    def __init__(self, session: Session) -> None:
        self._session = session
        self._now: int | None = None
        self._has_written = False
        self._last: LastStatement | None = None
        self.enqueued: list[bytes] = []
        self.failed_requests: list[bytes] = []
        self.dialect = session.dialect
        self.latest = session.latest
        self.counts_rows = session.counts_rows

    @property
    def now(self) -> int:
        """The store's clock, microseconds, read once in this transaction (law 8)."""
        if self._now is None:
            self._now = self._session.clock()
        return self._now

    @now.setter
    def now(self, value: int) -> None:
        self._now = value

    def clock(self) -> int:
        """The store's clock, microseconds, read anew: for what counts from after a wait for locks."""
        return self._session.clock()

    @property
    def max_packet(self) -> int | None:
        """Maximum length of a statement in bytes, None without limit."""
        return self._session.max_packet

    def execute(self, sql: str, params: Params = ()) -> int:
        """Run a statement that returns no rows; returns the number of rows changed.

        MySQL does not count a row set to the values it already had; SQLite does.
        """
        last, self._last = self._last, None
        self._has_written = True
        if last is not None:
            return self._session.execute_after(last, sql, params)
        return self._session.execute(sql, params)

    def execute_alone(self, sql: str, params: Params, on_sent: Callable[[], None]) -> int:
        """As `execute`, for all that the transaction does.

        `on_sent` is called while the store answers, if others may see before that what was changed.
        """
        self._has_written = True
        return self._session.execute_alone(sql, params, on_sent)

    def execute_each(self, sql: str, rows: Sequence[Params]) -> int:
        """As `execute` with the parameters of each row; returns how many rows they changed in all."""
        self._send_last()
        self._has_written = True
        return self._session.execute_each(sql, rows)

    def execute_last(self, sql: str, params: Params = (), *, count: int) -> None:
        """Run a statement that changes `count` rows; if possible with the COMMIT: a round trip less.

        Later queries may not see what it changes. It waits for the COMMIT only as long as no other statement
        writes, else it is sent with that: a COMMIT sent before the answer also follows a statement that has
        failed. Raises StoreBusy if it changes another number of rows, and nothing is done.
        """
        last = LastStatement(sql, params, count)
        if self._has_written or self._last is not None:
            last.check(self.execute(sql, params))
        else:
            self._last = last

    def _send_last(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.check(self.execute(last.sql, last.params))

    def commit(self) -> StoreError | None:
        """For the store; returns the error of a statement that was kept for the COMMIT: nothing is done."""
        if self._last is not None:
            return self._session.commit_after(self._last)
        self._session.commit()
        return None

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        """All rows of a SELECT."""
        return self._session.query(sql, params)

    def queries(self, *statements: tuple[str, Params]) -> list[list[Row]]:
        """All rows of each SELECT, in one round trip; all but the last have few. None may need another's."""
        return self._session.queries(statements)

    def one(self, sql: str, params: Params = ()) -> Row | None:
        """The first row of a SELECT, or None."""
        rows = self._session.query(sql, params)
        return rows[0] if rows else None


def _unknown(error: StoreAway | StoreRefused, tx: Tx) -> CommitUnknown:
    """The error of a transaction that may have been committed despite this one."""
    ids = tuple(map(id_text, tx.enqueued))
    return CommitUnknown(str(error), error.code, answered=getattr(error, "answered", True), ids=ids)


def schema_version(tx: Tx) -> int | None:
    """The newest migration that was applied, None for an empty store."""
    table = tx.one(tx.dialect.table_exists, ("workerd_migrations",))
    if table is None:
        return None
    newest = tx.one("SELECT MAX(version) FROM workerd_migrations")
    return None if newest is None or newest[0] is None else int(newest[0])


class Stats:
    """Counts for the metrics: repeated transactions, errors by the server's code."""

    def __init__(self) -> None:
        self.retries = 0
        self.errors: Counter[int] = Counter()


def _ignore() -> None:
    pass


class Store(ABC):
    """A store, connected on first use and again after a lost connection; for one thread at a time.

    embedded
        Whether it is created by the first daemon that uses it.
    shown
        Its URL without the password.
    on_progress
        Called whenever a wait inside a call is over, at least every half second while one lasts: a process
        that is watched shows by it that it is not stuck. It must not use the store.
    before_commit
        Called in each writing transaction after its work.
    server
        The server in use, or the last one; "" before the first.
    reports_loss
        Whether a connection that the server has closed is StoreAway to its next use, and not just replaced: a
        role must learn of it, for the next server may lack the last commits.
    idle_limit_s
        After so long without a statement the server ends a transaction, and MySQL the connection: a process
        that is frozen, or a machine that is cut off, must not keep its locks. Applies to connections that
        are opened afterwards.
    """

    dialect: Dialect
    embedded = False
    reports_loss = False
    idle_limit_s = IDLE_LIMIT_S

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.on_progress: Callable[[], None] = _ignore
        self.before_commit: Callable[[Tx], None] | None = None
        self.server = ""
        self.stats = Stats()
        self._session: Session | None = None
        self._was_there = False
        self._checked_at = 0.0
        self._is_fresh = False
        """Whether the connection was just looked at, by `refresh`."""
        self._is_settled = True
        """Whether no transaction is open: false from before one begins until after its end is known.

        An exception, such as from a handler of signals, may come at any place, also while one is undone.
        """

    def __repr__(self) -> str:
        return f"Store({self.shown})"

    @abstractmethod
    def _connect(self) -> Session: ...

    @abstractmethod
    def migrate(self) -> list[str]:
        """Bring the schema to this version; returns the names of the migrations applied by this call."""

    def migration_sql(self) -> list[str]:
        """The statements that `migrate` would run now, all of them if the store cannot be asked."""
        try:
            found = None if self.is_empty() else self.read(schema_version)
        except StoreError:
            found = None
        return migrations.statements(self.dialect.name, found)

    def run(self, work: Callable[[Tx], T], *, retry_for_s: float = RETRY_FOR_S) -> T:
        """Run `work` in one writing transaction, again as a whole while it loses its locks.

        `retry_for_s`: how long it is run again; waiting for a lock once takes a second.

        Raises StoreAway (may succeed later; StoreBusy if only the locks were held too long), CommitUnknown
        (may have succeeded), StoreRefused (these values cannot be stored), each with the server's `code`;
        and whatever `work` raises.
        """
        return self._run_again(work, write=True, retry_for_s=retry_for_s)

    def alone(self, work: Callable[[Tx], T], *, write: bool = True) -> T:
        """As `run` or `read`, for a single statement: one round trip instead of two."""
        return self._run_again(work, write=write, alone=True)

    def posting(self) -> Posting | None:
        """The connection for an event loop, in place of threads until its `end`; None if it cannot be.

        Raises StoreAway.
        """
        return None

    def read(self, work: Callable[[Tx], T]) -> T:
        """As `run`, for a transaction that only reads."""
        return self._run_again(work, write=False)

    @property
    def server_version(self) -> str:
        """The version that the server reports; connects if needed."""
        return self._connected().server_version

    @property
    def max_packet(self) -> int | None:
        """Maximum length of a statement in bytes, None without limit; connects if needed."""
        return self._connected().max_packet

    @property
    def plain_text(self) -> bool:
        """Whether the present connection is not encrypted because the server cannot: `ssl=preferred`."""
        return self._session is not None and self._session.plain_text

    def is_empty(self) -> bool:
        """Whether no migration was ever applied. Raises StoreAway."""
        return self.read(schema_version) is None

    def check_version(self) -> None:
        """Raises WrongVersion unless the schema is this program's, StoreAway if the store does not answer."""
        migrations.check(self.read(schema_version), self.server_version)

    @abstractmethod
    def server_states(self) -> list[ServerState]:
        """Every server of the store, asked now: its version and its role."""

    def check_server(self) -> None:
        """Ask the server in use whether it may be written; connects if needed. Raises StoreAway.

        A server that may not, or that does not answer, is left: the next use looks for another one.
        """
        if self._session is None:
            self._connected()
            return
        try:
            self._session.check_server()
        except StoreError as error:
            self._count(error)
            self.close()
            raise
        self._checked_at = time.monotonic()

    def refresh(self) -> bool:
        """Leave a server that has become read-only, if not asked recently; returns whether it was left."""
        self._is_fresh = False
        try:
            if self._session is not None:
                self._connected()
                self._is_fresh = True
        except StoreAway:
            return True
        return False

    def must_exist(self) -> None:
        """It was in use before: what is found empty, or not at all, is not to be made."""
        self._was_there = True

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        self._is_settled = False
        if self._session is not None:
            self._session.close()
            self._session = None
        self._is_settled = True

    def settle(self) -> None:
        """Close the connection if an exception has left it in a transaction, whose locks others wait for."""
        if not self._is_settled:
            self.close()

    def _connected(self) -> Session:
        session = self._session
        if self._is_fresh:
            self._is_fresh = False
            if session is not None:
                return session
        if session is not None and session.is_dead():
            self.close()
            session = None
            if self.reports_loss:
                raise StoreAway("the server has closed the connection")
        if session is None:
            try:
                session = self._session = self._connect()
            except StoreError as error:
                self._count(error)
                raise
            self.server = session.server
            self._checked_at = time.monotonic()
        elif time.monotonic() - self._checked_at > SERVER_CHECK_AGE_S:
            self.check_server()
        return session

    def _run_again(
        self, work: Callable[[Tx], T], *, write: bool, alone: bool = False, retry_for_s: float = RETRY_FOR_S
    ) -> T:
        return self._again(lambda: self._once(work, write, alone), retry_for_s)

    def _again(self, once: Callable[[], T], retry_for_s: float = RETRY_FOR_S) -> T:
        """Call `once`, which rolls back what it began, until it keeps its locks. Raises StoreBusy."""
        end = time.monotonic() + retry_for_s
        tries = 0
        while True:
            try:
                return once()
            except LockLost as error:
                self._count(error)
                tries += 1
                if tries >= MAX_TRIES or time.monotonic() >= end:
                    raise StoreBusy(
                        f"{error}; other transactions held the rows too long", error.code
                    ) from None
                self.stats.retries += 1
            # Jitter, so that the same transactions do not collide again.
            time.sleep(random.uniform(0.0005, 0.002 * 2 ** min(tries, 6)))

    def _once(self, work: Callable[[Tx], T], write: bool, alone: bool) -> T:
        self.settle()
        session = self._connected()
        tx = Tx(session)
        begun = False
        self._is_settled = False
        try:
            if alone:
                session.begin_alone(write)
            else:
                session.begin(write)
            begun = alone and write
            value = work(tx)
            if self.before_commit is not None and write:
                self.before_commit(tx)
        except (StoreAway, StoreRefused) as error:
            self._drop(session, error)
            if isinstance(error, LockLost):
                raise
            if begun and isinstance(error, StoreAway) and session.may_have_committed(error):
                raise _unknown(error, tx) from None
            raise
        except BaseException:
            self._undo(session)
            raise
        self._commit(session, tx, write)
        self._is_settled = True
        return value

    def _commit(self, session: Session, tx: Tx, write: bool) -> None:
        try:
            refused = tx.commit()
        except LockLost:
            self._undo(session)
            raise
        except (StoreAway, StoreRefused) as error:
            self._count(error)
            self.close()
            if write and not session.was_not_committed(error):
                raise _unknown(error, tx) from None
            raise
        except BaseException:
            self._undo(session)
            raise
        if refused is not None:
            self._drop(session, refused)
            raise refused

    def _drop(self, session: Session, error: StoreError) -> None:
        """Leave a transaction of which a statement has failed."""
        if isinstance(error, LockLost):
            self._undo(session)
            return
        self._count(error)
        if isinstance(error, (StoreBusy, StoreRefused)):
            self._undo(session)
        else:
            self.close()

    def _undo(self, session: Session) -> None:
        try:
            session.rollback()
            self._is_settled = True
        except StoreError:
            self.close()

    def _count(self, error: StoreError) -> None:
        self.stats.errors[getattr(error, "code", 0)] += 1
