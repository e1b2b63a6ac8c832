"""`workerd check`: what would be started, whether every handler loads, what is degraded on this host."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from workerd.config.model import Config, HandlerConfig, PoolConfig, ScheduleConfig
from workerd.config.validators import duration_literal, size_literal
from workerd.errors import LoadError
from workerd.pool.loading import load
from workerd.runtime.cgroup import Delegation
from workerd.runtime.child import Child, become_subreaper, fork
from workerd.text import death_text

NOFILE = 600
"""Descriptors that a pool needs: the dump of a worker's stacks goes to one above 500."""

_PR_GET_CHILD_SUBREAPER = 37


def weaknesses(config: Config) -> list[str]:
    """Sentences on what works less well here than where everything is there."""
    looks: Iterable[Callable[[Config], str]] = (
        _pidfd, _subreaper, _children, _hidepid, _nofile, _cgroups, _root, _state_folder, _store,
    )  # fmt: skip
    return [said for said in (look(config) for look in looks) if said]


def _pidfd(config: Config) -> str:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return "The kernel has no pidfd (Linux 5.3): workerd cannot run here."
    return ""


def _subreaper(config: Config) -> str:
    become_subreaper()
    value = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0)
    if value.value:
        return ""
    return "No child subreaper: processes that a handler puts into the background outlive its deadline."


def _children(config: Config) -> str:
    if Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return ""
    return (
        "/proc does not list the children of a process: what a handler puts into the background is found "
        "only when its parent has ended."
    )


def _hidepid(config: Config) -> str:
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "/proc is not mounted: neither stacks at the deadline nor memory use can be told."
    options = next((m.split()[3] for m in reversed(mounts) if m.split()[1] == "/proc"), "")
    if os.getuid() == 0 or "hidepid=" not in options or "hidepid=0" in options or "hidepid=off" in options:
        return ""
    return (
        "/proc hides other users' processes (hidepid): a handler that changes its user is not seen any more."
    )


def _nofile(config: Config) -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= NOFILE:
        return ""
    return f"Only {soft} open files are allowed: no stack is kept at a deadline; raise the limit to {NOFILE}."


def _cgroups(config: Config) -> str:
    wished = sorted(
        {
            key
            for pool in config.pools.values()
            for key in ("memory_max", "cpu_weight", "pids_max")
            if getattr(pool, key)
        }
    )
    if Delegation.find() is not None:
        return ""
    weaker = {
        "memory_max": "memory_max limits what a worker may allocate, not what it uses, and an out-of-memory "
        "kill by the kernel may hit any process",
        "cpu_weight": "cpu_weight has no effect",
        "pids_max": "pids_max counts all processes of this user, and binds no root",
    }
    effects = (
        "; ".join(weaker[key] for key in wished) or "a deadline kills by process group and subreaper alone"
    )
    return f"No cgroup is delegated to this process (under systemd: Delegate=yes in the unit): {effects}."


def _root(config: Config) -> str:
    if os.getuid() == 0:
        return "This user is root, and handlers run as who runs workerd: start it as a user of its own."
    return ""


def _state_folder(config: Config) -> str:
    for folder in (config.node.state_dir, config.node.runtime_dir):
        there = next((p for p in (folder, *folder.parents) if _exists(p)), Path("/"))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            return f"{folder} cannot be written by this user; for the service systemd makes it."
    return ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True


def _store(config: Config) -> str:
    if config.store.url.startswith("sqlite:"):
        return (
            "The store is an SQLite file: one node only, and one writer at a time; a program that keeps a "
            "transaction on it open stops the daemon."
        )
    return ""


AT_ONCE = 4
"""Trials that run side by side; an import may take hundreds of megabytes."""
ANSWER_LIMIT = 16 * 1024
"""Bytes of one answer; less than a pipe holds, so that nobody waits to write it."""


def load_faults(config: Config) -> dict[str, str]:
    """For every handler of the configuration: why it does not load, "" if it does."""
    waiting = [(pool, handler) for pool in config.pools.values() for handler in pool.handlers]
    found: dict[str, str] = {handler.name: "" for _, handler in waiting}
    running: list[Trial] = []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running.append(Trial.begin(*waiting.pop(0)))
        _wait(running)
        for trial in [t for t in running if t.over()]:
            found[trial.handler.name] = trial.answer()
            running.remove(trial)
    return found


def _wait(trials: Iterable[Trial]) -> None:
    """Until one of the processes has ended or its time is over."""
    with selectors.DefaultSelector() as selector:
        for trial in trials:
            selector.register(trial.child.pidfd, selectors.EVENT_READ)
        ends = min(trial.ends for trial in trials)
        selector.select(max(0.0, ends - time.monotonic()))


