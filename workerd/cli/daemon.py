"""`run`, and without a service manager `start`, `stop`, `restart`, `reload`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from daemon import DaemonContext

from workerd.cli.errors import CommandFailed, UsageError
from workerd.cli.foreground import run_daemon
from workerd.cli.options import ConfigPath, PoolName
from workerd.cli.output import notify
from workerd.cli.running import RunningDaemon, has_exited, load_running_config
from workerd.cli.session import load_config
from workerd.cli.status import troubles
from workerd.config.model import Config
from workerd.errors import ConfigError
from workerd.runtime.control import ask
from workerd.runtime.generations import serving_paths
from workerd.runtime.own_files import folder_fault
from workerd.text import line, seconds_text

START_TIMEOUT_S = 120.0
"""How long `start` waits for the daemon to be ready."""
SILENT_START_S = 3.0
"""An ordinary start is shorter; what keeps a longer one is shown."""
STOP_MARGIN_S = 30.0
"""How long `stop` waits beyond `shutdown.drain`."""
RELOAD_STEP_S = 150.0
"""How long one child may take in a reload, beyond its drain and `load_timeout`."""
PID_TIMEOUT_S = 10.0
"""How long a detached daemon may take to report its process id."""
POLL_INTERVAL_S = 0.05

_DETACHED = "import sys; from workerd.cli.foreground import run_detached; sys.exit(run_detached())"


def run(c: ConfigPath = None) -> None:
    """Run the daemon in the foreground; it logs to standard error."""
    run_daemon(c)


def start(c: ConfigPath = None) -> None:
    """Start the daemon in the background, without systemd."""
    config = load_config(c)
    running = RunningDaemon.find(config)
    if running is not None:
        raise CommandFailed(
            f"workerd is already running with process id {running.pid}. "
            f"`workerd restart` restarts it, `workerd reload` reloads its configuration."
        )
    _start(config, c)


def _start(config: Config, path: Path | None) -> None:
    log_file = config.node.state_dir / "workerd.log"
    pidfd = _spawn(log_file, path)
    with _telling_at_ctrl_c("workerd is still starting; `workerd stop` stops it."):
        _wait_until_ready(config, pidfd, log_file)


def _wait_until_ready(config: Config, pidfd: int | None, log_file: Path) -> None:
    began = time.monotonic()
    told: set[str] = set()
    while time.monotonic() < began + START_TIMEOUT_S:
        status = _ask_status(config)
        for trouble in troubles(status):
            if trouble not in told and time.monotonic() > began + SILENT_START_S:
                notify(f"Not ready yet: {trouble}.")
                told.add(trouble)
        if status.get("ready"):
            notify(f"workerd is running with process id {status.get('pid')}; it logs to {log_file}.")
            return
        if pidfd is None or has_exited(pidfd):
            raise CommandFailed(f"workerd did not start. The end of {log_file} shows the reason.")
        time.sleep(POLL_INTERVAL_S)
    notify(
        f"workerd was started but is not ready after {seconds_text(START_TIMEOUT_S)}: "
        f"`workerd status` and {log_file} show what it waits for."
    )


@contextlib.contextmanager
def _telling_at_ctrl_c(text: str) -> Iterator[None]:
    """Say what becomes of the daemon when the command that waits for it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        notify(text)
        raise


def _ask_status(config: Config) -> dict[str, object]:
    try:
        return ask(serving_paths(config.node).supervisor, {"ask": "status"})
    except OSError:
        return {}


def stop(c: ConfigPath = None) -> None:
    """Stop the daemon after its running jobs have finished.

    A second `stop` does not wait for running jobs: they are interrupted and run again later.
    """
    config = load_running_config(c)
    running = RunningDaemon.find(config)
    if running is None:
        notify("workerd is not running; nothing to stop.")
        return
    _stop(config, running, "")
    notify("workerd has stopped.")


def _stop(config: Config, running: RunningDaemon, then: str) -> None:
    """`then`: what the user is told besides if the command is interrupted."""
    was_stopping = _ask_status(config).get("state") == "draining"
    running.signal(signal.SIGTERM)
    second = "" if was_stopping else "; a second `workerd stop` does not wait for its jobs"
    with _telling_at_ctrl_c(f"workerd is still stopping{then}{second}."):
        _wait_until_gone(config, running, was_stopping=was_stopping)


def _wait_until_gone(config: Config, running: RunningDaemon, *, was_stopping: bool) -> None:
    deadline = time.monotonic() + config.shutdown.drain + STOP_MARGIN_S
    notify_at = time.monotonic() + 1.0
    while running.is_alive():
        if time.monotonic() > deadline:
            raise CommandFailed(
                f"workerd (process id {running.pid}) has not stopped. `workerd status` shows what it waits "
                f"for; a second `workerd stop` does not wait for running jobs."
            )
        if time.monotonic() > notify_at:
            drain = seconds_text(config.shutdown.drain)
            notify(
                "workerd was already stopping: its running jobs are interrupted now, and run again later."
                if was_stopping
                else f"Waiting at most {drain} for running jobs; a second `workerd stop` does not wait."
            )
            notify_at = deadline + 1
        time.sleep(POLL_INTERVAL_S)


def restart(pool: PoolName = "", c: ConfigPath = None) -> None:
    """Restart the daemon in the background, or only POOL.

    A pool's running jobs finish within shutdown.drain; then it loads its handlers anew. The command waits
    until it is up.
    """
    config = load_config(c)  # a wrong configuration must not stop a running daemon
    running = RunningDaemon.find(config)
    if pool:
        _restart_pool(config, running, pool)
        return
    if running is not None:
        _stop(config, running, ", and is not started again")
    _start(config, c)


