"""The handlers, imported by the daemon's pool and, for their names and types, by the application."""

from __future__ import annotations

from workerd import Context, handler


@handler
def thumbnail(ctx: Context, image: str, width: int = 200) -> str:
    """Pretend to make a thumbnail."""
    ctx.progress(0.5, "half way")
    return f"{image}@{width}"
