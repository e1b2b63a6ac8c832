"""`run`, and without a service manager `start`, `stop`, `restart`, `reload`."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from workerd.cli.background import Running, spawn
from workerd.cli.faults import Failed
from workerd.cli.opening import configuration
from workerd.cli.options import ConfigPath
from workerd.cli.serving import serve
from workerd.cli.terminal import say, seconds_text
from workerd.config.model import Config
from workerd.errors import ConfigError
from workerd.process.context import Paths

START_LIMIT = 120.0
"""Seconds that `start` waits for the daemon to be ready."""
STOP_MARGIN = 30.0
"""Seconds beyond `shutdown.drain` that `stop` waits."""
LOOK_EVERY = 0.05


def run(c: ConfigPath = None) -> None:
    """Run the daemon in the foreground; logs go to standard error."""
    serve(c)


def start(c: ConfigPath = None) -> None:
    """Start the daemon in the background, where there is no systemd."""
    config = configuration(c)
    running = Running.find(config)
    if running is not None:
        raise Failed(
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
            raise Failed(f"workerd did not start: the end of {log_file} says why.")
        time.sleep(LOOK_EVERY)
    say(
        f"workerd was started but is not ready after {seconds_text(START_LIMIT)}: "
        f"`workerd status` and {log_file} say what it waits for."
    )


def _state(config: Config) -> tuple[int, bool] | None:
    from workerd.process.control import ask

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
            raise Failed(
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
    """Let the daemon read its configuration again.

    What did not change runs on; a wrong configuration is refused as a whole.
    """
    config = configuration(c)
    running = Running.find(config)
    if running is None:
        raise Failed("workerd does not run here: `workerd start` starts it.")
    from workerd.process.control import ask

    try:
        answer = ask(Paths(config.node).supervisor, {"ask": "reload"}, timeout=30.0)
    except PermissionError:
        running.signal(signal.SIGHUP)
        say("workerd was told to reload; its log says what came of it.")
        return
    except OSError as error:
        raise Failed(f"workerd does not answer ({error}): look at its log, then try again.") from None
    if not answer.get("ok"):
        raise ConfigError([str(fault) for fault in answer.get("faults", ["the reload was refused"])])
    changes = [str(name) for name in answer.get("changes", [])]
    say(f"workerd reloads: {', '.join(changes)}." if changes else "workerd reloaded: nothing had changed.")
