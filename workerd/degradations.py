"""What works worse on this host than it can, and what follows from it."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path

from workerd.config.model import Config
from workerd.pool.command import parent_death_prefix
from workerd.runtime.cgroup import Delegation
from workerd.runtime.child import become_subreaper
from workerd.tracing import switch as tracing

MIN_OPEN_FILES = 600
"""Descriptors that a pool needs: the dump of a worker's stacks goes to one above 500."""
_PR_GET_CHILD_SUBREAPER = 37


def degradations(config: Config) -> list[str]:
    """One sentence for each thing that works worse on this host than it can, with what follows from it."""
    checks: Iterable[Callable[[Config], str]] = (
        _pidfd, _subreaper, _children, _hidepid, _open_files, _cgroup, _setpriv, _root, _folders,
        _sqlite, _otel,
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
    default = "a deadline kills only by process group and subreaper"
    return (
        "No cgroup is delegated to this process (under systemd: Delegate=yes in the unit): "
        f"{'; '.join(used) or default}."
    )


def _setpriv(config: Config) -> str:
    commands = any(handler.command is not None for handler in config.handlers.values())
    if not commands or parent_death_prefix():
        return ""
    return (
        "No setpriv of util-linux: the program of a command handler outlives a daemon that is killed outside "
        "of a control group."
    )


def _root(config: Config) -> str:
    if os.getuid() == 0:
        return "This user is root, and handlers run as the user of workerd: start it as a user of its own."
    return ""


def _folders(config: Config) -> str:
    for folder in (config.node.state_dir, config.node.runtime_dir):
        existing = next((p for p in (folder, *folder.parents) if exists(p)), Path("/"))
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            return f"This user cannot write {folder}; for the service, systemd creates it."
    return ""


def exists(path: Path) -> bool:
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


def _otel(config: Config) -> str:
    if config.otel.enabled and not tracing.installed():
        return f"otel.enabled: {tracing.NOT_INSTALLED}."
    return ""
