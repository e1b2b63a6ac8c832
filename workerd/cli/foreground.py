"""Turn this process into the daemon; imports nothing of the other commands, because the daemon keeps it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from workerd.cli.errors import CommandExit, report
from workerd.errors import WorkerdError
from workerd.supervisor.sealed_config import SealedConfigReader


def run_daemon(path: Path | None, log_file: Path | None = None) -> NoReturn:
    """Run the daemon, then exit with its status; `log_file`: what standard error was redirected to.

    Raises CommandExit, ConfigError and what else keeps the daemon from starting.
    """
    reader = SealedConfigReader(path)  # takes WORKERD_* out of the environment before an import can read it
    # All roles and their libraries: after the environment is clean, and before the first fork, to share them.
    from workerd import log
    from workerd.daemon import run

    _log = log.get_logger("supervisor")

    def reopen_log(signum: int, frame: FrameType | None) -> None:
        log.reopen()
        _log.info("log.reopened")

    if log_file is not None:
        log.follow(log_file)
    # logrotate sends it; without a log file it does nothing, but must not kill the daemon.
    signal.signal(signal.SIGUSR1, reopen_log)
    raise CommandExit(run(reader))


def run_detached() -> int:
    """Run the daemon that `workerd start` detached; returns its exit status.

    Arguments of the process: the log file, then the path of the configuration if there is one.
    """
    log_file, *path = map(Path, sys.argv[1:])
    try:
        run_daemon(path[0] if path else None, log_file)
    except CommandExit as exit_:
        return exit_.status
    except WorkerdError as error:
        return report(error)
