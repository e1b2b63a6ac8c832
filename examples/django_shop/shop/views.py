"""Views."""

from __future__ import annotations

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from shop.models import Order
from shop.tasks import confirm


@csrf_exempt
def create(request: HttpRequest) -> JsonResponse:
    """Make an order and its task: both or none."""
    with transaction.atomic():
        order = Order.objects.create(mail=request.POST["mail"])
        order.task = confirm.enqueue(order.pk).id
        order.save(update_fields=["task"])
    return JsonResponse({"order": order.pk})


def show(request: HttpRequest, order_id: int) -> JsonResponse:
    """An order, and how its task is."""
    order = Order.objects.get(pk=order_id)
    result = confirm.get_result(order.task)
    value = result.return_value if result.status == "SUCCESSFUL" else None
    return JsonResponse({"confirmed": order.confirmed, "task": str(result.status), "value": value})
