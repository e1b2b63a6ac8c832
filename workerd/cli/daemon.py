"""`run`, and without a service manager `start`, `stop`, `restart`, `reload`."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from workerd.cli.errors import CommandFailed
from workerd.cli.options import ConfigPath
from workerd.cli.output import say
from workerd.cli.serving import serve
from workerd.cli.session import configuration
from workerd.config.model import Config
from workerd.errors import ConfigError
from workerd.runtime.paths import Paths
from workerd.text import seconds_text

HANDOVER = 10.0
"""Seconds that a detached daemon may take to say its process id."""


_DAEMON = "import sys; from workerd.cli.serving import detached; sys.exit(detached())"


class Running:
    """A daemon that holds the lock on its pid file: a file that nobody has locked is a stale one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def find(cls, config: Config) -> Running | None:
        """The daemon of this configuration, None if there is none. Raises Failed if nobody may know."""
        path = Paths(config.node).pid
        pid = _holder(path)
        if pid is None:
            return None
        try:
            found = cls(pid)
        except ProcessLookupError:
            return None
        # The pid named this very process only if the lock is still held now that its pidfd is open.
        return found if _holder(path) == pid else None

    def lives(self) -> bool:
        """Whether it has not ended."""
        return not _ended(self._pidfd)

    def signal(self, number: int) -> None:
        """Send a signal. Raises Failed if this user may not."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise CommandFailed(
                f"You may not signal workerd (process id {self.pid}): "
                f"do it as the user who started it, or as root."
            ) from None


def _holder(path: Path) -> int | None:
    """The pid of who holds the lock on the pid file; None if nobody does."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be read ({error.strerror}): do this as the user who started workerd."
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(fd)
    return None


class Detached:
    """The daemon that `spawn` started, seen from the command that started it."""

    def __init__(self, pid: int) -> None:
        try:
            self._pidfd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = None

    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._pidfd is not None and not _ended(self._pidfd)


def _ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


def spawn(config: Config, log_file: Path, path: Path | None) -> Detached:
    """Be the daemon in a process without terminal or parent, its output in `log_file`. Raises Failed.

    `path` is what `-c` names.
    """
    try:
        config.node.state_dir.mkdir(0o750, parents=True, exist_ok=True)
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise CommandFailed(
            f"{log_file} cannot be written ({error.strerror}): start workerd as a user who may, "
            f"or set node.state_dir to a folder of your own."
        ) from None
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _detach(log, writer, [str(log_file), *([str(path)] if path else [])])
    os.close(writer)
    os.close(log)
    os.waitpid(pid, 0)
    return Detached(_announced(reader))


def _announced(reader: int) -> int:
    """The pid that the detached process wrote. Raises Failed if it died before."""
    os.set_blocking(reader, False)
    end = time.monotonic() + HANDOVER
    text = b""
    while time.monotonic() < end:
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
        raise CommandFailed(
            "workerd could not be put into the background: `workerd run` shows what is wrong."
        )
    return int(text)


def _detach(log: int, writer: int, arguments: list[str]) -> NoReturn:
    """In the first child: become a daemon, say the pid, begin anew."""
    from daemon import DaemonContext

    try:
        with DaemonContext(
            # A relative path in the configuration must go on to name the same file.
            working_directory=str(Path.cwd()),
            umask=0o027,
            prevent_core=False,  # of its own, a crash of a handler's C library may be worth a core file
            files_preserve=[writer],
            stdout=os.fdopen(os.dup(log), "w"),
            stderr=os.fdopen(os.dup(log), "w"),
            # The supervisor sets its own dispositions; it has no terminal to be stopped by.
            signal_map={},
        ):
            os.write(writer, str(os.getpid()).encode())
            os.close(writer)
            # This process has read the store's credentials, which no pool may inherit.
            os.execv(sys.executable, [sys.executable, "-P", "-c", _DAEMON, *arguments])
    finally:
        os._exit(1)


START_LIMIT = 120.0
"""Seconds that `start` waits for the daemon to be ready."""
STOP_MARGIN = 30.0
"""Seconds beyond `shutdown.drain` that `stop` waits."""
RELOAD_STEP_S = 150.0
"""How long one child may take in a reload, beyond its drain and `load_timeout`."""
LOOK_EVERY = 0.05


