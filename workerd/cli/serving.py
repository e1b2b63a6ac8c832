"""To be the daemon; apart from the other commands, because a daemon keeps what it once imported."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import NoReturn

from workerd.cli.errors import CommandExit, report
from workerd.errors import WorkerdError


def serve(path: Path | None, log_file: Path | None = None) -> NoReturn:
    """Be the daemon; leaves with its exit status. `log_file`: what standard error was opened on."""
    from workerd import log
    from workerd.supervisor.sealed_config import SealedConfigReader

    reader = SealedConfigReader(path)  # before anything that is imported can look at the environment
    # Imported before the first fork, and only here: these are all the roles.
    from workerd.daemon import run as run_daemon

    if log_file is not None:
        log.follow(log_file)
    # Sent by logrotate; where the log is no file of ours there is nothing to do, and nothing must die of it.
    signal.signal(signal.SIGUSR1, lambda signum, frame: _reopened())
    raise CommandExit(run_daemon(reader))


def _reopened() -> None:
    from workerd import log

    log.reopen()
    log.get_logger("supervisor").info("told to open the log anew")


def detached() -> int:
    """Be the daemon that `start` put into the background; returns its exit status."""
    log_file, *path = map(Path, sys.argv[1:])
    try:
        serve(path[0] if path else None, log_file)
    except CommandExit as ended:
        return ended.status
    except WorkerdError as error:
        return report(error)
    return 0
