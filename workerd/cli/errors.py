"""Errors of commands, and how each error becomes a message and an exit status."""

from __future__ import annotations

import re

from workerd.cli.output import notify
from workerd.errors import (
    CommitUnknown,
    ConfigError,
    HandlerNotFound,
    InvalidValue,
    StoreAway,
    StoreRefused,
    WorkerdError,
)
from workerd.text import plural

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C ended


class UsageError(WorkerdError):
    """The command line is wrong."""


class CommandFailed(WorkerdError):
    """The command failed; the message says what to do next."""


class OutputFailed(CommandFailed, OSError):
    """Standard output cannot be written."""


class CommandExit(Exception):
    """Exit with this status; every message has been printed."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def report(error: WorkerdError) -> int:
    """Print the error on standard error and return the exit status."""
    if isinstance(error, ConfigError):
        errors = plural(len(error.errors), "error")
        notify(f"The configuration has {errors}; nothing was done. Correct the following and retry:")
        for text in error.errors:
            notify(f"  {without_passwords(text)}")
        return USAGE
    notify(without_passwords(_sentence(error)))
    return USAGE if isinstance(error, UsageError | InvalidValue | HandlerNotFound) else FAILED


def _sentence(error: WorkerdError) -> str:
    text = str(error).strip()
    cause = text.rstrip(".")
    match error:
        case CommitUnknown():
            ids = f" Its ids: {', '.join(error.ids)}." if error.ids else ""
            return (
                f"The store did not answer the COMMIT ({cause}): the change may have been made.{ids} "
                f"Check before you repeat it."
            )
        case StoreAway(answered=True):
            prefix = "" if cause.startswith("The store") else "The store cannot be used: "
            return f"{prefix}{cause}. Correct that, or retry when the store can be written again."
        case StoreAway():
            prefix = "" if cause.startswith("The store") else "The store does not answer: "
            return f"{prefix}{cause}. Check that it is running and that store.url is correct, then retry."
        case StoreRefused():
            return f"The store rejected the statement: {cause}. Correct the values and retry."
        case InvalidValue():
            is_name = cause.partition(" ")[0].endswith(":")  # of what is wrong, which stays as it is
            return f"{cause}." if is_name else f"{cause[:1].upper()}{cause[1:]}."
        case _:
            return text


_USERINFO = re.compile(r"(\b[a-z][a-z0-9+]*://[^\s:/@]*):[^\s@]*@", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """The text with the password of every URL replaced by `***`."""
    return _USERINFO.sub(r"\1:***@", text)
