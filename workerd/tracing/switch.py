"""Whether enqueues and runs are traced here; imports OpenTelemetry only where they are."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from workerd.config.otel_config import OtelConfig
from workerd.errors import ConfigError
from workerd.job_spec import NewJob
from workerd.tracing.context import TraceContext, of_meta

if TYPE_CHECKING:
    from workerd.tracing.enqueues import EnqueueTracing
    from workerd.tracing.export import SpanExport
    from workerd.tracing.runs import RunTracing

T = TypeVar("T")

VARIABLE = "WORKERD_OTEL__ENABLED"
"""`[otel] enabled` as an environment variable, for programs that enqueue without a configuration."""
NOT_INSTALLED = 'the extra is not installed, so nothing is traced: pip install "workerd[otel]"'
NOT_TRACED = "Enqueues are not traced: %s"
FLUSH_LIMIT_S = 2.0
"""What a process waits at most, at its end, for a collector."""
_REQUIRED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def installed() -> bool:
    """Whether the extra workerd[otel] is there; imports no more of it than empty packages."""
    with contextlib.suppress(ImportError):
        return all(name in sys.modules or importlib.util.find_spec(name) is not None for name in _REQUIRED)
    return False


def _made(module: str, make: Callable[[Any], T], told: Callable[[str], object]) -> T | None:
    """What `make` makes of a module of this package.

    None, and `told` of the error, where OpenTelemetry raises one: a variable OTEL_* that is wrong, which must
    not keep a process from its work.
    """
    try:
        return make(importlib.import_module(f"workerd.tracing.{module}"))
    except Exception as error:
        told(f"{type(error).__name__}: {error}")
        return None


def of_enqueues(enabled: bool | None, otel: OtelConfig, service: str = "") -> EnqueueTracing | None:
    """What traces the enqueues of this process, None where nothing does.

    `enabled`: the program's own choice; None: what the configuration or VARIABLE says, as far as the extra
    is installed. `service`: the service's name where OTEL_* give none. Raises ConfigError where the program
    asks for it and the extra is not installed.
    """
    wanted = (otel.enabled or in_environment()) if enabled is None else enabled
    if not wanted:
        return None
    if not installed():
        if enabled:
            raise ConfigError([f"otel: {NOT_INSTALLED}"])
        return None
    return _of_process(service)


@cache
def _of_process(service: str) -> EnqueueTracing | None:
    """The one of this process."""
    warn = partial(logging.getLogger("workerd").warning, NOT_TRACED)
    return _made("enqueues", lambda enqueues: enqueues.EnqueueTracing(service), warn)


def in_environment() -> bool:
    """Whether VARIABLE is true."""
    return os.environ.get(VARIABLE, "").strip() == "true"


def of_runs(otel: OtelConfig | None) -> RunTracing | None:
    """What traces the runs of this worker, None where nothing does."""
    if otel is None or not installed():
        return None
    # To the worker's log; then the ingester makes the spans of its runs.
    warn = partial(print, "workerd: runs are traced without what they add:", file=sys.stderr)
    return _made("runs", lambda runs: runs.RunTracing(otel.link), warn)


def prepare_runs(otel: OtelConfig | None) -> None:
    """Import what the workers of this pool need, which they then share; they tell of errors."""
    if otel is not None and installed():
        _made("runs", lambda runs: None, lambda error: None)


def of_exports(otel: OtelConfig, node: str, told: Callable[[str], object]) -> SpanExport | None:
    """What exports the spans of this node's runs, None where nothing does; `told` why it cannot."""
    if not otel.enabled or not installed():
        return None
    return _made("export", lambda export: export.SpanExport(otel.link, node), told)


class Untraced:
    """An enqueue without a span; `enqueued` is what came of its jobs."""

    __slots__ = ("enqueued", "jobs")

    def __init__(self, jobs: list[NewJob]) -> None:
        self.jobs = jobs
        self.enqueued: Sequence[Any] = ()

    def __enter__(self) -> Untraced:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def sending(tracing: EnqueueTracing | None, jobs: list[NewJob], parent: TraceContext | None = None) -> Any:
    """A context in which its `jobs` are enqueued, and `enqueued` is set to what came of them, in order.

    `parent`: the caller's span; None: the current one of this process.
    """
    return Untraced(jobs) if tracing is None else tracing.sending(jobs, parent)


def submitting(tracing: EnqueueTracing | None, workflow: str, parent: TraceContext | None = None) -> Any:
    """The same for a request; `context_of` it is what its jobs come from."""
    return sending(tracing, [NewJob(handler=workflow)], parent)


def context_of(submitting: Any) -> TraceContext | None:
    """The span of a request that is being submitted, None where it is not traced."""
    return of_meta(submitting.jobs[0].meta)


def traceparent_of(submitting: Any) -> str | None:
    """The header of that span."""
    found = context_of(submitting)
    return None if found is None else found.traceparent
