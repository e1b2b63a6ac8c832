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

from workerd import host
from workerd.config.model import Config, HandlerConfig, PoolConfig, ScheduleConfig
from workerd.config.validators import duration_literal, size_literal
from workerd.errors import LoadError
from workerd.exposure import exposures
from workerd.pool.loading import CONNECT_IN_INIT, NO_COOLER_KEY, SHARED_BY_WORKERS, lacks_cooler_key, load
from workerd.runtime.cgroup import Delegation
from workerd.runtime.child import Child, become_subreaper, fork
from workerd.runtime.descriptors import named
from workerd.text import death_text

MIN_OPEN_FILES = 600
"""Descriptors that a pool needs: the dump of a worker's stacks goes to one above 500."""
MAX_PROBES = 4
"""Handlers that are loaded at the same time; an import may take hundreds of megabytes."""
MAX_ANSWER_BYTES = 16 * 1024
"""Less than a pipe holds, so that writing an answer never blocks."""

MEMORY_SHARE = 0.75
"""Of the memory of this host, for all workers together."""
MIN_PROPOSED_MEMORY = 64 << 20
PROPOSED_PIDS_PER_WORKER = 64
MAX_NAMES = 5
"""Pools that one sentence lists."""

_PR_GET_CHILD_SUBREAPER = 37


# The names `fault` and `weaker` are those of the JSON document.


class HandlerPlan(msgspec.Struct, frozen=True, rename={"error": "fault"}):
    """One handler as it would be started; `error`: why it does not load, "" if it does."""

    name: str
    call: str
    pool: str
    recurs: str
    error: str


class PoolPlan(msgspec.Struct, frozen=True):
    """One pool as it would be started; `limits` in words."""

    name: str
    workers: int
    handlers: list[str]
    limits: str


class ServerPlan(msgspec.Struct, frozen=True):
    """One server of the store as it is now; `role`: writable, read-only or away, and why not writable."""

    host: str
    version: str
    role: str
    reason: str


class CheckReport(msgspec.Struct, frozen=True, rename={"degraded": "weaker"}):
    """What would be started, and sentences on what an administrator should know about it."""

    node: str
    roles: list[str]
    pools: list[PoolPlan]
    handlers: list[HandlerPlan]
    workflows: list[str]
    degraded: list[str]
    without_effect: list[str]
    notes: list[str]
    not_checked: list[str]
    store: list[ServerPlan] | msgspec.UnsetType = msgspec.UNSET
    schema: str | msgspec.UnsetType = msgspec.UNSET
    store_faults: list[str] | msgspec.UnsetType = msgspec.UNSET


def check_config(config: Config) -> CheckReport:
    """Check everything; each handler is loaded in a process of its own, within its pool's load_timeout."""
    trials = load_all(config)
    return CheckReport(
        node=config.node.name,
        roles=["ingester", "dispatcher", *(["gateway"] if config.gateway.listen else [])],
        pools=[_plan_pool(pool) for pool in config.pools.values()],
        handlers=[
            HandlerPlan(
                handler.name,
                handler.call,
                handler.pool,
                _recurrence(handler.schedule),
                trials[handler.name].error,
            )
            for handler in config.handlers.values()
        ],
        workflows=[
            ", ".join(filter(None, [f"{flow.name}: {len(flow.jobs)} jobs", _recurrence(flow.schedule)]))
            for flow in config.workflows.values()
        ],
        degraded=degradations(config),
        without_effect=without_effect(config),
        notes=[
            *config.notes,
            *_notes(config),
            *_paths(config),
            *exposures(config),
            *_opened(config, trials),
            *_not_recurring(config, trials),
            *_proposed_limits(config),
        ],
        not_checked=[
            "The store: that it answers, its database, schema, privileges and roles; `workerd check --store` "
            "asks it."
        ],
    )


def _plan_pool(pool: PoolConfig) -> PoolPlan:
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


def _recurrence(schedule: ScheduleConfig) -> str:
    if schedule.cron:
        return f"at {schedule.cron} {schedule.timezone}"
    if schedule.cooler is not None:
        return f"{duration_literal(schedule.cooler)} after each end"
    return ""


def _notes(config: Config) -> list[str]:
    found = []
    if not config.handlers:
        found.append("No handler is configured: this node would run nothing. Add a [handlers.NAME] table.")
    if not config.pickup.enabled:
        found.append("pickup.enabled is false: this node would take no jobs.")
    for key, file in (
        ("store.password_file", config.store.password_file),
        ("gateway.token_file", config.gateway.token_file),
    ):
        if file and not os.access(file, os.R_OK):
            found.append(f"{key}: this user cannot read {file}; the daemon's user must be able to.")
    return found


