"""The ingester's process: connections in, batches out, and what it reports."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import msgspec
import setproctitle

from workerd import log
from workerd.ingester.connections import Connection, Connections
from workerd.ingester.pending import PendingOutcomes
from workerd.ingester.pipeline import PipelineMode, WritePipeline
from workerd.ingester.progress import ProgressWriter
from workerd.ingester.spool import Spool
from workerd.ingester.stats import WRITE_EVERY, IngestStats
from workerd.ingester.writer import Writer
from workerd.messages import Barrier, BarrierDone, Outcomes, Roster, Scheduled
from workerd.metrics import values
from workerd.runtime.paths import RoleContext
from workerd.runtime.rate import Rate
from workerd.runtime.service import Service
from workerd.runtime.sockets import poke
from workerd.store.engines import open_store


def main(ctx: RoleContext) -> int:
    """Serve until the supervisor says stop; returns the exit status. Called in a forked child."""
    setproctitle.setproctitle("workerd: ingester")
    values.enter(ctx.paths.metrics, "ingester")
    return Ingester(ctx).run()


STORE_TIMEOUT = 5.0
"""Seconds that the store may take for one thing; less than the watchdog, which counts this waiting too."""
LAST_WORDS = 8.0
"""Seconds after Stop for what is left; the supervisor's patience is a little longer."""

_log = log.get_logger("ingester")
_encoder = msgspec.msgpack.Encoder()


class Ingester(Service):
    """Writes outcomes to the store, in batches; spools to disk while the store is away."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx.control, ctx.watchdog)
        config, paths = ctx.config, ctx.paths
        self._store = open_store(
            config.store, state_dir=paths.state, timeout=min(STORE_TIMEOUT, ctx.watchdog * 0.4), spare=True
        )
        self._wake = paths.wake
        self._tally = IngestStats()
        self._spool = Spool(paths.spool, config.ingester.spool)
        self._backlog = PendingOutcomes()
        self._writer = Writer(
            self._store,
            ctx.incarnation,
            config.ingester.max_payload,
            paths.state / "quarantine" / "outcomes.jsonl",
            self._tally,
            move_on=not config.pickup.requests_inprogress,
            announce=partial(poke, paths.wake),
            foretell=self._foretell,
            poll=config.dispatcher.poll,
        )
        self._flow = WritePipeline(
            self.loop,
            self._backlog,
            self._spool,
            self._writer,
            ctx.incarnation,
            config.ingester.batch,
            config.ingester.linger,
            self._changed,
        )
        self._notes = ProgressWriter(
            self.loop,
            self._store,
            ctx.incarnation,
            config.node.name,
            lambda: self._flow.mode is not PipelineMode.AWAY,
            self._flow.gone,
        )
        self._peers = Connections(self.loop, paths.ingester)
        self._end_by: float | None = None
        self._counting = False  # a write of the counts is due
        self._rate = Rate()

    def start(self) -> None:
        """Find what former processes spooled, then serve."""
        self._spool.open()
        self._peers.on_outcomes = self._on_outcomes
        self._peers.on_progress = self._notes.progress
        self._peers.on_seen = self._notes.seen
        self._peers.on_barrier = self._on_barrier
        self._flow.start()

    # -- what comes in

    def _on_outcomes(self, peer: Connection, message: Outcomes) -> None:
        self._backlog.add(peer, message.first, message.outcomes)
        self._flow.arrived()
        if self._backlog.full:
            self._peers.pause(True)

    def _on_barrier(self, peer: Connection, message: Barrier) -> None:
        self._peers.read_out(message.lives)
        self._flow.barrier(lambda: peer.send(BarrierDone(token=message.token)))

    def on_roster(self, roster: Roster) -> None:
        self._peers.bury(pool.life for pool in roster.dead)

    def _foretell(self, due: int) -> None:
        poke(self._wake, _encoder.encode(Scheduled(due)))

    # -- what it says of itself

    def _changed(self) -> None:
        if self._backlog.roomy:
            self._peers.pause(False)
        self._peers.announce(self._writer.max_payload)
        if not self._counting:
            self._counting = True
            self.loop.call_later(WRITE_EVERY, self._count)
        if self._end_by is not None:
            self.become("draining", self._flow.trouble)
        elif self._flow.trouble:
            self.become("waiting", self._flow.trouble)
        elif self._flow.reached:
            self.become("up")

    def _count(self) -> None:
        self._counting = False
        self._tally.write(self._spool.bytes, self._store.stats.errors)

    def info(self) -> dict[str, Any]:
        spool = self._spool
        return {
            "mode": self._flow.mode.value,
            "peers": len(self._peers),
            "received": self._backlog.received,
            "waiting": self._backlog.rows,
            "rate": self._rate.per_second(self._writer.rows),
            "batches": self._writer.batches,
            "last_batch": self._writer.last_rows,
            "last_commit_ms": self._writer.last_ms,
            "refused": self._writer.refused,
            "set_aside": self._writer.set_aside,
            "max_payload": self._writer.max_payload,
            "spool": {
                "bytes": spool.bytes,
                "rows": spool.rows,
                "since": self._flow.since if self._flow.spooling else None,
                "trouble": spool.trouble,
            },
            "transaction_retries": self._store.stats.retries,
        }

    # -- the end

    def on_stop(self) -> None:
        """Write or spool everything that was sent, acknowledge it, then end."""
        if self._end_by is None:
            self._end_by = time.monotonic() + LAST_WORDS
            self._peers.drain()
            self._changed()
            self._ending()

    def _ending(self) -> None:
        assert self._end_by is not None
        over = time.monotonic() > self._end_by
        durable = not self._backlog.rows
        if not over and not (durable and (self._flow.idle or self._flow.mode is PipelineMode.AWAY)):
            self.loop.call_later(0.01, self._ending)
            return
        if not durable:
            _log.error(
                "outcomes could be written neither to the store nor to the spool; their attempts "
                "will be found lost and run again: free some disk, or raise ingester.spool",
                count=self._backlog.rows,
            )
        self._notes.write()
        self._tally.write(self._spool.bytes, self._store.stats.errors)
        self._peers.close()
        self._spool.close()
        self._store.close()
        self.loop.stop()
