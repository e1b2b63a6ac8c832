"""The errors that cross a module's border, each explained once: its docstring is its message."""

from __future__ import annotations


class WorkerdError(Exception):
    """workerd failed in a way that has no name of its own."""

    def __str__(self) -> str:
        return super().__str__() or (type(self).__doc__ or "").strip()


class ConfigError(WorkerdError):
    """The configuration is wrong; every error is listed, nothing was started."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class InvalidValue(WorkerdError, ValueError):
    """A value given by a caller, a file or a row is not acceptable.

    Any other ValueError is a bug of our own.
    """


class StoreError(WorkerdError):
    """The store did not do what was asked."""


class StoreAway(StoreError):
    """The store cannot be reached or has no quorum; the same transaction may succeed later."""

    def __init__(self, message: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class StoreBusy(StoreAway):
    """Another transaction held what this one needed, or it took too long; the store itself answers."""


class CommitUnknown(StoreAway):
    """The connection was lost during COMMIT: the transaction may have taken effect or not."""


class StoreRefused(StoreError):
    """The store refused a statement for what is in it; sending it again would fail again."""

    def __init__(self, message: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class UnreadableRow(StoreError):
    """A row holds what its column cannot mean: another program wrote it, or it was edited by hand."""


class WrongVersion(StoreError):
    """The store's schema is not the one of this version; run `workerd migrate`."""


class NotFound(WorkerdError):
    """There is no such row."""


class Conflict(WorkerdError):
    """The row is in a state in which this cannot be done."""


class HandlerNotFound(WorkerdError):
    """No handler of this name is known in the configuration or on any node."""


class TooManyWaiting(WorkerdError):
    """The handler has `max_waiting` jobs waiting; try again later."""


class LoadError(WorkerdError):
    """A handler could not be loaded."""


class ChannelClosed(WorkerdError):
    """The other side of a channel has gone."""


class FrameTooLarge(WorkerdError):
    """A frame on a channel is larger than the channel's limit."""


class NodeNameTaken(WorkerdError):
    """Another live node has the same name; give this one another `node.name`."""
