"""Two functions around each run, outermost first: a metric of its time and end, and a proxy for its HTTP."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import Histogram

from workerd import Context

RUNS = Histogram("shop_run_seconds", "Time of runs, by handler and end.", ["handler", "end"])
PROXY = "http://proxy.example.org:3128"


def measured(ctx: Context, call_next: Callable[[], Any]) -> Any:
    """Observe each run; what it raised goes on."""
    began, end = time.monotonic(), "ok"
    try:
        return call_next()
    except BaseException as error:
        end = type(error).__name__
        raise
    finally:
        RUNS.labels(ctx.handler, end).observe(time.monotonic() - began)


def through_proxy(ctx: Context) -> Iterator[None]:
    """Let the run's HTTP requests go through a proxy; workerd puts the environment back after each run."""
    os.environ["HTTPS_PROXY"] = os.environ["HTTP_PROXY"] = PROXY
    yield