def _proposed_limits(config: Config) -> list[str]:
    """Limits that would keep one handler from taking the whole host."""
    pools = list(config.pools.values())
    limits = host.limits()
    found = []
    if unlimited := [pool.name for pool in pools if not pool.memory_max]:
        each = max(MIN_PROPOSED_MEMORY, int(_memory_bytes() * MEMORY_SHARE / sum(p.workers for p in pools)))
        found.append(
            f"No memory_max: {_shortened(unlimited)}. A handler that allocates without end takes all memory "
            f'of the host; memory_max = "{each >> 20}MiB" for each worker would leave a quarter to the rest.'
        )
    if unlimited := [pool.name for pool in pools if not pool.pids_max]:
        count = PROPOSED_PIDS_PER_WORKER * max(pool.workers for pool in pools)
        if limits.processes:
            count = min(count, max(1, limits.processes // (len(pools) + 1)))
        found.append(
            f"No pids_max: {_shortened(unlimited)}. A handler that forks without end takes all processes of "
            f"the host; pids_max = {count} is enough for most."
        )
    given = [
        *([f"{size_literal(limits.memory_bytes)} of memory"] if limits.memory_bytes else []),
        *([f"{limits.processes} processes and threads"] if limits.processes else []),
    ]
    if found and given:
        found.insert(
            0, f"This control group has {' and '.join(given)}, for the daemon and its pools together."
        )
    return found


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, host.limits().memory_bytes or physical)


def _shortened(names: list[str]) -> str:
    """The first MAX_NAMES names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _paths(config: Config) -> list[str]:
    """Folders of `path` that handlers cannot be imported from."""
    found = []
    for pool in config.pools.values():
        for folder in map(Path, pool.path):
            key = f"pools.{pool.name}.path"
            if not _exists(folder):
                found.append(f"{key}: {folder} does not exist; correct the path, or install the code there.")
            elif folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
                found.append(f"{key}: this user cannot read {folder}; the daemon's user must be able to.")
    return found


def without_effect(config: Config) -> list[str]:
    """Keys that are set but change nothing, each with the reason."""
    found = []
    if config.store.url.startswith("sqlite:") and config.store.password_file:
        found.append("store.password_file: an SQLite store has no password.")
    if not config.gateway.listen:
        found += [f"gateway.{key}: the gateway is off." for key in _changed_keys(config.gateway)]
    elif not config.gateway.token_file and config.gateway.open_metrics:
        found.append("gateway.open_metrics: no route requires a token.")
    return found


def _changed_keys(section: Any) -> list[str]:
    default = type(section)()
    return [
        key
        for key in section.__struct_fields__
        if key != "listen" and getattr(section, key) != getattr(default, key)
    ]


# -- what is degraded on this host


def degradations(config: Config) -> list[str]:
    """One sentence for each thing that works worse on this host than it can, with what follows from it."""
    checks: Iterable[Callable[[Config], str]] = (
        _pidfd, _subreaper, _children, _hidepid, _open_files, _cgroup, _root, _folders, _sqlite,
    )  # fmt: skip
    return [sentence for sentence in (check(config) for check in checks) if sentence]


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
    return "No child subreaper: background processes of a handler outlive its deadline."


def _children(config: Config) -> str:
    if Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return ""
    return (
        "/proc does not list the children of a process: background processes of a handler are found only "
        "after their parent has ended."
    )


def _hidepid(config: Config) -> str:
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "/proc is not mounted: stacks at the deadline and memory use are not available."
    options = next((m.split()[3] for m in reversed(mounts) if m.split()[1] == "/proc"), "")
    if os.getuid() == 0 or "hidepid=" not in options or "hidepid=0" in options or "hidepid=off" in options:
        return ""
    return (
        "/proc hides other users' processes (hidepid): a handler that changes its user can no longer be seen."
    )


def _open_files(config: Config) -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return ""
    return (
        f"Only {soft} open files are allowed: no stack is kept at a deadline. "
        f"Raise the limit to {MIN_OPEN_FILES}."
    )


def _cgroup(config: Config) -> str:
    if Delegation.find() is not None:
        return ""
    effects = {
        "memory_max": "memory_max limits what a worker may allocate, not what it uses, and an out-of-memory "
        "kill by the kernel may hit any process",
        "cpu_weight": "cpu_weight has no effect",
        "pids_max": "pids_max counts all processes of this user, and does not bind root",
    }
    used = [
        effect for key, effect in effects.items() if any(getattr(pool, key) for pool in config.pools.values())
    ]
    default = "a deadline kills by process group and subreaper alone"
    return (
        "No cgroup is delegated to this process (under systemd: Delegate=yes in the unit): "
        f"{'; '.join(used) or default}."
    )


def _root(config: Config) -> str:
    if os.getuid() == 0:
        return "This user is root, and handlers run as the user of workerd: start it as a user of its own."
    return ""


def _folders(config: Config) -> str:
    for folder in (config.node.state_dir, config.node.runtime_dir):
        existing = next((p for p in (folder, *folder.parents) if _exists(p)), Path("/"))
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            return f"This user cannot write {folder}; for the service, systemd creates it."
    return ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True


def _sqlite(config: Config) -> str:
    if config.store.url.startswith("sqlite:"):
        return (
            "The store is an SQLite file: one node only, and one writer at a time; a program that keeps a "
            "transaction on it open stops the daemon."
        )
    return ""


# -- whether handlers load


class LoadTrial(msgspec.Struct, frozen=True):
    """How loading one handler went; `error`: why it does not load, "" if it does.

    `sockets`, `files`: what importing it left open. `has_cooler`: whether it is a class with `cooler()`.
    """

    error: str = ""
    sockets: list[str] = []
    files: list[str] = []
    has_cooler: bool = False


def load_all(config: Config) -> dict[str, LoadTrial]:
    """Load every handler of the configuration, each in a process of its own."""
    waiting = [(pool, handler) for pool in config.pools.values() for handler in pool.handlers]
    trials: dict[str, LoadTrial] = {}
    running: list[LoadProbe] = []
    try:
        while waiting or running:
            while waiting and len(running) < MAX_PROBES:
                running.append(LoadProbe.start(*waiting.pop(0)))
            _wait(running)
            for probe in [probe for probe in running if probe.is_over()]:
                trials[probe.handler.name] = probe.finish()
                running.remove(probe)
    finally:
        for probe in running:  # Ctrl-C
            probe.finish()
    return trials


def _opened(config: Config, trials: dict[str, LoadTrial]) -> list[str]:
    """Sentences on handlers whose import opens what their workers share, or cannot use."""
    found = []
    for handler in [handler for pool in config.pools.values() if pool.preload for handler in pool.handlers]:
        trial = trials[handler.name]
        for opened, advice in ((trial.sockets, CONNECT_IN_INIT), (trial.files, SHARED_BY_WORKERS)):
            if opened:
                found.append(
                    f'handler "{handler.name}": importing it leaves open: {", ".join(opened)}. {advice}'
                )
    return found


def _not_recurring(config: Config, trials: dict[str, LoadTrial]) -> list[str]:
    return [
        f'handler "{name}": {NO_COOLER_KEY}.'
        for name, trial in trials.items()
        if trial.has_cooler and lacks_cooler_key(name, config)
    ]


def _wait(probes: Iterable[LoadProbe]) -> None:
    """Return when one of the processes has ended or reached its deadline."""
    with selectors.DefaultSelector() as selector:
        for probe in probes:
            selector.register(probe.child.pidfd, selectors.EVENT_READ)
        deadline = min(probe.deadline for probe in probes)
        selector.select(max(0.0, deadline - time.monotonic()))


@dataclass
class LoadProbe:
    """A process that loads one handler; `reader`: the pipe that it answers on; `deadline`: monotonic."""

    handler: HandlerConfig
    child: Child
    reader: int
    deadline: float
    timeout: float

    @classmethod
    def start(cls, pool: PoolConfig, handler: HandlerConfig) -> LoadProbe:
        """Fork the process."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        alone = msgspec.structs.replace(pool, handlers=(handler,))
        child = fork(lambda: _load(alone, writer), keep=(writer,))
        os.close(writer)
        return cls(handler, child, reader, time.monotonic() + pool.load_timeout, pool.load_timeout)

    def is_over(self) -> bool:
        """Whether it has ended or reached its deadline."""
        return self.child.reap() is not None or time.monotonic() >= self.deadline

    def finish(self) -> LoadTrial:
        """Kill what is left of it and return how loading went."""
        timed_out = self.child.status is None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.kill()
        if timed_out:
            os.waitid(os.P_PIDFD, self.child.pidfd, os.WEXITED | os.WNOWAIT)
            self.child.reap()
        self.child.close()
        try:
            answer = os.read(self.reader, MAX_ANSWER_BYTES + 1)
        except BlockingIOError:
            answer = b""
        os.close(self.reader)
        told = answer[1:].decode("utf-8", "replace")
        if answer[:1] == b"+":
            return _trial(told)
        if answer:
            return LoadTrial(
                told.removeprefix(f'handler "{self.handler.name}" (call = "{self.handler.call}"): ')
            )
        if timed_out:
            return LoadTrial(
                f"loading took longer than {duration_literal(self.timeout)}; make the import faster, "
                "or raise load_timeout"
            )
        return LoadTrial(f"the process that imported it {death_text(self.child.status or 0)}")


def _trial(told: str) -> LoadTrial:
    try:
        return msgspec.json.decode(told, type=LoadTrial)
    except msgspec.DecodeError:  # more than the answer holds
        return LoadTrial()


def _load(pool: PoolConfig, writer: int) -> int:
    """In the child: load the handler; write `+` and what that left open, or `-` and the error."""
    # A process group of its own, so that what an import starts is killed with it.
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w")))
    for name in [name for name in os.environ if name.startswith("WORKERD_")]:
        del os.environ[name]
    try:
        loaded = load(pool)
        opened = loaded.descriptors
        sockets, files = named(opened, shareable=False), named(opened, shareable=True)
        has_cooler = any(spec.has_cooler for spec in loaded.specs)
        trial = LoadTrial(sockets=sockets, files=files, has_cooler=has_cooler)
        answer = "+" + msgspec.json.encode(trial).decode()
    except LoadError as error:
        answer = f"-{error}"
    except BaseException as error:
        answer = f"-its import ended with {type(error).__name__}: {error}"
    os.write(writer, answer.encode("utf-8", "replace")[:MAX_ANSWER_BYTES])
    return 0
