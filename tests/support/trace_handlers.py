"""Handlers of traced pools; what they need of OpenTelemetry they import when they are called."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from workerd import Context, Retry


def noop(ctx: Context) -> None:
    """Nothing."""


def plain(ctx: Context, text: str = "") -> dict[str, str]:
    """The current span's context, as a library would send it on."""
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier


def child(ctx: Context, token: str = "") -> None:
    """A span of a library, with a value that is redacted, and an attribute of the run's own span."""
    from opentelemetry import trace

    trace.get_current_span().set_attribute("shop.order", 7)
    with trace.get_tracer("shop", "1.2").start_as_current_span("query", attributes={"sql": token}) as span:
        span.add_event("found", {"rows": 3, "who": [token, "x"]})
    ctx.step("charge", lambda: 5)
    ctx.step("ship", lambda: 6)


async def async_child(ctx: Context) -> None:
    """The same from a coroutine."""
    from opentelemetry import trace

    with trace.get_tracer("shop").start_as_current_span("async query"):
        pass
    await ctx.step("async step", _step)


async def _step() -> int:
    return 1


def fails(ctx: Context, token: str) -> None:
    """Fails with a message that holds a redacted value; the second attempt succeeds."""
    if ctx.attempt == 1:
        raise ValueError(f"cannot log in with {token}")


def asks(ctx: Context) -> None:
    """Asks to be tried again, which is no error."""
    if ctx.attempt == 1:
        raise Retry("not yet", after=0)


def killed(ctx: Context) -> None:
    """Its worker is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def overdue(ctx: Context) -> None:
    """Runs until its deadline interrupts it."""
    time.sleep(60)


def modules(ctx: Context) -> list[str]:
    """What of OpenTelemetry this worker has imported."""
    return sorted(name for name in sys.modules if name.split(".")[0] == "opentelemetry")


def many(ctx: Context, count: int) -> None:
    """That many spans of a library."""
    from opentelemetry import trace

    tracer = trace.get_tracer("shop")
    for _ in range(count):
        tracer.start_span("tiny").end()


def many_then_killed(ctx: Context) -> None:
    """More spans than one message takes; then its worker is killed."""
    many(ctx, 100)
    os.kill(os.getpid(), signal.SIGKILL)


def large(ctx: Context) -> None:
    """An own span that is larger than what may travel."""
    from opentelemetry import trace

    trace.get_current_span().set_attributes({f"a{n}": "x" * 100_000 for n in range(100)})


def hold(ctx: Context) -> None:
    """Says that it runs, and does so until its pool is killed."""
    if ctx.attempt == 1:
        ctx.progress(0.5)
        time.sleep(60)


def own_provider() -> None:
    """The `init` of a program that traces itself, if it is given a folder for it."""
    if "MARKS" not in os.environ:
        return
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    exporter: Any = _Marks(os.environ["MARKS"])
    # Far too late for its worker, unless it is flushed.
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=600_000))
    trace.set_tracer_provider(provider)


class _Marks:
    """An exporter that writes the names of spans, and of their parents, into files."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def export(self, spans: Any) -> None:
        for span in spans:
            parent = "" if span.parent is None else f"{span.parent.span_id:016x}"
            with open(os.path.join(self._folder, f"{os.getpid()}"), "a") as file:
                file.write(f"{span.name} {parent}\n")

    def shutdown(self) -> None:
        """Nothing."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True
