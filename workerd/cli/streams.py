"""The standard streams of a command: they are open, and an output that cannot be written is said so."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from workerd.cli.errors import FAILED, OutputFailed, report
from workerd.cli.output import notify


def open_standard_streams() -> None:
    """Give /dev/null the numbers 0-2 that are closed: else other files get them, and what is printed."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            os.dup2(null, fd)
            if null != fd:
                os.close(null)
            os.set_inheritable(fd, True)
    # Python has none for those that were closed; these are never closed, nor are the descriptors.
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


class _Output(io.FileIO):
    """Raises OutputFailed for a failed write, so that no other OSError is mistaken for it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise  # its reader has seen enough
        except OSError as error:
            raise OutputFailed(
                f"Standard output cannot be written: {error.strerror}. Free space there, or redirect it."
            ) from None


def guard_stdout() -> None:
    """Make a failed write to standard output raise OutputFailed, wherever a command prints."""
    given = sys.stdout
    if given is not sys.__stdout__ or not isinstance(given, io.TextIOWrapper):
        return  # a caller in this process has put its own there
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(1, "w", closefd=False)),
        encoding=given.encoding,
        errors=given.errors,
        line_buffering=given.line_buffering or given.write_through,
    )


def discard_output() -> None:
    """Drop what is not written yet: the interpreter would try it again at its exit, and complain."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def flush_stdout(status: int) -> int:
    """The exit status once the output is written, FAILED instead of 0 where it cannot be."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return status or FAILED
    except OutputFailed as error:
        discard_output()
        return report(error)
    return status


@contextlib.contextmanager
def saying_if_unprinted(sentence: str) -> Iterator[None]:
    """Print the sentence on standard error if what the block prints cannot be written."""
    try:
        yield
        sys.stdout.flush()
    except (OutputFailed, BrokenPipeError):
        notify(sentence)
        raise
