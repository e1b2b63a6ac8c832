"""When a transaction of the caller's has committed, as far as its library tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

_waiting: WeakKeyDictionary[Any, Callable[[], object] | None] = WeakKeyDictionary()
"""SQLAlchemy sessions that are listened to, and what is to be called at their next commit."""


def after_commit(connection: Any, call: Callable[[], object]) -> None:
    """Call when the statement just executed is committed: now if it is already, or never if nobody tells."""
    if any(base.__module__.startswith("sqlalchemy.orm") for base in type(connection).__mro__):
        _listen(connection.registry() if hasattr(connection, "registry") else connection, call)
    elif _commits_itself(connection):
        call()


def _listen(session: Any, call: Callable[[], object]) -> None:
    if session not in _waiting:
        from sqlalchemy import event

        event.listen(session, "after_commit", _committed)
    _waiting[session] = call


def _committed(session: Any) -> None:
    # The end of a savepoint is told in the same way, but makes nothing visible.
    if session.in_nested_transaction():
        return
    call, _waiting[session] = _waiting.get(session), None
    if call is not None:
        call()


def _commits_itself(connection: Any) -> bool:
    """Whether a PEP 249 connection commits each statement; false if it cannot be asked."""
    in_transaction = getattr(connection, "in_transaction", None)
    if isinstance(in_transaction, bool):
        return not in_transaction
    get_autocommit = getattr(connection, "get_autocommit", None)
    return bool(get_autocommit()) if callable(get_autocommit) else False
