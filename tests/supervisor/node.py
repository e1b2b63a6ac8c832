"""A supervisor over small children of the tests' own: `python -m tests.supervisor.node FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec

from workerd import log
from workerd.config.model import (
    Config,
    LogConfig,
    NodeConfig,
    PoolConfig,
    RestartConfig,
    ShutdownConfig,
    SupervisorConfig,
)
from workerd.runtime.child import CRASH_LOOP_EXIT_STATUS
from workerd.runtime.paths import RoleContext
from workerd.runtime.service import Service
from workerd.supervisor.children import Mains
from workerd.supervisor.sealed_config import reading
from workerd.supervisor.startup import BootError
from workerd.supervisor.supervisor import Supervisor


class Role(Service):
    """Comes up at once; ends when it is told to."""

    def start(self) -> None:
        self.become("up")


def role(ctx: RoleContext) -> int:
    return Role(ctx.control, ctx.watchdog).run()


def pool(ctx: RoleContext, name: str, life: int) -> int:
    if name == "dies":
        return 3
    if name == "loops":
        return CRASH_LOOP_EXIT_STATUS
    if name == "leaves-children" and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.pause()
        os._exit(0)
    return Role(ctx.control, ctx.watchdog).run()


def configuration(folder: Path, pools: list[str]) -> Config:
    return Config(
        node=NodeConfig(name="test", runtime_dir=folder / "run", state_dir=folder / "state"),
        log=LogConfig(format="json"),
        supervisor=SupervisorConfig(watchdog=1.0),
        shutdown=ShutdownConfig(drain=1.0),
        pools={
            name: PoolConfig(name=name, restart=RestartConfig(intensity=2, period=60.0)) for name in pools
        },
    )


def main(folder: Path) -> int:
    def load() -> Config:
        return configuration(folder, msgspec.json.decode((folder / "pools").read_bytes(), type=list[str]))

    config = load()
    log.configure(config.log)
    mains = Mains(roles={"ingester": role, "dispatcher": role}, pool=pool)
    try:
        return Supervisor(reading(config), mains, lambda: reading(load())).run()
    except BootError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
