"""The worker's process: receive an assignment, reset the process, run the job, send its result."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable

import msgspec
import setproctitle

from workerd.config.handler_config import PoolConfig
from workerd.errors import LoadError
from workerd.job import id_text
from workerd.outcome import RunResult
from workerd.pool import noted_calls, results
from workerd.pool.executor import Executor
from workerd.pool.handler_log import RecordLog
from workerd.pool.isolation import IgnoredSignals, ProcessState, move_up, run_exit_functions
from workerd.pool.loading import LoadedHandlers, load
from workerd.pool.process_settings import ProcessSettings
from workerd.pool.shared import SOFT_SIGNAL, WorkerFds
from workerd.pool.worker_channel import WorkerChannel
from workerd.pool.worker_limits import Meter
from workerd.pool.worker_messages import Loaded
from workerd.runtime.child import become_subreaper
from workerd.runtime.reaper import RunProcesses
from workerd.tracing import switch as tracing_switch

NOT_READY_EXIT_STATUS = 78
"""A worker whose handlers do not load, or whose `init` or instances fail."""


def worker_main(fds: WorkerFds, name: str, pool: PoolConfig, loaded: LoadedHandlers | None) -> int:
    """Be the worker `name` until the pool closes the channel; returns the exit status.

    `loaded` is None where the worker imports the handlers itself (`preload = false`).
    """
    os.setsid()
    noted_calls.watch()
    # Descendants that user code leaves behind become the worker's children, and are killed with it.
    become_subreaper()
    ignored_signals = IgnoredSignals()
    ignored_signals.install()
    state = ProcessState(fds)
    for fd in {fds.output, fds.null, fds.dump} - {0, 1, 2}:
        os.close(fd)
    processes, settings = RunProcesses(), ProcessSettings()
    title = f"workerd: worker {name}"
    setproctitle.setproctitle(title)
    channel = WorkerChannel(
        move_up(fds.channel),
        move_up(fds.assignments),
        fds.flags,
        on_wait=lambda: setproctitle.setproctitle(title),
        on_idle=processes.while_idle,
    )
    handler_log = RecordLog(state.output_fd)
    handler_log.capture_logging()
    try:
        ready, executor = _prepare(pool, loaded, fds, channel, handler_log)
    except LoadError as error:
        channel.send(Loaded(specs=None, error=str(error)))
        return NOT_READY_EXIT_STATUS
    signal.signal(SOFT_SIGNAL, executor.on_soft_signal)
    ignored_signals.install()
    state.capture()
    processes.capture()
    settings.capture()
    ignored_signals.restore_in_children(_forked_child_cleanup(channel))
    channel.send(ready)
    _run_jobs(title, Meter(fds.flags), channel, executor, state, processes, settings)
    executor.end()
    run_exit_functions()
    return 0


def _prepare(
    pool: PoolConfig,
    loaded: LoadedHandlers | None,
    fds: WorkerFds,
    channel: WorkerChannel,
    handler_log: RecordLog,
) -> tuple[Loaded, Executor]:
    """Import the handlers if need be, call `init`, make the instances. Raises LoadError."""
    ready = Loaded(specs=None)
    if loaded is None:
        loaded = load(pool)
        ready = Loaded(specs=loaded.specs, sources=loaded.sources)
    handler_log.configure_structlog(loaded.structlog_config)
    tracing = tracing_switch.of_runs(pool.otel)
    executor = Executor(loaded.handlers, fds.flags, channel, handler_log, tracing=tracing)
    executor.prepare(loaded.init)
    handler_log.respect_configuration()
    return ready, executor


def _forked_child_cleanup(channel: WorkerChannel) -> Callable[[], None]:
    def clean_up() -> None:
        signal.signal(SOFT_SIGNAL, signal.SIG_IGN)
        faulthandler.disable()  # its crash is not the worker's
        channel.close()

    return clean_up


def _run_jobs(
    title: str,
    meter: Meter,
    channel: WorkerChannel,
    executor: Executor,
    state: ProcessState,
    processes: RunProcesses,
    settings: ProcessSettings,
) -> None:
    while (assignment := channel.receive()) is not None:
        setproctitle.setproctitle(f"{title} {id_text(assignment.claim.id)}")
        state.reset()
        meter.start()
        result = executor.run(assignment)
        channel.end_run(assignment.serial)
        processes.end_run()
        usage = meter.usage()
        # The pool must read the output before the result: the next job may print too.
        state.flush_output()
        state.wait_until_output_is_read()
        tainted = not settings.restore() or result.tainted
        _send(channel, msgspec.structs.replace(result, usage=usage, tainted=tainted))


def _send(channel: WorkerChannel, result: RunResult) -> None:
    try:
        channel.send(result)
    except OSError:
        os._exit(0)  # the pool is gone
    except Exception as error:
        channel.send(results.unsendable(result, error))
