"""What callers may give the clients' methods, and the values that operations want of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from workerd.clock import from_rfc3339
from workerd.config.build import load
from workerd.config.model import Config, StoreConfig
from workerd.job_spec import Duration, JobSpec, seconds

Source = Config | str | os.PathLike[str] | None
"""The URL of a store, the path of a configuration or a Config; None: the configuration in /etc/workerd."""
BeforeEnqueue = Callable[[JobSpec], JobSpec]
"""Called with each job before it is checked; returns the job to enqueue."""
Jobs = JobSpec | Mapping[str, Any] | Sequence[JobSpec | Mapping[str, Any]]
"""One job, or several."""


def configuration(source: Source) -> Config:
    """The configuration that is meant; of a URL alone one with defaults. Raises ConfigError."""
    if isinstance(source, Config):
        return source
    if isinstance(source, str) and "://" in source:
        return Config(store=StoreConfig(url=source))
    return load(None if source is None else Path(source), os.environ)


def job_list(given: Jobs | Iterable[JobSpec | Mapping[str, Any]]) -> Any:
    """The jobs as a list; what is none is refused as a wrong value, with its place."""
    if isinstance(given, JobSpec | Mapping):
        return [given]
    return list(given) if isinstance(given, Iterable) else given


def seconds_or_none(name: str, value: Duration | None) -> float | None:
    """The duration in seconds. Raises InvalidValue, which names the argument."""
    return None if value is None else seconds(name, value)


def moment_or_none(value: datetime | None) -> int | None:
    """The time in microseconds. Raises InvalidValue for one without an offset."""
    return None if value is None else from_rfc3339(value.isoformat())
