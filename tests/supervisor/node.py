"""A supervisor over small children of the tests' own: `python -m tests.supervisor.node FOLDER`."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from workerd import log
from workerd.config.handler_config import PoolConfig, RestartConfig
from workerd.config.model import Config, LogConfig, NodeConfig, ShutdownConfig, SupervisorConfig
from workerd.messages import Roster
from workerd.runtime import child
from workerd.runtime.child import CRASH_LOOP_EXIT_STATUS
from workerd.runtime.paths import RoleContext
from workerd.runtime.service import Service
from workerd.supervisor import children, reload, supervisor
from workerd.supervisor.children import Mains
from workerd.supervisor.sealed_config import seal
from workerd.supervisor.startup import BootError
from workerd.supervisor.supervisor import Supervisor


class Role(Service):
    """Comes up at once unless its fate is another; ends on Stop."""

    def __init__(self, ctx: RoleContext, fate: str = "") -> None:
        super().__init__(ctx.control, ctx.watchdog)
        self.fate = fate
        self.stale = False
        self.roles: dict[str, int] = {}
        self.store_was_used = ctx.store_was_used
        self.asked = ctx.paths.state.parent / "asked"

    def start(self) -> None:
        if self.fate == "fatal":
            self.state, self.trouble = "failed", "It cannot work on this node."
            self.beat(fatal=3)
        elif self.fate == "waits":
            self.become("waiting", "It waits for something that is not there.")
        elif self.fate not in ("hangs", "dies-when-asked"):
            self.become("up")
        if self.fate == "dies-when-asked":
            self.loop.call_later(0.8, lambda: os._exit(3))
        if self.fate == "falls":
            self.loop.call_later(0.1, lambda: os._exit(4))

    def on_roster(self, roster: Roster) -> None:
        self.roles = {role.name: role.pid for role in roster.roles}

    def on_report(self) -> None:
        if self.fate == "dies-when-asked" and self.asked.exists():
            os._exit(3)
        if self.fate == "slow-and-stale":
            time.sleep(0.4)
            self.stale = True

    def info(self) -> dict[str, Any]:
        return {"stale": self.stale, "known_roles": self.roles, "store_was_used": self.store_was_used}


def role(ctx: RoleContext) -> int:
    """The role's fate is the file `fate` beside the state folder, read at its start."""
    fate = ctx.paths.state.parent / "fate"
    return Role(ctx, fate.read_text() if fate.exists() else "").run()


def pool(ctx: RoleContext, name: str, life: int) -> int:
    """A pool whose behaviour follows from its name."""
    if name == "dies":
        return 3
    if name == "loops":
        return CRASH_LOOP_EXIT_STATUS
    if name == "leaves-children" and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.pause()
        os._exit(0)
    return Role(ctx, name).run()


def configuration(folder: Path, pools: list[str]) -> Config:
    """`debug` among the pools is none of them: it changes a section that every child reads."""
    debug = "debug" in pools
    return Config(
        node=NodeConfig(name="test", runtime_dir=folder / "run", state_dir=folder / "state"),
        log=LogConfig(format="json", level="debug" if debug else "info"),
        supervisor=SupervisorConfig(watchdog=1.0),
        shutdown=ShutdownConfig(drain=1.0),
        pools={
            name: PoolConfig(name=name, restart=RestartConfig(intensity=2, period=60.0), load_timeout=0.1)
            for name in pools
            if name != "debug"
        },
    )


def fail_forks_while(exists: Path) -> None:
    """As a kernel does that is out of processes."""
    fork = child.fork

    def fork_or_fail(main: Callable[[], int], keep: Iterable[int] = ()) -> child.Child:
        if exists.exists():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork(main, keep)

    child.fork = fork_or_fail


def main(folder: Path) -> int:
    def load() -> Config:
        return configuration(folder, msgspec.json.decode((folder / "pools").read_bytes(), type=list[str]))

    fail_forks_while(folder / "no-fork")
    # As long as nothing but the watchdog would end a stopped child.
    supervisor.ANSWER_LIMIT_S = reload.ANSWER_LIMIT_S = 0.7
    children.MAX_DEAD_ROLES_IN_ROSTER = 1
    reload.START_LIMIT_S = reload.TROUBLE_LIMIT_S = 1.0
    config = load()
    log.configure(config.log)
    mains = Mains(roles={"ingester": role, "dispatcher": role}, pool=pool)
    try:
        return Supervisor(seal(config), mains, lambda: seal(load())).run()
    except BootError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
