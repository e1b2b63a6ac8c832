"""Tasks."""

from __future__ import annotations

try:
    from django.tasks import task
except ImportError:
    from django_tasks import task

from shop.models import Order


@task(priority=10)
def confirm(order_id: int) -> str:
    """Pretend to send a mail, and mark the order."""
    order = Order.objects.get(pk=order_id)
    order.confirmed = True
    order.save(update_fields=["confirmed"])
    return f"sent to {order.mail}"
