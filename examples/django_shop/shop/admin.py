"""The admin: each order links to its job in the dashboard of workerd."""

from __future__ import annotations

from django.contrib import admin
from django.utils.html import format_html

from shop.models import Order

DASHBOARD = "http://127.0.0.1:8020"


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders with their task."""

    list_display = ("id", "mail", "confirmed", "job")

    @admin.display(description="task")
    def job(self, order: Order) -> str:
        """The link."""
        return format_html('<a href="{}/ui/jobs/{}">{}</a>', DASHBOARD, order.task, order.task[:8])
