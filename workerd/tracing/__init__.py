"""Traces by OpenTelemetry: one span for each enqueue, one for each run, joined by the job's `meta`.

    program, gateway     enqueues.py   span `send` -> meta.traceparent
    worker               runs.py       span `process` and what the handler adds -> RunResult.trace
    pool                 context.py    of a run whose worker died: its context alone -> Outcome.trace
    ingester             export.py     Outcome -> spans with reason, error and times -> the collector

Workers export nothing themselves: their spans go the way of their outcomes, so that none is lost with a
worker that is recycled, and a collector that hangs delays nothing. Where `[otel] enabled` is false, nothing
of OpenTelemetry is imported: `context` and `switch` do without, and `switch` imports the other modules.
"""
