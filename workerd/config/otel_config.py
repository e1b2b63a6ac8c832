"""`[otel]`: traces by OpenTelemetry."""

from __future__ import annotations

from typing import Annotated, Literal

from workerd.config import validators as v
from workerd.config.config_value import ConfigValue


class OtelConfig(ConfigValue, frozen=True):
    """Traces by OpenTelemetry. The standard variables OTEL_* say where they go, what is sampled and what the
    service is called: in the environment of the daemon, and in that of each program that enqueues.
    """

    enabled: Annotated[bool, v.boolean] = False
    """true: a span for each enqueue and each run. Needs the extra workerd[otel]."""
    link: Annotated[Literal["link", "parent"], v.choice("link", "parent")] = "link"
    """How the span of a run relates to that of its enqueue: "link", its own trace with a link to it, or
    "parent", the same trace."""
