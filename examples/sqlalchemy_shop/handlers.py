"""What the jobs of the shop run."""

from __future__ import annotations

from workerd import handler


@handler
def confirm(order: int, mail: str) -> str:
    """Pretend to send a mail."""
    return f"order {order} confirmed to {mail}"
