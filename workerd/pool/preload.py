"""Handlers are loaded once, in the pool's own process, before its workers are forked from it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from workerd.config.model import Pool
from workerd.errors import LoadError
from workerd.log import get_logger
from workerd.pool.loading import LoadedHandlers, load
from workerd.process.child import ignore_terminal_signals

log = get_logger("pool")


def preload(pool: Pool) -> LoadedHandlers:
    """Load the pool's handlers within `load_timeout`. Raises LoadError.

    An import that hangs is ended by SIGALRM with its default disposition: nothing in this process needs
    to run for that, not even the interpreter. The supervisor then sees the pool die of that signal.
    """
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, pool.load_timeout)
    try:
        loaded = load(pool)
    except LoadError:
        raise
    except BaseException as error:
        raise LoadError(f"The import ended with {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _restore(folder)
    _warn_of_threads(pool)
    return loaded


def _restore(folder: int) -> None:
    """Take back what an import may have changed for all of the process."""
    for signum in (signal.SIGCHLD, signal.SIGALRM, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_DFL)
    ignore_terminal_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(OSError):
        os.fchdir(folder)
        os.close(folder)


def _warn_of_threads(pool: Pool) -> None:
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if names:
        log.warning(
            "importing a handler started threads, which do not exist in the forked workers and may have "
            "held locks; set preload = false for this pool",
            pool=pool.name,
            threads=", ".join(names),
        )