@dataclass
class Trial:
    """One handler being loaded; `ends`: monotonic seconds at which it is killed."""

    handler: HandlerConfig
    child: Child
    reader: int
    ends: float
    limit: float

    @classmethod
    def begin(cls, pool: PoolConfig, handler: HandlerConfig) -> Trial:
        """Fork the process that loads it."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        child = fork(_loading(msgspec.structs.replace(pool, handlers=(handler,)), writer), keep=(writer,))
        os.close(writer)
        return cls(handler, child, reader, time.monotonic() + pool.load_timeout, pool.load_timeout)

    def over(self) -> bool:
        """Whether it has ended, by itself or now by force."""
        if self.child.reap() is not None:
            return True
        return time.monotonic() >= self.ends

    def answer(self) -> str:
        """What came out; what it left running is killed."""
        ended = self.child.status is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.kill()
        if not ended:
            os.waitid(os.P_PIDFD, self.child.pidfd, os.WEXITED | os.WNOWAIT)
            self.child.reap()
        self.child.close()
        try:
            said = os.read(self.reader, ANSWER_LIMIT + 1)
        except BlockingIOError:
            said = b""
        os.close(self.reader)
        if said[:1] == b"+":
            return ""
        if said:
            prefix = f'handler "{self.handler.name}" (call = "{self.handler.call}"): '
            return said[1:].decode("utf-8", "replace").removeprefix(prefix)
        if not ended:
            return (
                f"loading it took longer than {duration_literal(self.limit)}; make the import quicker "
                "or set load_timeout higher"
            )
        return f"the process that imported it {death_text(self.child.status or 0)}"


def _loading(pool: PoolConfig, writer: int) -> Callable[[], int]:
    def main() -> int:
        # Its own group, so that what an import starts can be killed with it.
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        for name in [name for name in os.environ if name.startswith("WORKERD_")]:
            del os.environ[name]
        try:
            load(pool)
            said = "+"
        except LoadError as error:
            said = f"-{error}"
        except BaseException as error:
            said = f"-its import ended with {type(error).__name__}: {error}"
        os.write(writer, said.encode("utf-8", "replace")[:ANSWER_LIMIT])
        return 0

    return main


class HandlerPlan(msgspec.Struct, frozen=True):
    """One handler as it would be started; `fault` says why it does not load, "" if it does."""

    name: str
    call: str
    pool: str
    recurs: str
    fault: str


class PoolPlan(msgspec.Struct, frozen=True):
    """One pool as it would be started; `limits` in words."""

    name: str
    workers: int
    handlers: list[str]
    limits: str


class CheckReport(msgspec.Struct, frozen=True):
    """What would be started and what is to know about it; sentences for people."""

    node: str
    roles: list[str]
    pools: list[PoolPlan]
    handlers: list[HandlerPlan]
    workflows: list[str]
    weaker: list[str]
    without_effect: list[str]
    notes: list[str]

    @property
    def loads(self) -> bool:
        """Whether every handler loads."""
        return not any(handler.fault for handler in self.handlers)


def report(config: Config) -> CheckReport:
    """Look at everything; handlers are loaded in processes of their own, each within its time."""
    faults = load_faults(config)
    return CheckReport(
        node=config.node.name,
        roles=["ingester", "dispatcher", *(["gateway"] if config.gateway.listen else [])],
        pools=[_pool(pool) for pool in config.pools.values()],
        handlers=[_handler(handler, faults[handler.name]) for handler in config.handlers.values()],
        workflows=[
            f"{flow.name}: {len(flow.jobs)} jobs{_recurs(flow.schedule, ', ')}"
            for flow in config.workflows.values()
        ],
        weaker=weaknesses(config),
        without_effect=without_effect(config),
        notes=[*config.notes, *_notes(config)],
    )


def _pool(pool: PoolConfig) -> PoolPlan:
    limits = {
        "memory": pool.memory_max and size_literal(pool.memory_max),
        "cpu weight": pool.cpu_weight,
        "processes": pool.pids_max,
        "jobs a worker": pool.max_jobs,
        "age": pool.max_age and duration_literal(pool.max_age),
        "growth": pool.max_rss and size_literal(pool.max_rss),
    }
    return PoolPlan(
        pool.name,
        pool.workers,
        [handler.name for handler in pool.handlers],
        ", ".join(f"{name} {value}" for name, value in limits.items() if value),
    )


def _handler(handler: HandlerConfig, fault: str) -> HandlerPlan:
    return HandlerPlan(handler.name, handler.call, handler.pool, _recurs(handler.schedule), fault)


def _recurs(schedule: ScheduleConfig, before: str = "") -> str:
    if schedule.cron:
        return f"{before}at {schedule.cron} {schedule.timezone}"
    if schedule.cooler is not None:
        return f"{before}{duration_literal(schedule.cooler)} after each end"
    return ""


def _notes(config: Config) -> list[str]:
    found = []
    if not config.handlers:
        found.append("No handler is configured: this node would run nothing; add a [handlers.NAME] table.")
    if not config.pickup.enabled:
        found.append("pickup.enabled is false: this node would take no work.")
    for key, file in (
        ("store.password_file", config.store.password_file),
        ("gateway.token_file", config.gateway.token_file),
    ):
        if file and not os.access(file, os.R_OK):
            found.append(
                f"{key}: {file} cannot be read by this user; the user of the daemon must be able to."
            )
    return found


def without_effect(config: Config) -> list[str]:
    """Keys that are set and change nothing here, each with the reason."""
    found = []
    if config.store.url.startswith("sqlite:") and config.store.password_file:
        found.append("store.password_file: an SQLite store has no password.")
    if not config.gateway.listen:
        found += [
            f"gateway.{key}: the gateway is off." for key in _changed(config.gateway) if key != "listen"
        ]
    elif not config.gateway.token_file and config.gateway.open_metrics:
        found.append("gateway.open_metrics: no route asks for a token.")
    return found


def _changed(value: Any) -> list[str]:
    """The keys of a part of the configuration that differ from the defaults."""
    default = type(value)()
    return [key for key in value.__struct_fields__ if getattr(value, key) != getattr(default, key)]
