"""What workerd measures, where each number lives, and how the gateway shows them all.

Counters and histograms of roles
    Ingester and dispatcher count in memory and send what was added with their Beats (the ingester within
    0.1 s of a change). The supervisor keeps the sums of the whole life of the node, so that no count goes
    back when a role restarts, and answers them to `{"ask": "metrics"}`.
States
    Workers, restarts, quarantine, lease and spool are in the supervisor's status document.
Numbers taken at the scrape
    Depth and age by handler (from the store) and CPU and memory (from /proc), by the gateway.
Metrics that handlers define
    They live in prometheus-client's multiprocess files below `runtime_dir/private/metrics`, one set for each
    worker slot ("thumbnail-0") instead of each pid: a recycled worker goes on where the last one stopped.

A start of the node resets all counters, which Prometheus knows how to read.
"""
