"""The dispatcher: claims for pools that have room, renews the lease, and keeps everything moving."""

from __future__ import annotations

import setproctitle

from workerd import metrics
from workerd.dispatcher.service import Dispatcher
from workerd.process.context import RoleContext


def main(ctx: RoleContext) -> int:
    """Run the role in a process that was forked for it; returns the exit status."""
    setproctitle.setproctitle("workerd: dispatcher")
    metrics.enter(ctx.paths.metrics, "dispatcher")
    return Dispatcher(ctx).run()
