"""The SQL that differs between engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from workerd.outcome import ClosedAttempt, Outcome

if TYPE_CHECKING:
    from workerd.store.base import Tx
    from workerd.store.session import Params


class Dialect(ABC):
    """The SQL that differs between engines: fragments, and the two statements built for batches.

    share_lock, row_lock, skip_locked
        Suffixes of a SELECT: lock shared, lock, lock what is free and pass over what is not.
    clock_column
        The server's clock as a column of a SELECT, NULL where the session's clock is not the server's.
    null_safe_equal
        The operator that finds NULL equal to NULL.
    union_of_bits
        The aggregate that puts numbers of one bit each together, none of them twice.
    has_quick_statements
        Whether a statement for each row is cheaper than one that names many rows.
    index_ends_with_id
        Whether rows that are equal in an index of jobs stand in the order of their ids.
    defaults_are_exact
        Whether columns of time that are left out get microseconds.
    live_key_condition
        Whether a row is live and holds a key, by the index `workerd_live`; parameters: handler, key.
    live_keys_condition
        The same for keys from one on, up to another; parameters: handler, first key, key behind the last.
    holds_given_key
        Whether the row `h` is live and holds the `given_key` of the row `f`, by the same index.
    ignores_end_spaces
        Whether keys are equal that differ in spaces at their ends.
    by_key
        Suffix of the table of jobs where `columns.keys` names its rows beside a condition on their status.
    table_exists
        A SELECT that returns a row if the table exists; parameter: its name.
    """

    name: ClassVar[str]
    share_lock: ClassVar[str]
    row_lock: ClassVar[str]
    skip_locked: ClassVar[str]
    clock_column: ClassVar[str]
    null_safe_equal: ClassVar[str]
    union_of_bits: ClassVar[str]
    has_quick_statements: ClassVar[bool]
    index_ends_with_id: ClassVar[bool]
    defaults_are_exact: ClassVar[bool]
    live_key_condition: ClassVar[str]
    live_keys_condition: ClassVar[str]
    holds_given_key: ClassVar[str]
    ignores_end_spaces: ClassVar[bool]
    by_key: ClassVar[str]
    table_exists: ClassVar[str]

    @abstractmethod
    def hint(self, index: str) -> str:
        """Forces an index: the choice of the optimizer changes with the size of the table."""

    @abstractmethod
    def byte_length(self, column: str) -> str:
        """The size of a text column in bytes."""

    @abstractmethod
    def sent_bytes(self, text: bytes) -> int:
        """What a text in UTF-8 adds to the length of a statement as a parameter."""

    @abstractmethod
    def full_time(self, time: str) -> str:
        """An expression of a time in the form that compares with a parameter, whatever its digits."""

    @abstractmethod
    def keep_existing(self, column: str) -> str:
        """Suffix of an INSERT that leaves a row with its key as it is, and then changes 0 rows."""

    @abstractmethod
    def update_existing(self, key: str, updates: Mapping[str, str]) -> str:
        """Suffix of an INSERT that changes a row with its primary key `key` instead.

        `updates`: an expression for each column, set in this order, with `{new.COLUMN}` for what was to be
        inserted.
        """

    @abstractmethod
    def insert_columns(self, tx: Tx, into: str, values: Sequence[Params], end: str) -> int:
        """Insert rows, without LONGTEXT, `into` a table and columns; returns their number.

        `values`: those of each column, for all rows.
        """

    @abstractmethod
    def delete_by_key(self, table: str, where: str) -> str:
        """A DELETE that finds its rows by the primary key."""

    @abstractmethod
    def update_last(
        self, tx: Tx, sets: str, params: Params, condition: str, rows: Sequence[tuple[bytes, int]]
    ) -> None:
        """Change these rows of jobs, which meet the condition, as the last statement (Tx.execute_last).

        `params`: of `sets`. Raises StoreBusy if another number of rows was changed.
        """

    @abstractmethod
    def close(self, tx: Tx, batch: Sequence[ClosedAttempt], ingested_at: int) -> list[ClosedAttempt]:
        """Close attempts, sorted by (id, attempt), as law 1 demands; returns those that took effect."""

    @abstractmethod
    def insert_next(self, tx: Tx, retried: Sequence[Outcome], now: int) -> int:
        """Insert the attempts that follow, unless they exist or their key is held; returns how many."""
