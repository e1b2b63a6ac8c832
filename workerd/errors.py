"""The errors that modules raise for each other; the docstring is the default message."""

from __future__ import annotations


class WorkerdError(Exception):
    """workerd failed."""

    def __str__(self) -> str:
        return super().__str__() or (type(self).__doc__ or "").strip()


class ConfigError(WorkerdError):
    """The configuration is wrong; every error is listed, nothing was started."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class InvalidValue(WorkerdError, ValueError):
    """A value given by a caller, a file or a row is invalid.

    Any other ValueError is a bug of our own.
    """


class StoreError(WorkerdError):
    """The store failed."""


class StoreAway(StoreError):
    """The store cannot be reached, or may not be written; the same transaction may succeed later.

    `answered`: whether the server itself said so, as a read-only one does.
    """

    def __init__(self, message: str = "", code: int = 0, *, answered: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.answered = answered


class StoreBusy(StoreAway):
    """Another transaction held the locks, or this one took too long; the store itself answers."""

    def __init__(self, message: str = "", code: int = 0) -> None:
        super().__init__(message, code, answered=True)


class CommitUnknown(StoreAway):
    """The connection was lost during COMMIT: the transaction may have taken effect or not.

    `ids`: the jobs and requests, as UUID text, that exist if it has; to look them up, or to send them again.
    """

    WARNING = "The store did not answer the commit: the change may have been made. Check before you repeat it"

    def __init__(
        self, message: str = "", code: int = 0, *, answered: bool = False, ids: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, code, answered=answered)
        self.ids = ids


class StoreRefused(StoreError):
    """The store refused the values of a statement; repeating it would fail again."""

    def __init__(self, message: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class UnreadableRow(StoreError):
    """A row holds an invalid value: another program wrote it, or it was edited by hand."""


class WrongVersion(StoreError):
    """The store's schema is not the one of this version; run `workerd migrate`."""


class NotFound(WorkerdError):
    """The row does not exist."""


class Conflict(WorkerdError):
    """The state of the row does not allow this."""


class HandlerNotFound(WorkerdError):
    """No handler of this name is known in the configuration or on any node."""


class TooManyWaiting(WorkerdError):
    """The handler has `max_waiting` jobs waiting; try again later."""


class LoadError(WorkerdError):
    """A handler could not be loaded."""


class FrameTooLarge(WorkerdError):
    """A frame on a channel is larger than the channel's limit."""


class NodeNameTaken(WorkerdError):
    """Another live node has the same name; give this one another `node.name`."""
