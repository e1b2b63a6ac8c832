"""A pool: one failure domain of handlers, with its own process and its own workers."""

from __future__ import annotations

from workerd.process.context import RoleContext


def main(ctx: RoleContext, pool_name: str, life: int) -> int:
    """Be the pool `pool_name` until the supervisor says stop; returns the exit status."""
    # Whoever imports a part of this package (workerd.testing does) must not load all of it.
    from workerd.pool.manager import Manager

    return Manager(ctx, ctx.config.pools[pool_name], life).run()
