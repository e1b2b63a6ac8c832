"""The gateway: other programs and people use workerd over HTTP, without touching the database."""

from __future__ import annotations

from workerd.process.context import RoleContext


def main(ctx: RoleContext) -> int:
    """Serve until the supervisor says stop; returns the exit status."""
    # Starlette and uvicorn are loaded here and nowhere else: no other process pays for their memory.
    from workerd.gateway.service import Gateway

    return Gateway(ctx).run()
