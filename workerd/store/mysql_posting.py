"""INSERTs that an event loop sends and waits for itself: without a thread, each committed by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pymysql
from pymysql.constants import CR

from workerd import lean_imports
from workerd.errors import CommitUnknown, StoreAway, StoreError, StoreRefused
from workerd.job import id_text
from workerd.store.mysql_dialect import ONE_TELLING_THE_TIME
from workerd.store.mysql_results import OkPacket
from workerd.store.mysql_session import MySQLSession
from workerd.store.session import LockLost, Params

# Only the gateway posts, and its event loop holds it in any case.
ssl = lean_imports.deferred("ssl")

MAX_POSTED_BYTES = 64 * 1024
"""Of a statement: what the buffer of a fresh TCP connection takes at once."""
_HEAD_BYTES = 4
"""Of an answer: its length in three, then the number of the packet."""


class Posting:
    """A session in which an event loop runs one INSERT at a time, until `end` gives it back to threads.

    `count` is called with each error, `close` at the end if the connection has failed: not earlier, as the
    loop would watch its descriptor, which soon is another's. `limit_s`: how long an answer may take.
    `shows_early`: as of the session.
    """

    first_attempt = ONE_TELLING_THE_TIME
    """Number of the first attempt in one row of each INSERT, so that the answer tells when that was."""

    def __init__(
        self, session: MySQLSession, count: Callable[[StoreError], None], close: Callable[[], None]
    ) -> None:
        self._session = session
        self._link = session.link
        self._count = count
        self._close = close
        self._received = bytearray()
        self._is_broken = False
        """While an answer is awaited, too."""
        self.limit_s = self._link.limit_s
        self.shows_early = session.shows_early
        self._link.wait(False)

    def end(self) -> None:
        """Let threads use the session again; they connect anew if it has failed."""
        if self._is_broken:
            self._close()
        else:
            self._link.wait(True)

    def fileno(self) -> int:
        """What becomes readable when there is something to receive."""
        return self._link.fileno()

    def send(self, sql: str, params: Params) -> None:
        """Send a statement. Raises StoreError where it cannot be sent: then nothing was done."""
        statement = self._session.statement(sql, params)
        if len(statement) > MAX_POSTED_BYTES:
            raise StoreRefused(f"{len(statement)} bytes are too many to send at once")
        self._received.clear()
        usable = not self._is_broken and not self._link.is_unusable()
        self._is_broken = True
        if not usable or not self._link.post(statement):
            raise self._error(pymysql.OperationalError(CR.CR_SERVER_GONE_ERROR, "it is gone"), ())

    def receive(self, ids: Sequence[bytes]) -> int | None:
        """The time of the INSERT by the server's clock, None before it is all there; `ids`: of its rows.

        0 where the server does not tell it, as beside a trigger of the table.

        Raises CommitUnknown if they may be there despite an error, another StoreError if they are not.
        """
        try:
            while not self._is_complete():
                self._received += self._link.take()
            self._is_broken = False
            return OkPacket.read(bytes(self._received[_HEAD_BYTES:])).insert_id
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except (pymysql.Error, OSError) as error:
            raise self._error(error, ids) from None

    def lost(self, ids: Sequence[bytes]) -> StoreError:
        """The error of an answer that has not come within the limit."""
        return self._error(pymysql.OperationalError(CR.CR_SERVER_LOST, "there is no answer"), ids)

    def _is_complete(self) -> bool:
        size = _HEAD_BYTES + int.from_bytes(self._received[:3], "little")
        return len(self._received) >= max(size, _HEAD_BYTES + 1)

    def _error(self, error: Exception, ids: Sequence[bytes]) -> StoreError:
        found = self._session.classified(error)
        self._count(found)
        if not isinstance(found, StoreAway) or isinstance(found, LockLost):
            return found
        self._is_broken = True
        if self._session.may_have_committed(found):
            return CommitUnknown(
                str(found), found.code, answered=found.answered, ids=tuple(map(id_text, ids))
            )
        return found
