"""What workerd measures, who owns which number, and how the gateway shows them all.

Three sources, none of which can hold up a job:

Files of slots
    Counters and histograms live in prometheus-client's own multiprocess files below
    `runtime_dir/private/metrics`, with one difference: a file belongs to a *slot* ("ingester",
    "thumbnail-0") instead of a pid. A restarted role or a recycled worker goes on where the last process of
    its slot stopped, so that there are never more files than slots and no count goes back. A file is
    mapped only by leaves (roles and workers, by `enter`): pools load handlers, which may define
    metrics, but keep them in memory. Blocks are reserved before they are mapped: a full disk costs a number,
    not the process (SIGBUS). A file takes at most 1 MiB of series.
    The ingester owns attempts, run and queue times, batches and the spool, and writes what it has summed up
    at most ten times a second (below 1 µs an attempt); each store role its own `StoreErrors`.
    What a handler defines itself with prometheus-client goes the same way.
The supervisor's status
    Workers, restarts, quarantine and the lease are states that the supervisor knows already from Beats;
    the gateway reads them from its answer (`from_status`). The supervisor writes no file.
Asked for at the scrape
    Depth and age by handler (from the store) and CPU and memory (from /proc), by the gateway.

The files are removed when the supervisor starts: a start of the node is a reset of its counters, which
Prometheus knows how to read.
"""

from __future__ import annotations

from workerd.metrics.families import ALL, Counter, Definition, Gauge, Histogram, StoreErrors
from workerd.metrics.values import enter, install

__all__ = [
    "ALL",
    "Counter",
    "Definition",
    "Gauge",
    "Histogram",
    "StoreErrors",
    "enter",
    "install",
]