def _restart_pool(config: Config, running: RunningDaemon | None, pool: str) -> None:
    if running is None:
        raise CommandFailed("workerd is not running. `workerd start` starts it with all of its pools.")
    try:
        with _telling_at_ctrl_c("workerd is still restarting the pool; `workerd status` shows it."):
            answer = ask(
                serving_paths(config.node).supervisor,
                {"ask": "restart", "pool": pool},
                timeout=_reload_limit(config),
            )
    except PermissionError:
        raise CommandFailed(
            f"You may not restart pools of workerd (process id {running.pid}). "
            f"Do this as the user who started it, or as root."
        ) from None
    except OSError as error:
        raise CommandFailed(f"workerd does not answer ({error}). Check its log, then retry.") from None
    if "unknown" in answer:
        known = ", ".join(line(name) for name in answer.get("pools", [])) or "none"
        raise UsageError(f'workerd has no pool "{line(pool)}". Its pools: {known}.')
    _raise_failures(answer)
    notify(f"workerd restarted pool {line(pool)}.")


def _reload_limit(config: Config) -> float:
    """Seconds for all that a reload can do: each changed child drains and comes up, one after the other."""
    slowest = max((pool.load_timeout for pool in config.pools.values()), default=0.0)
    return (config.shutdown.drain + slowest + RELOAD_STEP_S) * (len(config.pools) + 10)


def _raise_failures(answer: dict[str, Any]) -> None:
    if "errors" in answer:
        raise ConfigError([str(error) for error in answer["errors"]])
    if answer.get("stopping"):
        raise CommandFailed(
            "workerd is stopping, so nothing was done. `workerd start` starts it once it has ended."
        )
    if not answer.get("ok"):
        failed = [f"  {line(child)}: {line(words)}" for child, words in answer.get("failed", {}).items()]
        raise CommandFailed(
            "\n".join(["workerd reloaded, but these did not come up or were not reloaded:", *failed])
        )


def reload(c: ConfigPath = None) -> None:
    """Make the daemon read its configuration again.

    Restarts what changed, pools whose code changed, and quarantined pools, and waits until they are up; the
    others keep running. A wrong configuration is refused as a whole.
    """
    config = load_config(c)
    running = RunningDaemon.find(config)
    if running is None:
        raise CommandFailed("workerd is not running. `workerd start` starts it.")
    try:
        with _telling_at_ctrl_c("workerd is still reloading; its log shows the result."):
            answer = ask(
                serving_paths(config.node).supervisor, {"ask": "reload"}, timeout=_reload_limit(config)
            )
    except PermissionError:
        running.signal(signal.SIGHUP)
        notify("Sent SIGHUP to workerd; its log shows whether the reload succeeded.")
        return
    except OSError as error:
        raise CommandFailed(f"workerd does not answer ({error}). Check its log, then retry.") from None
    _raise_failures(answer)
    changes = [str(name) for name in answer.get("changes", [])]
    notify(f"workerd reloaded: {', '.join(changes)}." if changes else "workerd reloaded: nothing changed.")


def _spawn(log_file: Path, path: Path | None) -> int | None:
    """Start the daemon without terminal and parent, its output in `log_file`; `path`: what `-c` names.

    Returns its pidfd, None if it has exited. Raises CommandFailed.
    """
    try:
        log_file.parent.mkdir(0o750, parents=True, exist_ok=True)
        if fault := folder_fault(log_file.parent):
            raise CommandFailed(fault)
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise CommandFailed(
            f"{log_file} cannot be written ({error.strerror}). Start workerd as a user who may, "
            f"or set node.state_dir to a folder of your own."
        ) from None
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _exec_detached(log, writer, [str(log_file), *([str(path)] if path else [])])
    os.close(writer)
    os.close(log)
    os.waitpid(pid, 0)
    try:
        return os.pidfd_open(_read_pid(reader))
    except ProcessLookupError:
        return None


def _read_pid(reader: int) -> int:
    """The pid that the detached process wrote. Raises CommandFailed if it exited before."""
    os.set_blocking(reader, False)
    deadline = time.monotonic() + PID_TIMEOUT_S
    text = b""
    while time.monotonic() < deadline:
        try:
            part = os.read(reader, 32)
        except BlockingIOError:
            time.sleep(0.005)
            continue
        if not part:
            break
        text += part
    os.close(reader)
    if not text.isdigit():
        raise CommandFailed("workerd could not be started in the background. `workerd run` shows the reason.")
    return int(text)


def _exec_detached(log: int, writer: int, arguments: list[str]) -> NoReturn:
    """In the first child: detach, write the pid, and execute the daemon."""
    try:
        with DaemonContext(
            # A relative path in the configuration must keep naming the same file.
            working_directory=str(Path.cwd()),
            umask=0o027,
            prevent_core=False,  # the crash of a handler's C library may be worth a core file
            files_preserve=[writer],
            stdout=os.fdopen(os.dup(log), "w"),
            stderr=os.fdopen(os.dup(log), "w"),
            signal_map={},  # the supervisor sets its own dispositions
        ):
            os.write(writer, str(os.getpid()).encode())
            os.close(writer)
            # This process has read the store's credentials, which no pool may inherit.
            os.execv(sys.executable, [sys.executable, "-P", "-c", _DETACHED, *arguments])
    finally:
        os._exit(1)
