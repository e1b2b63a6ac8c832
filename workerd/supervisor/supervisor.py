"""The supervisor's process: the node's children, its answers, its reloads and its end."""

from __future__ import annotations

import contextlib
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
from workerd.runtime import systemd
from workerd.runtime.cgroup import Delegation
from workerd.runtime.child import become_subreaper
from workerd.runtime.control import ControlServer, Reply
from workerd.runtime.generations import Generations
from workerd.runtime.limits import own_usage
from workerd.runtime.loop import Loop
from workerd.runtime.paths import Paths
from workerd.supervisor import startup
from workerd.supervisor.children import POOL_PREFIX, Children, Mains
from workerd.supervisor.reload import ANSWER_LIMIT_S, FIXED_SECTIONS, Reload, ReloadPlan, differs, make_plan
from workerd.supervisor.sealed_config import SealedConfig
from workerd.supervisor.shutdown import UNLIMITED_S, Shutdown
from workerd.supervisor.startup import BootError, RuntimeFiles, cannot_write
from workerd.supervisor.supervised_child import ChildState
from workerd.supervisor.systemd_status import SystemdStatus

FILES_CHECK_INTERVAL_S = 3.0
"""Between looks whether another program has removed the runtime files: twelve system calls each."""

_STOPPING = {"ok": False, "stopping": True}


