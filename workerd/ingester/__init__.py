"""The ingester: writes outcomes to the store, in batches; spools to disk while the store is away."""

from __future__ import annotations

from workerd.process.context import RoleContext


def main(ctx: RoleContext) -> int:
    """Serve until the supervisor says stop; returns the exit status. Called in a forked child."""
    # Here, so that the supervisor, which must not depend on a driver, can know this function.
    import setproctitle

    from workerd import metrics
    from workerd.ingester.service import Ingester

    setproctitle.setproctitle("workerd: ingester")
    metrics.enter(ctx.paths.metrics, "ingester")
    return Ingester(ctx).run()
