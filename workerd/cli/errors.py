"""From an error to a sentence and an exit status."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from workerd.cli.output import say
from workerd.errors import CommitUnknown, ConfigError, HandlerNotFound, StoreAway, StoreRefused, WorkerdError

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C ended


class UsageError(WorkerdError):
    """The command was not called as it is meant to be."""


class CommandFailed(WorkerdError):
    """The command could not do what it was asked for; the message says what to do next."""


class CommandExit(Exception):
    """Leave with this status; everything has been said."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def report(error: WorkerdError) -> int:
    """Say the error in a sentence on standard error; returns the exit status."""
    if isinstance(error, ConfigError):
        _report_config(error)
        return USAGE
    if isinstance(error, StoreAway | StoreRefused):
        say(without_passwords(_store_sentence(error)))
        return FAILED
    say(without_passwords(str(error)))
    return USAGE if isinstance(error, UsageError | HandlerNotFound) else FAILED


def _report_config(error: ConfigError) -> None:
    count = len(error.errors)
    faults = "one fault" if count == 1 else f"{count} faults"
    say(f"The configuration has {faults}; nothing was done. Correct what is listed and try again:")
    for fault in error.errors:
        say(f"  {without_passwords(fault)}")


def _store_sentence(error: StoreAway | StoreRefused) -> str:
    said = str(error).strip().rstrip(".")
    if isinstance(error, CommitUnknown):
        return (
            f"The connection to the store was lost during COMMIT ({said}): what you asked for may have "
            f"been done or not. Look it up before you ask again."
        )
    if isinstance(error, StoreAway):
        said = said if said.startswith("The store") else f"The store does not answer: {said}"
        return f"{said}. Check that it runs and that store.url is right, then try again."
    return f"The store refused this: {said}. Correct the values and try again."


_USERINFO = re.compile(r"(\b[a-z][a-z0-9+]*://[^\s:/@]*):[^\s@]*@", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Text in which no URL carries a password."""
    return _USERINFO.sub(r"\1:***@", text)


def shown_url(url: str) -> str:
    """A store URL without its password and query, for people."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"
