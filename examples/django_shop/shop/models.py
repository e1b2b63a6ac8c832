"""Orders."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order, and the task that confirms it."""

    mail = models.EmailField()
    confirmed = models.BooleanField(default=False)
    task = models.CharField(max_length=64, blank=True)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"order {self.pk}"
