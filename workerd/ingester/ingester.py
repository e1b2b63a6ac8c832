"""The ingester's process: connections in, batches out, and what it reports."""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import partial
from typing import Any

import msgspec
import setproctitle

from workerd import log
from workerd.ingester.connections import Connection, Connections
from workerd.ingester.inheritance import inherit
from workerd.ingester.locked import LockedOutcomes
from workerd.ingester.pending import PendingOutcomes
from workerd.ingester.pipeline import PipelineMode, WritePipeline
from workerd.ingester.progress import ProgressWriter
from workerd.ingester.spool import Spool
from workerd.ingester.states import StateWriter
from workerd.ingester.stats import IngestStats
from workerd.ingester.writer import Writer
from workerd.messages import (
    AnnounceAgain,
    Barrier,
    BarrierDone,
    Freed,
    Outcomes,
    Roster,
    Scheduled,
    Series,
    Throughput,
    Traced,
)
from workerd.operations.webhooks import WebhookEvents
from workerd.runtime.generations import Generations
from workerd.runtime.paths import RoleContext
from workerd.runtime.rate import Rate
from workerd.runtime.service import Service
from workerd.runtime.sockets import poke
from workerd.store.base import idle_limit
from workerd.store.engines import open_store
from workerd.tracing import switch as tracing

LONGEST_STORE_TIMEOUT_S = 5.0
"""Without a byte of the store's; shorter than the watchdog, should nothing else show progress."""
STOP_TIMEOUT_S = 8.0
"""From Stop to the end; the supervisor waits a little longer."""
COUNTED_DELAY_S = 0.1
"""From a change of the counts to the Beat that carries them: what a killed ingester loses of them."""
THROUGHPUT_INTERVAL_S = 2.0
"""While there is any; the dispatcher publishes it when it renews the lease."""
STOP_CHECK_INTERVAL_S = 0.01

_log = log.get_logger("ingester")
_encoder = msgspec.msgpack.Encoder()


def main(ctx: RoleContext) -> int:
    """Run the role in a process that was forked for it; returns the exit status."""
    setproctitle.setproctitle("workerd: ingester")
    return Ingester(ctx).run()


