"""The ingester: writes outcomes to the store, in batches; spools to disk while the store is away."""

from __future__ import annotations

import setproctitle

from workerd import metrics
from workerd.ingester.service import Ingester
from workerd.process.context import RoleContext


def main(ctx: RoleContext) -> int:
    """Serve until the supervisor says stop; returns the exit status. Called in a forked child."""
    setproctitle.setproctitle("workerd: ingester")
    metrics.enter(ctx.paths.metrics, "ingester")
    return Ingester(ctx).run()
