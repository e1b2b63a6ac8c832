"""To be the daemon; apart from the other commands, because a daemon keeps what it once imported."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import NoReturn

from workerd.cli.faults import Ended


def serve(path: Path | None, log_file: Path | None = None) -> NoReturn:
    """Be the daemon; leaves with its exit status. `log_file`: what standard error was opened on."""
    from workerd import log
    from workerd.supervisor.reading import Reader

    reader = Reader(path)  # before anything that is imported can look at the environment
    # Imported before the first fork, and only here: these are all the roles.
    from workerd.daemon import run as run_daemon

    if log_file is not None:
        log.follow(log_file)
    # Sent by logrotate; where the log is no file of ours there is nothing to do, and nothing must die of it.
    signal.signal(signal.SIGUSR1, lambda signum, frame: _reopened())
    raise Ended(run_daemon(reader))


def _reopened() -> None:
    from workerd import log

    log.reopen()
    log.get_logger("supervisor").info("told to open the log anew")
