"""A pool: one failure domain of handlers, with its own process and its own workers."""

from __future__ import annotations

from workerd.pool.manager import Manager
from workerd.process.context import RoleContext

__all__ = ["main"]


def main(ctx: RoleContext, pool_name: str, life: int) -> int:
    """Be the pool `pool_name` until the supervisor says stop; returns the exit status."""
    return Manager(ctx, ctx.config.pools[pool_name], life).run()
