"""The supervisor: its state, its control socket, and what it does on each signal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import setproctitle

import workerd
from workerd import log
from workerd.clock import now_us, to_rfc3339
from workerd.errors import ConfigError
from workerd.job import id_text
from workerd.runtime.cgroup import Delegation
from workerd.runtime.child import become_subreaper
from workerd.runtime.control import ControlServer, Reply
from workerd.runtime.loop import Loop
from workerd.runtime.paths import Paths
from workerd.supervisor import startup
from workerd.supervisor.children import Children, Mains
from workerd.supervisor.reload import FIXED, Plan, Reload, differs, plan
from workerd.supervisor.sealed_config import Read, Reading, unseal
from workerd.supervisor.shutdown import Shutdown
from workerd.supervisor.startup import RuntimeFiles
from workerd.supervisor.supervised_child import ChildState
from workerd.supervisor.systemd_status import SystemdStatus


class Supervisor:
    """One node's first process.

    1. takes the node's place on the machine (folders, lock, incarnation), or refuses;
    2. forks the roles and pools, and restarts whoever dies or is silent;
    3. answers `workerd status`, reloads, drains and ends.

    `read` reads the configuration again at reload. `notify` gets the lines for the service manager.
    """

    def __init__(
        self, first: Reading, mains: Mains, read: Read, notify: Callable[[str], None] = lambda line: None
    ) -> None:
        self._reading = first
        self._config = first.config
        self._mains = mains
        self._read = read
        self._notify = notify
        self._telling = SystemdStatus(notify)
        self._paths = Paths(first.config.node)
        self._loop = Loop()
        self._status = 0
        self._ready = False
        self._shutdown: Shutdown | None = None
        self._reload: Reload | None = None
        self._reload_again: list[Reply] = []
        self._stops = 0
        self._started = now_us()
        self._log = log.get_logger("supervisor")

    def run(self) -> int:
        """Run the node until it is told to stop; returns the exit status. Raises BootError."""
        startup.make_folders(self._paths)
        self._lock = startup.take_lock(self._paths.lock)
        self._files = RuntimeFiles(self._paths)
        self._incarnation = startup.begin_incarnation(self._paths)
        startup.forget_numbers(self._paths)
        setproctitle.setproctitle("workerd: supervisor")
        become_subreaper()
        self._loop.on_error = lambda error: self._log.error("a fault in the supervisor", exc_info=error)
        self._listen()
        self._tree = Children(
            self._loop,
            self._config,
            self._mains,
            self._incarnation,
            sealed=self._reading.sealed,
            lock=self._lock,
            unseal=unseal,
            delegation=Delegation.find(),
            on_state=self._look,
            on_fatal=self._fatal,
        )
        self._tree.start()
        self._feed_watchdog()
        self._loop.run()
        self._control.close()
        self._files.remove()
        self._log.info("stopped", status=self._status)
        return self._status

    def _listen(self) -> None:
        self._open_control()
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(signum, self.stop)
        self._loop.on_signal(signal.SIGHUP, lambda: self.reload(lambda answer: None))
        self._loop.on_signal(signal.SIGCHLD, lambda: self._tree.strangers.look())

    def _open_control(self) -> None:
        self._control = ControlServer(self._loop, self._paths.supervisor, self._answer)

    # -- becoming ready

    def _look(self) -> None:
        """Called after every change of state of a child."""
        if not self._ready and self._shutdown is None and self._tree.settled:
            self._ready = True
            self._files.note_sockets()
            self._log.info("ready", node=self._config.node.name, pools=len(self._tree.pools))
            self._notify("READY=1")
            self._telling.look(self.describe(), progressing=True)

    def _fatal(self, status: int, why: str) -> None:
        if self._ready:
            # What works goes on: a role that cannot is shown by `workerd status` and the log.
            self._log.error(why)
            return
        self._log.error(f"not started: {why}")
        self._status = status
        self.stop()

    def _feed_watchdog(self) -> None:
        self._telling.look(self.describe(), self._tree.fresh())
        self._loop.call_later(min(1.0, self._config.supervisor.watchdog / 4), self._feed_watchdog)
        self._look_after_files()

    def _look_after_files(self) -> None:
        if self._shutdown is not None or self._reload is not None:
            return
        if not self._files.intact:
            self._log.error(
                "another program removed files of node.runtime_dir; they are made anew, "
                "but keep whatever cleans that folder away from it",
                folder=str(self._paths.runtime),
            )
            self._files.renew()
            self._control.close()
            self._open_control()
        if not self._files.reachable and self._tree.roles_are_up:
            self._restart_roles()

    def _restart_roles(self) -> None:
        """They bind their sockets anew; the pools find them there."""
        what = Plan(roles=list(self._tree.roles), changed=[], added=[], removed=[])
        self._reload = Reload(self._loop, self._tree, self._config, what, self._reloaded)
        self._reload.begin()

    # -- ending

    def stop(self) -> None:
        """Drain and end; a second call does not wait for what runs, a third kills everything."""
        self._stops += 1
        if self._stops == 1:
            self._notify("STOPPING=1")
            drain = self._config.shutdown.drain
            self._shutdown = Shutdown(self._loop, self._tree, drain, self._loop.stop)
            self._shutdown.begin()
        elif self._stops == 2 and self._shutdown is not None:
            self._log.warning("not waiting for running jobs: they are interrupted and will run again")
            self._shutdown.hasten()
        else:
            for slot in self._tree.slots():
                slot.kill("was in the way of a third signal")

    # -- reload

    def reload(self, reply: Reply) -> None:
        """Read the configuration again; refused whole if wrong, else only what it changes is restarted."""
        if self._shutdown is not None:
            reply({"ok": False, "faults": ["workerd is stopping."]})
        elif self._reload is not None:
            self._reload_again.append(reply)
        else:
            self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._tree.refresh(lambda: self._reload_now(reply))

    def _reload_now(self, reply: Reply) -> None:
        if self._shutdown is not None:
            reply({"ok": False, "faults": ["workerd is stopping."]})
            return
        try:
            new = self._read()
        except ConfigError as error:
            self._refuse(error, reply)
            return
        if differs(self._config, new.config, FIXED):
            os.close(new.sealed)
            why = "node: a running daemon cannot change [node]; restart it instead."
            self._refuse(ConfigError([why]), reply)
            return
        what = self._take(new)
        self._log.info("reloading", changes=", ".join(what.names) or "nothing")
        self._reload = Reload(self._loop, self._tree, self._config, what, self._reloaded)
        self._reload.begin()
        reply({"ok": True, "changes": what.names})

    def _refuse(self, error: ConfigError, reply: Reply) -> None:
        self._log.error("reload refused, the old configuration stays", error=str(error))
        self._notify("READY=1")
        reply({"ok": False, "faults": error.errors})

    def _take(self, new: Reading) -> Plan:
        stale = {name for name, slot in self._tree.pools.items() if slot.said.info.get("stale")}
        what = plan(
            self._config,
            new.config,
            self._mains.roles,
            store_changed=new.mark != self._reading.mark,
            stale=stale,
        )
        os.close(self._reading.sealed)
        self._tree.sealed = new.sealed
        self._reading = new
        self._config = new.config
        log.configure(new.config.log)
        return what

    def _reloaded(self) -> None:
        self._reload = None
        self._log.info("reloaded")
        self._notify("READY=1")
        again, self._reload_again = self._reload_again, []
        if again:
            self.reload(lambda answer: _reply_all(again, answer))

    # -- answering

    def _answer(self, ask: dict[str, Any], reply: Reply) -> None:
        match ask.get("ask"):
            case "status":
                self._tree.refresh(lambda: reply(self.describe()))
            case "reload":
                self.reload(reply)
            case _:
                reply({"error": 'expected {"ask": "status"} or {"ask": "reload"}'})

    @property
    def _state(self) -> str:
        if self._shutdown is not None:
            return "draining"
        if self._reload is not None:
            return "reloading"
        return "ready" if self._ready else "starting"

    def describe(self) -> dict[str, Any]:
        """The document of `workerd status`."""
        roles = {name: slot.describe() for name, slot in self._tree.roles.items()}
        pools = {name: slot.describe() for name, slot in self._tree.pools.items()}
        for name, pool in pools.items():
            configured = self._config.pools.get(name)
            pool["handlers"] = [h.name for h in configured.handlers] if configured is not None else []
            held = self._tree.pools[name].policy.exceeded and pool["state"] != ChildState.UP
            pool["quarantined"] = held
            if held:
                pool["state"] = ChildState.QUARANTINED  # also while it is tried again
        dispatcher, ingester = roles.get("dispatcher", {}), roles.get("ingester", {})
        return {
            "node": self._config.node.name,
            "id": id_text(self._incarnation),
            "version": workerd.__version__,
            "pid": os.getpid(),
            "state": self._state,
            "ready": self._ready and self._tree.settled and self._shutdown is None,
            "started_at": to_rfc3339(self._started),
            "store": dispatcher.get("store"),
            "lease": dispatcher.get("lease"),
            "spool": ingester.get("spool"),
            "roles": roles,
            "pools": pools,
        }


def _reply_all(replies: list[Reply], answer: dict[str, Any]) -> None:
    for reply in replies:
        reply(answer)
