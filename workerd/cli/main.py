"""Entry point of the command line: runs one command and returns its exit status."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from workerd.cli.errors import FAILED, INTERRUPTED, CommandExit, OutputFailed, report
from workerd.cli.output import notify
from workerd.cli.streams import discard_output, flush_stdout, guard_stdout, open_standard_streams
from workerd.errors import WorkerdError

COMPLETION_VARIABLE = "_WORKERD_COMPLETE"
"""Set by the shell that asks for completions."""
GROUPS = (["job"], ["request"], ["errors"])
"""Words that begin several commands."""
MAX_YOUNG_OBJECTS = 100_000
"""Of the garbage collector in a command, before it looks for cycles."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 done, 1 failed, 2 wrong usage or configuration."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        # Data with characters that the terminal's encoding lacks must not end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return flush_stdout(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    try:
        _dispatch(arguments)
    except SystemExit as exit_:
        if exit_.code == INTERRUPTED:  # Typer's for Ctrl-C
            notify("Interrupted.")
        return exit_.code if isinstance(exit_.code, int) else FAILED
    except CommandExit as exit_:
        return exit_.status
    except OutputFailed as error:
        discard_output()
        return report(error)
    except WorkerdError as error:
        return report(error)
    except KeyboardInterrupt:
        notify("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED
    return 0


def _configuration_last(arguments: list[str]) -> list[str]:
    """The arguments with a `-c PATH` in front of the command behind its words, where commands take it.

    It may be in front of a group, such as `job`, or between that and its command.
    """
    in_group = arguments[:1] in GROUPS
    group, given = arguments[:in_group], arguments[in_group:]
    if not given or not given[0].startswith("-c"):
        return arguments
    count = 1 if len(given[0]) > 2 else 2
    option, rest = given[:count], [*group, *given[count:]]
    words = 2 if rest[:1] in GROUPS else 1
    found = next((n for n, word in enumerate(rest) if word.startswith("-")), len(rest))
    if found < words and (rest[:1] != ["errors"] or rest[found:] == ["--help"]):
        return rest or arguments  # without a command nothing reads the configuration
    return [*rest[: min(words, found)], *option, *rest[min(words, found) :]]


def _dispatch(arguments: list[str]) -> None:
    arguments = _configuration_last(arguments)
    if arguments[:1] == ["run"] and (len(arguments) == 1 or (len(arguments) == 3 and arguments[1] == "-c")):
        # Without Typer, which every process of the daemon would keep in memory.
        from workerd.cli.foreground import run_daemon

        run_daemon(Path(arguments[2]) if len(arguments) == 3 else None)
    guard_stdout()
    # Collecting garbage while modules are imported takes 4 % of a short command, and finds none.
    gc.set_threshold(MAX_YOUNG_OBJECTS)
    # After the daemon's way has branched off, for the same reason.
    from workerd.cli.commands import build

    if COMPLETION_VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
    build()(args=arguments, prog_name="workerd")
