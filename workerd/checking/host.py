"""What this machine and this user lack, and what is weaker for it: one sentence each."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path

from workerd.config.model import Config
from workerd.process.cgroup import Delegation
from workerd.process.child import become_subreaper

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