class Ingester(Service):
    """Writes outcomes to the store, in batches; spools to disk while the store is unavailable."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx.control, ctx.watchdog)
        config, paths = ctx.config, ctx.paths
        timeout = min(LONGEST_STORE_TIMEOUT_S, ctx.watchdog * 0.4)
        self._store = open_store(config.store, state_dir=config.node.state_dir, timeout=timeout, spare=True)
        self._store.on_progress = self.progressed
        self._store.reports_loss = True
        self._store.idle_limit_s = idle_limit(config.dispatcher.lease)
        self._wake_path = paths.wake
        self._stats = IngestStats(ctx.config.handlers)
        self._generations, self._spool_folder = Generations(config.node), paths.spool
        self._spool = Spool(paths.spool, config.ingester.spool)
        self._locked = LockedOutcomes(paths.spool / "locked.db")
        self._pending = PendingOutcomes()
        self._spans = tracing.of_exports(
            config.otel, config.node.name, lambda error: _log.error("spans.not_exported", error=error)
        )
        events = WebhookEvents(config)
        if config.webhooks:
            self._store.before_commit = events.before_commit
        self._writer = Writer(
            self._store,
            ctx.incarnation,
            config.ingester.max_payload,
            paths.dead_letters,
            self._locked,
            self._stats,
            advance_workflows=not config.pickup.requests_inprogress,
            webhooks=events.after_close if config.webhooks else None,
            spans=self._spans,
            on_claimable=partial(poke, paths.wake),
            on_freed=self._on_freed,
            on_scheduled=self._on_scheduled,
            poll_s=config.dispatcher.poll,
        )
        self._pipeline = WritePipeline(
            self.loop,
            self._pending,
            self._spool,
            self._writer,
            ctx.incarnation,
            config.ingester.batch,
            config.ingester.linger,
            self._on_pipeline_change,
        )
        self._progress = ProgressWriter(
            self.loop, self._store, ctx.incarnation, config.node.name, self._pipeline
        )
        self._states = StateWriter(self.loop, self._store, ctx.incarnation, self._pipeline)
        self._connections = Connections(self.loop, paths.ingester)
        self._server_check_interval_s = config.dispatcher.lease / 3
        self._stop_by: float | None = None
        self._beat_due = False
        self._throughput_due = False
        self._was_away = False
        self._served: frozenset[str] | None = None  # not told yet
        self._rate = Rate()

    def start(self) -> None:
        """Open the spool, which may hold outcomes of former processes, then serve."""
        inherit(self._generations, self._spool_folder)
        self._spool.open()
        self._locked.open()
        self._connections.on_outcomes = self._on_outcomes
        self._connections.on_progress = self._progress.on_progress
        self._connections.on_traced = self._on_traced
        self._connections.on_state_saved = self._states.on_state_saved
        self._connections.on_seen = self._progress.on_seen
        self._connections.on_announce_again = self._on_announce_again
        self._connections.on_barrier = self._on_barrier
        self._pipeline.start()
        self.loop.call_later(self._server_check_interval_s, self._check_server)

    def _check_server(self) -> None:
        self._pipeline.check_server()
        self.loop.call_later(self._server_check_interval_s, self._check_server)

    # -- messages

    def _on_outcomes(self, connection: Connection, message: Outcomes) -> None:
        self._pending.add(connection, message.first, message.outcomes)
        self._pipeline.outcomes_received()
        if self._pending.full:
            self._connections.pause(True)

    def _on_barrier(self, connection: Connection, message: Barrier) -> None:
        self._connections.drain_dead(message.lives)
        # What follows may close attempts of the dead, whose rows must have what they saved.
        self._pipeline.barrier(
            lambda: self._states.call_when_written(lambda: self._answer_barrier(connection, message))
        )

    def _answer_barrier(self, connection: Connection, message: Barrier) -> None:
        ended = self._writer.ended
        refs, since_ns = (ended.refs(), ended.since_ns) if message.ended else ([], 0)
        connection.send(BarrierDone(message.token, refs, since_ns))

    def _on_traced(self, traced: Traced) -> None:
        if self._spans is not None:
            self._spans.ended(traced.spans)

    def on_roster(self, roster: Roster) -> None:
        self._connections.on_roster(roster)

    def _on_freed(self, limits: Collection[str]) -> None:
        poke(self._wake_path, _encoder.encode(Freed(tuple(sorted(limits)))))

    def _on_scheduled(self, due_us: int) -> None:
        poke(self._wake_path, _encoder.encode(Scheduled(due_us)))

    # -- reports

    def _on_announce_again(self, message: AnnounceAgain) -> None:
        self._served = message.served
        self._announce_again()

    def _announce_again(self) -> None:
        served, seen = self._served, self._connections.seen()
        self._progress.announce_again({n: s for n, s in seen.items() if served is None or n in served})

    def _on_pipeline_change(self) -> None:
        if self._pipeline.mode is PipelineMode.AWAY:
            self._was_away = True
        elif self._was_away:
            # The store may be another one now, or from a backup.
            self._was_away = False
            self._announce_again()
        if self._pending.roomy:
            self._connections.pause(False)
        self._connections.announce(self._writer.max_payload)
        if not self._beat_due:
            self._beat_due = True
            self.loop.call_later(COUNTED_DELAY_S, self._send_counted)
        if not self._throughput_due:
            self._throughput_due = True
            self.loop.call_later(THROUGHPUT_INTERVAL_S, self._send_throughput)
        if self._stop_by is not None:
            self.become("draining", self._pipeline.trouble)
        elif self._pipeline.trouble:
            self.become("waiting", self._pipeline.trouble)
        elif self._pipeline.reached:
            self.become("up")

    def _send_counted(self) -> None:
        self._beat_due = False
        self.beat()

    def _send_throughput(self) -> None:
        handlers = self._writer.recent.by_handler()
        self._connections.tell_dispatcher(Throughput(handlers))
        self._throughput_due = bool(handlers)
        if handlers:
            self.loop.call_later(THROUGHPUT_INTERVAL_S, self._send_throughput)

    def counted(self) -> list[Series]:
        if self._spans is not None:
            self._stats.spans(self._spans.counted())
        return self._stats.take(self._store.stats.errors)

    def info(self) -> dict[str, Any]:
        writer, spool = self._writer, self._spool
        return {
            "mode": self._pipeline.mode.value,
            "peers": len(self._connections),
            "received": self._pending.received,
            "waiting": self._pending.rows,
            "rate": self._rate.per_second(writer.rows),
            "batches": writer.batches,
            "last_batch": writer.last_rows,
            "last_commit_ms": writer.last_commit_ms,
            "refused": writer.refused,
            "set_aside": writer.set_aside,
            "locked": self._locked.rows,
            "max_payload": writer.max_payload,
            "spool": {
                "bytes": spool.bytes,
                "rows": spool.rows,
                "since": self._pipeline.spooling_since,
                "trouble": spool.trouble,
            },
            "transaction_retries": self._store.stats.retries,
        }

    # -- the end

    def on_stop(self) -> None:
        """Write or spool everything that was sent, acknowledge it, then end."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + STOP_TIMEOUT_S
            self._connections.drain()
            self._on_pipeline_change()
            self._stop_when_durable()

    def _stop_when_durable(self) -> None:
        assert self._stop_by is not None
        durable = not self._pending.rows
        done = durable and (self._pipeline.idle or self._pipeline.mode is PipelineMode.AWAY)
        if not done and time.monotonic() <= self._stop_by:
            self.loop.call_later(STOP_CHECK_INTERVAL_S, self._stop_when_durable)
            return
        if not durable:
            _log.error("outcomes.abandoned", count=self._pending.rows, error=self._spool.trouble)
        self._states.write()
        self._progress.write()
        if self._spans is not None:
            self._spans.flush(min(tracing.FLUSH_LIMIT_S, max(0.1, self._stop_by - time.monotonic())))
        self.beat()
        self._connections.close()
        self._spool.close()
        self._locked.close()
        self._store.close()
        self.loop.stop()
