"""The command line: assembles the commands, turns errors into exit statuses."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from workerd.cli.errors import FAILED, INTERRUPTED, CommandExit, report
from workerd.errors import WorkerdError

# The command line: `main` assembles the commands and turns what they raise into exit statuses.
#
# Nothing heavy is imported before the command that needs it runs: `workerd enqueue` is called from shell
# scripts, thousands of times.
#


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 it failed, 2 wrong usage or configuration."""
    for stream in (sys.stdout, sys.stderr):
        # Odd bytes in data must not end a command in a terminal that knows only ASCII.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    status = _run(list(sys.argv[1:] if arguments is None else arguments))
    return _flushed(status)


def _run(arguments: list[str]) -> int:
    try:
        _do(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED
    except CommandExit as ended:
        return ended.status
    except WorkerdError as error:
        return report(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED
    return 0


def _do(arguments: list[str]) -> None:
    if arguments[:1] == ["run"] and (len(arguments) == 1 or (len(arguments) == 3 and arguments[1] == "-c")):
        # As such a line is always meant: a daemon has no use for what reads the others, and would keep it.
        from workerd.cli.serving import serve

        serve(Path(arguments[2]) if len(arguments) == 3 else None)
    from workerd.cli.app import app

    app(args=arguments, prog_name="workerd")


def _flushed(status: int) -> int:
    """The status, after what was printed has left; a reader that has gone makes no noise."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes again at its end and would complain.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or FAILED
    return status