def run(c: ConfigPath = None) -> None:
    """Run the daemon in the foreground; logs go to standard error."""
    serve(c)


def start(c: ConfigPath = None) -> None:
    """Start the daemon in the background, where there is no systemd."""
    config = configuration(c)
    running = Running.find(config)
    if running is not None:
        raise CommandFailed(
            f"workerd runs already, with process id {running.pid}. "
            f"`workerd restart` starts it anew, `workerd reload` reads its configuration again."
        )
    _start(config, c)


def _start(config: Config, path: Path | None) -> None:
    log_file = config.node.state_dir / "workerd.log"
    child = spawn(config, log_file, path)
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end:
        state = _state(config)
        if state is not None and state[1]:
            say(f"workerd runs with process id {state[0]}; its log is {log_file}.")
            return
        if not child.lives():
            raise CommandFailed(f"workerd did not start: the end of {log_file} says why.")
        time.sleep(LOOK_EVERY)
    say(
        f"workerd was started but is not ready after {seconds_text(START_LIMIT)}: "
        f"`workerd status` and {log_file} say what it waits for."
    )


def _state(config: Config) -> tuple[int, bool] | None:
    from workerd.runtime.control import ask

    try:
        answer = ask(Paths(config.node).supervisor, {"ask": "status"})
    except OSError:
        return None
    return int(answer.get("pid", 0)), bool(answer.get("ready"))


def stop(c: ConfigPath = None) -> None:
    """Stop the daemon once its running jobs have ended.

    A second `stop` does not wait for them: they will run again.
    """
    config = configuration(c)
    running = Running.find(config)
    if running is None:
        say("workerd does not run here: there is nothing to stop.")
        return
    _stop(config, running)
    say("workerd has stopped.")


def _stop(config: Config, running: Running) -> None:
    running.signal(signal.SIGTERM)
    end = time.monotonic() + config.shutdown.drain + STOP_MARGIN
    told = time.monotonic() + 1.0
    while running.lives():
        if time.monotonic() > end:
            raise CommandFailed(
                f"workerd (process id {running.pid}) has not stopped: `workerd status` says what it "
                f"waits for; a second `workerd stop` does not wait for running jobs."
            )
        if time.monotonic() > told:
            drain = seconds_text(config.shutdown.drain)
            say(f"Waiting for running jobs, at most {drain}; a second `workerd stop` does not wait.")
            told = end + 1
        time.sleep(LOOK_EVERY)


def restart(c: ConfigPath = None) -> None:
    """Stop the daemon and start it anew in the background."""
    config = configuration(c)  # a daemon that runs is not stopped for a configuration that is wrong
    running = Running.find(config)
    if running is not None:
        _stop(config, running)
    _start(config, c)


def reload(c: ConfigPath = None) -> None:
    """Reload the configuration, and wait until what it changes is up.

    What did not change runs on; a wrong configuration is refused as a whole.
    """
    config = configuration(c)
    running = Running.find(config)
    if running is None:
        raise CommandFailed("workerd does not run here: `workerd start` starts it.")
    from workerd.runtime.control import ask

    # One after the other, each changed child drains and comes up again.
    slowest = max((pool.load_timeout for pool in config.pools.values()), default=0.0)
    limit = (config.shutdown.drain + slowest + RELOAD_STEP_S) * (len(config.pools) + 10)
    try:
        answer = ask(Paths(config.node).supervisor, {"ask": "reload"}, timeout=limit)
    except PermissionError:
        running.signal(signal.SIGHUP)
        say("Sent SIGHUP to workerd; its log shows whether the reload succeeded.")
        return
    except OSError as error:
        raise CommandFailed(f"workerd does not answer ({error}): look at its log, then try again.") from None
    if "errors" in answer:
        raise ConfigError([str(error) for error in answer["errors"]])
    changes = [str(name) for name in answer.get("changes", [])]
    if not answer.get("ok"):
        failed = [f"  {child}: {sentence}" for child, sentence in answer.get("failed", {}).items()]
        raise CommandFailed("\n".join(["workerd reloaded, but these did not come up:", *failed]))
    say(f"workerd reloaded: {', '.join(changes)}." if changes else "workerd reloaded: nothing had changed.")