class Supervisor:
    """The first process of a node.

    1. It takes the node's place on the machine (folders, lock, incarnation), or refuses to start.
    2. It forks roles and pools, and restarts those that die or are silent.
    3. It answers `workerd status`, reloads, drains and ends.

    `read` reads the configuration again at a reload. `notify` sends lines to the service manager.
    """

    def __init__(
        self,
        first: SealedConfig,
        mains: Mains,
        read: Callable[[], SealedConfig],
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._sealed = first
        self._config = first.config
        self._mains = mains
        self._read = read
        self._notify = notify or _discard
        self._systemd_status = SystemdStatus(notify) if notify is not None else None
        self._paths = Paths(first.config.node)
        self._generations = Generations(first.config.node)
        self._loop = Loop()
        self._exit_status = 0
        self._ready = False
        self._stop_signals = 0
        self._shutdown: Shutdown | None = None
        self._reload: Reload | None = None
        self._reload_plan = ReloadPlan()
        self._reload_replies: list[Reply] = []  # to answer when the running reload is done
        self._next_reload_replies: list[Reply] = []
        self._next_restarts: list[tuple[str, Reply]] = []
        self._started_at = now_us()
        self._files_due_at = 0.0
        self._log = log.get_logger("supervisor")

    def run(self) -> int:
        """Run the node until it is to stop; returns the exit status. Raises BootError."""
        try:
            lock = self._take_place()
        except OSError as error:  # such as a full disk
            raise BootError(cannot_write(self._paths, error)) from error
        setproctitle.setproctitle("workerd: supervisor")
        become_subreaper()
        self._loop.on_error = lambda error: self._log.error("supervisor.callback_failed", exc_info=error)
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(signum, self.stop)
        self._loop.on_signal(signal.SIGHUP, lambda: self.reload(lambda answer: None))
        self._loop.on_signal(signal.SIGCHLD, lambda: self._children.orphan_reaper.sweep())
        self._children = Children(
            self._loop,
            self._config,
            self._mains,
            self._incarnation,
            sealed=self._sealed.fd,
            lock=lock,
            delegation=Delegation.find(),
            on_change=self._check_ready,
            on_fatal=self._on_fatal,
        )
        self._children.start(pools=not self._superseded)
        self._tick()
        self._loop.run()
        self._control.close()
        self._generations.leave()
        self._files.remove()
        self._log.info("node.stopped", exit_status=self._exit_status)
        return self._exit_status

    def _take_place(self) -> int:
        """Folders, lock, incarnation and control socket; returns the lock. Raises BootError, OSError."""
        startup.make_folders(self._paths)
        lock = startup.take_lock(self._paths.lock)
        self._files = RuntimeFiles(self._paths)
        self._incarnation = startup.begin_incarnation(self._paths)
        startup.remove_old_metrics(self._paths)
        self._superseded = self._generations.begin()
        self._open_control()
        return lock

    def _open_control(self) -> None:
        self._control = ControlServer(self._loop, self._paths.supervisor, self._answer)

    def _check_ready(self) -> None:
        if not self._ready and self._shutdown is None and self._children.settled:
            if not self._superseded and not self._take_over():
                return
            self._ready = True
            self._files.note_sockets()
            self._log.info("node.ready", node=self._config.node.name, pools=len(self._children.pools))
            self._notify(systemd.ready())
            self._send_status(progressing=True)

    def _take_over(self) -> bool:
        """Serve in place of the generations of this daemon that run; False if that must be tried again."""
        try:
            former = self._generations.take_over()
        except OSError as error:
            self._log.error("node.takeover_failed", error=cannot_write(self._paths, error))
            return False
        if former:
            self._log.info("node.took_over", former=", ".join(map(str, former)))
        return True

    def _on_fatal(self, exit_status: int, sentence: str) -> None:
        if self._ready:
            # What works goes on; `workerd status` shows the role that does not.
            self._log.error("role.failed", error=sentence)
            return
        if self._shutdown is not None:
            return  # another role has said it before
        self._log.error("node.start_failed", error=sentence)
        self._exit_status = exit_status
        self.stop()

    def _send_status(self, *, progressing: bool) -> None:
        # Describing the node is a third of an idle supervisor's work, and only a service manager reads it.
        if self._systemd_status is not None:
            self._systemd_status.update(self.describe(), progressing)

    def _tick(self) -> None:
        # First, as the loop goes on after an error here.
        self._loop.call_later(min(1.0, self._config.supervisor.watchdog / 4), self._tick)
        self._send_status(progressing=self._children.progressing)
        if self._shutdown is not None:
            return
        if self._ready and self._generations.superseded:
            self._end_superseded()
        elif self._reload is None:
            self._check_ready()
            self._restore_files_in_turn()

    def _restore_files_in_turn(self) -> None:
        now = time.monotonic()
        if now >= self._files_due_at:
            self._files_due_at = now + FILES_CHECK_INTERVAL_S
            self._restore_files()

    def _restore_files(self) -> None:
        with contextlib.suppress(OSError):
            self._generations.keep_leading_here()
        if not self._files.intact:
            self._log.error(
                "runtime_files.restored",
                error="another program removed files of node.runtime_dir; keep it away from that folder",
                folder=str(self._paths.runtime),
            )
            self._files.renew()
            self._control.close()
            self._open_control()
        if not self._files.reachable and self._children.roles_are_up:
            # Restarted roles bind their sockets anew, and the pools find them there.
            self._start_reload(ReloadPlan(roles=tuple(self._children.roles)))

    # -- ending

    def stop(self) -> None:
        """Drain and end; a second call does not wait for running jobs, a third kills all children."""
        self._stop_signals += 1
        drain = self._config.shutdown.drain
        if self._stop_signals == 1:
            self._notify(systemd.stopping())
            if self._shutdown is None:
                self._begin_shutdown(Shutdown(self._loop, self._children, drain, self._loop.stop))
            else:
                self._shutdown.hasten(drain)
        elif self._stop_signals == 2 and self._shutdown is not None:
            if running := self._children.running_jobs:
                self._log.warning("drain.skipped", running=running)
            self._shutdown.hasten()
        else:
            for child in self._children:
                child.kill("was still running at the third stop signal")

    def _end_superseded(self) -> None:
        """Another generation serves: take nothing more, and end when what runs here has ended."""
        limit = self._config.reload.overlap or UNLIMITED_S
        self._log.info(
            "node.superseded", generation=self._generations.serving, running=self._children.running_jobs
        )
        self._begin_shutdown(Shutdown(self._loop, self._children, limit, self._loop.stop, superseded=True))
        self._send_status(progressing=self._children.progressing)

    def _begin_shutdown(self, shutdown: Shutdown) -> None:
        self._shutdown = shutdown
        shutdown.start()
        restarts = [reply for _, reply in self._next_restarts]
        for reply in (*self._reload_replies, *self._next_reload_replies, *restarts):
            reply(_STOPPING)

    # -- reload

    def reload(self, reply: Reply) -> None:
        """Read the configuration again: refuse it as a whole, or restart what it changes.

        `reply` gets `ok`, and `errors` of a refused configuration or `stopping` where the node ends; else, at
        the end, the `changes` and the children that `failed`, each with a sentence.
        """
        if self._shutdown is not None:
            reply(_STOPPING)
        elif self._reload is not None:
            self._next_reload_replies.append(reply)
        else:
            self._notify(systemd.reloading())
            self._children.request_beats(
                lambda missing: self._reload_now(reply, missing), timeout_s=ANSWER_LIMIT_S, pools_only=True
            )

    def _reload_now(self, reply: Reply, unanswered: set[str]) -> None:
        if self._shutdown is not None or self._reload is not None:
            self.reload(reply)  # it came in between
            return
        try:
            new = self._read()
            if differs(self._config, new.config, FIXED_SECTIONS):
                os.close(new.fd)
                raise ConfigError(["node: a running daemon cannot change [node]; restart it instead."])
        except ConfigError as error:
            self._log.error("reload.refused", error=str(error))
            self._notify(systemd.ready())
            reply({"ok": False, "errors": error.errors})
            return
        plan = self._adopt(new, unanswered)
        self._reload_replies.append(reply)
        self._start_reload(plan, self._config.reload.overlap)

    def _adopt(self, new: SealedConfig, unanswered: set[str]) -> ReloadPlan:
        pools = self._children.pools
        stale = {name for name, pool in pools.items() if pool.last_beat.info.get("stale")}
        plan = make_plan(
            self._config,
            new.config,
            self._mains.roles,
            store_changed=new.digest != self._sealed.digest,
            stale=stale,
            unknown={name for name, pool in pools.items() if pool.name in unanswered},
            quarantined=self._children.quarantined,
        )
        os.close(self._sealed.fd)
        self._children.use_store(new.fd, changed=new.digest != self._sealed.digest)
        self._sealed = new
        self._config = new.config
        log.configure(new.config.log)
        return plan

    def restart_pool(self, name: str, reply: Reply) -> None:
        """Drain a pool and start it again; `reply` gets what `reload` gives, or all `pools` there are."""
        if self._shutdown is not None:
            reply(_STOPPING)
        elif name not in self._children.pools:
            reply({"ok": False, "unknown": name, "pools": sorted(self._children.pools)})
        elif self._reload is not None:
            self._next_restarts.append((name, reply))
        else:
            self._reload_replies.append(reply)
            self._start_reload(ReloadPlan(changed=(name,)))

    def _start_reload(self, plan: ReloadPlan, overlap_s: float = 0.0) -> None:
        self._log.info("reload.started", children=", ".join(plan.children))
        self._reload_plan = plan
        self._reload = Reload(self._loop, self._children, self._config, plan, overlap_s, self._on_reloaded)
        self._reload.start()

    def _on_reloaded(self, failures: dict[str, str]) -> None:
        self._reload = None
        changes = self._reload_plan.children
        if failures:
            error = "; ".join(f"{child}: {sentence}" for child, sentence in failures.items())
            self._log.error("reload.failed", children=", ".join(failures), error=error)
        else:
            self._log.info("reload.finished", children=", ".join(changes))
        self._notify(systemd.ready())
        replies, self._reload_replies = self._reload_replies, []
        for reply in replies:
            reply({"ok": not failures, "changes": changes, "failed": failures})
        waiting, self._next_reload_replies = self._next_reload_replies, []
        restarts, self._next_restarts = self._next_restarts, []
        if waiting:
            self.reload(lambda answer: _reply_all(waiting, answer))
        for name, reply in restarts:
            self.restart_pool(name, reply)

    # -- answering

    def _answer(self, question: dict[str, Any], reply: Reply) -> None:
        match question.get("ask"):
            case "status":
                self._children.request_beats(lambda missing: reply(self.describe()))
            case "metrics":
                reply({"series": list(self._children.counted)})
            case "log":
                self._children.live_logs.ask(question, reply)
            case "reload":
                self.reload(reply)
            case "restart":
                self.restart_pool(str(question.get("pool")), reply)
            case _:
                expected = (
                    '{"ask": "status"}, {"ask": "metrics"}, {"ask": "log", "job": "…"}, {"ask": "reload"}'
                    ' or {"ask": "restart", "pool": "…"}'
                )
                reply({"error": f"expected {expected}"})

    @property
    def _state(self) -> str:
        if self._shutdown is not None:
            return "draining"
        if self._reload is not None:
            return "reloading"
        return "ready" if self._ready else "starting"

    def describe(self) -> dict[str, Any]:
        """The document of `workerd status`."""
        roles = {name: role.describe() for name, role in self._children.roles.items()}
        pools = {name: pool.describe() for name, pool in self._children.pools.items()}
        for name, pool in pools.items():
            configured = self._config.pools.get(name)
            pool["handlers"] = [h.name for h in configured.handlers] if configured is not None else []
            exceeded = self._children.pools[name].crash_loop.exceeded
            pool["quarantined"] = exceeded and pool["state"] != ChildState.UP
            if pool["quarantined"]:
                pool["state"] = ChildState.QUARANTINED  # also while it is tried again
        for former in self._children.former:
            document = {"handlers": [], **former.describe(), "quarantined": False}
            pools[former.name.removeprefix(POOL_PREFIX)] = document
        dispatcher, ingester = roles.get("dispatcher", {}), roles.get("ingester", {})
        _age_lease(dispatcher)
        return {
            "node": self._config.node.name,
            "generation": self._config.node.generation,
            "id": id_text(self._incarnation),
            "version": workerd.__version__,
            "pid": os.getpid(),
            "state": self._state,
            "ready": self._ready and self._children.settled and self._shutdown is None,
            "started_at": to_rfc3339(self._started_at),
            **own_usage(),
            "store": dispatcher.get("store"),
            "lease": dispatcher.get("lease"),
            "spool": ingester.get("spool"),
            "roles": roles,
            "pools": pools,
        }


def _age_lease(dispatcher: dict[str, Any]) -> None:
    """Count down what the dispatcher last said of its lease: it may be stopped, hang, or be dead."""
    said = dispatcher.get("lease")
    if said is None:
        return
    left_s = said["seconds"] - dispatcher["silence"]
    is_held = said["held"] and left_s > 0
    dispatcher["lease"] = {"seconds": round(left_s, 3), "held": is_held}
    dispatcher["lease_held"] = dispatcher["lease_held"] and is_held
    dispatcher["lease_left"] = round(min(dispatcher["lease_left"], max(0.0, left_s)), 3)


def _discard(lines: str) -> None:
    """No service manager: discard."""


def _reply_all(replies: list[Reply], answer: dict[str, Any]) -> None:
    for reply in replies:
        reply(answer)
