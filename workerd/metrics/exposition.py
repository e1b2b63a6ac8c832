"""Turns counts, status and files into metric families, and renders them for Prometheus."""

from __future__ import annotations

import contextlib
import importlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Sample

from workerd.messages import Series
from workerd.metrics.families import (
    ALL,
    LEASE_SECONDS,
    PROCESS_CPU,
    PROCESS_RSS,
    QUARANTINED,
    RESTARTS,
    SPOOL_BYTES,
    STALE,
    WORKERS,
    Definition,
)

_collector: Any = importlib.import_module("prometheus_client.multiprocess").MultiProcessCollector
_dict: Any = importlib.import_module("prometheus_client.mmap_dict").MmapedDict

Labels = tuple[str, ...]
_Key = tuple[str, str, dict[str, str], str]


# Shown from the start, so that a rate over the first restart is not lost.
_NO_RESTARTS = dict.fromkeys(("exit", "signal", "killed"), 0)


def gauge(definition: Definition, values: Mapping[Labels, float]) -> Metric:
    """A family with these values, by label values in the definition's order."""
    metric = Metric(definition.family, definition.help, definition.kind)
    for labels, value in values.items():
        metric.add_sample(definition.name, dict(zip(definition.labels, labels, strict=True)), value)
    return metric


def collect(folders: Iterable[Path]) -> list[Metric]:
    """The families that handlers define, from the files of all slots; unreadable files are left out."""
    readable = []
    for path in (path for folder in folders for path in sorted(folder.glob("*.db"))):
        # Since the listing a slot may have started anew, or died while writing.
        with contextlib.suppress(Exception):
            for key, *_ in _dict.read_all_values_from_file(str(path)):
                msgspec.json.decode(key, type=_Key)
            readable.append(str(path))
    with contextlib.suppress(Exception):
        return list(_collector.merge(readable))
    return []


def from_series(series: Iterable[Series]) -> list[Metric]:
    """The families that roles count, from the sums that the supervisor keeps."""
    definitions = {definition.name: definition for definition in ALL}
    metrics: dict[str, Metric] = {}
    for name, values, numbers in series:
        d = definitions[name]
        metric = metrics.setdefault(name, Metric(d.family, d.help, d.kind))
        labels = dict(zip(d.labels, values, strict=True))
        if d.kind == "counter":
            metric.add_sample(name, labels, numbers[0])
            continue
        cumulative = list(accumulate(numbers[1:]))
        for bound, count in zip((*map(repr, map(float, d.bounds)), "+Inf"), cumulative, strict=True):
            metric.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
        metric.add_sample(f"{name}_count", labels, cumulative[-1])
        metric.add_sample(f"{name}_sum", labels, numbers[0])
    return list(metrics.values())


def from_status(status: Mapping[str, Any]) -> list[Metric]:
    """The families that the supervisor's status document contains."""
    roles: Mapping[str, Any] = status.get("roles") or {}
    pools: Mapping[str, Any] = status.get("pools") or {}
    named = {**roles, **{f"pool:{name}": slot for name, slot in pools.items()}}
    families = [
        gauge(
            RESTARTS,
            {
                (process, reason): count
                for process, slot in named.items()
                for reason, count in {**_NO_RESTARTS, **(slot.get("restart_reasons") or {})}.items()
            },
        ),
        gauge(QUARANTINED, {(name,): float(bool(slot.get("quarantined"))) for name, slot in pools.items()}),
        gauge(STALE, {(name,): float(bool(slot.get("stale"))) for name, slot in pools.items()}),
        gauge(
            WORKERS,
            {
                (name, state): count
                for name, slot in pools.items()
                for state, count in _workers(slot.get("workers")).items()
            },
        ),
    ]
    lease = (roles.get("dispatcher") or {}).get("lease_left")
    if lease is not None:
        families.append(gauge(LEASE_SECONDS, {(): lease}))
    spool = status.get("spool")
    if spool:
        families.append(gauge(SPOOL_BYTES, {(): spool["bytes"]}))
    return families


def _workers(workers: Any) -> dict[str, float]:
    """Workers by state: from a map of counts, or from a list of workers that have a `state`."""
    if isinstance(workers, Mapping):
        return {str(state): count for state, count in workers.items() if isinstance(count, (int, float))}
    counts: dict[str, float] = defaultdict(float)
    for worker in workers if isinstance(workers, list) else ():
        if isinstance(worker, Mapping):
            counts[str(worker.get("state", "unknown"))] += 1
    return counts


def processes(pids: Mapping[str, int], reported: Mapping[str, tuple[float, float]]) -> list[Metric]:
    """CPU and memory of these processes by name, each with its children if it is a pool (`pool:NAME`).

    `reported`: CPU seconds and resident bytes of those that measure themselves.
    """
    import psutil

    cpu: dict[Labels, float] = {}
    rss: dict[Labels, float] = {}
    for name, pid in pids.items():
        if name in reported:
            cpu[name,], rss[name,] = reported[name]
            continue
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            with_children = name.startswith("pool:")
            family = [process, *process.children(recursive=True)] if with_children else [process]
            used = [_used(member, with_children) for member in family]
            cpu[name,], rss[name,] = sum(u[0] for u in used), sum(u[1] for u in used)
    return [gauge(PROCESS_CPU, cpu), gauge(PROCESS_RSS, rss)]


def _used(process: Any, with_children: bool) -> tuple[float, float]:
    """CPU seconds and resident bytes of a psutil.Process; nothing if it has just ended."""
    with contextlib.suppress(Exception):
        times = process.cpu_times()
        seconds = times.user + times.system
        if with_children:  # of reaped workers: the sum must not decrease when one is replaced
            seconds += times.children_user + times.children_system
        return seconds, process.memory_info().rss
    return 0.0, 0.0


class _Families:
    """A collector of families that already exist."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(families: Iterable[Metric], labels: Mapping[str, str], accept: str = "") -> tuple[bytes, str]:
    """The families as text with `labels` on every sample, and its content type by the `Accept` header."""
    merged: dict[str, Metric] = {}
    for family in families:
        if labels:
            family.samples = [_labelled(sample, labels) for sample in family.samples]
        known = merged.setdefault(family.name, family)
        if known is not family:
            known.samples = [*known.samples, *family.samples]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(merged.values()))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _labelled(sample: Sample, labels: Mapping[str, str]) -> Sample:
    return sample._replace(labels={**labels, **sample.labels})
