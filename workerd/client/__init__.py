"""From a program to its jobs: over a connection of its own, or inside the program's transaction."""

from __future__ import annotations

from workerd.client.client import Client
from workerd.client.model import Attempt, Enqueued, Job, Request
from workerd.client.spec import JobSpec
from workerd.client.transaction import enqueue, wake

__all__ = ["Attempt", "Client", "Enqueued", "Job", "JobSpec", "Request", "enqueue", "wake"]
