"""The work of a pool: claims come in, go to idle workers, and leave as outcomes, whatever became of those."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from workerd.config.model import Config, Pool
from workerd.job import Claim, Key, id_text
from workerd.log import get_logger
from workerd.messages import Hello, Loaded, Seen
from workerd.outcome import Ending, Outcome, release
from workerd.pool.crew import Crew, WorkerMain
from workerd.pool.handing import Handing
from workerd.pool.intake import Desk, Intake, Pace, Room
from workerd.pool.member import Member
from workerd.pool.outbox import Outbox
from workerd.pool.policies import Policies
from workerd.pool.run import Run, death_sentence, ending_of_death
from workerd.pool.states import State, Verdict
from workerd.pool.view import worker_info
from workerd.pool.watch import Watch
from workerd.process.context import Paths
from workerd.process.loop import Loop
from workerd.process.strangers import Strangers

_CANCELLED = Ending(serial=0, kind="cancelled", error="It was cancelled before it began.")

log = get_logger("pool")


class Head(Protocol):
    """Who leads the pool's process."""

    def on_up(self) -> None:
        """A worker is ready."""

    def on_trouble(self, sentence: str) -> None:
        """A worker cannot be made ready."""

    def on_crash_loop(self) -> None:
        """Workers without a job die again and again."""

    def on_less(self) -> None:
        """Something ended: a run, a worker, or the way of an outcome."""


class Work:
    """Everything between the dispatcher's claims and the ingester's acknowledgements.

    `closed`: the pool drains, nothing more is taken. `held`: the node's lease is certain.
    """

    def __init__(
        self, loop: Loop, config: Config, pool: Pool, life: int, main: WorkerMain, kept: set[int], head: Head
    ) -> None:
        self.closed = False
        self.held = True
        self.done: Counter[str] = Counter()
        self.sources: dict[str, int] = {}
        self.policies = Policies(config, pool)
        self._loop = loop
        self._pool = pool
        self._head = head
        self._batch = config.dispatcher.batch
        self._pace = Pace()
        paths = Paths(config.node)
        hello = Hello(role="pool", name=pool.name, life=life)
        self.outbox = Outbox(loop, paths.ingester, hello, config.ingester.max_payload, self._on_acknowledged)
        desk = Desk(self._room, self._claimed, self._cancel, self._give_back, self._holdings, self._lease)
        handlers = tuple(handler.name for handler in pool.handlers)
        self.intake = Intake(loop, paths.dispatcher, hello, handlers, desk)
        self.crew = Crew(loop, pool, self, main, head.on_crash_loop)
        self.handing = Handing(
            loop, self.crew, self.intake.waiting, self.policies, self._pace,
            lambda: self.outbox.max_payload, self._settle, lambda: self.watch.wake(),
        )  # fmt: skip
        # What the import itself started is the handler's own; all that comes later is nobody's.
        self.strangers = Strangers(loop, lambda: kept | self.crew.pids())
        self.watch = Watch(loop, pool, self)

    def start(self) -> None:
        """Fork the workers and connect."""
        self.crew.start()
        self.outbox.start()
        self.intake.start()

    def learn(self, loaded: Loaded) -> None:
        """Take over what loading the handlers told."""
        if loaded.specs is not None:
            self.policies.learn(loaded.specs)
            self.outbox.introduce([Seen(spec.name, spec.signature) for spec in loaded.specs])
        for file, changed_at in loaded.sources.items():
            # The oldest counts: a worker that was forked later may have imported newer code than the rest.
            self.sources[file] = min(changed_at, self.sources.get(file, changed_at))

    # -- from the dispatcher

    def _room(self) -> Room | None:
        if self.closed or not self.held or self.outbox.full:
            return None
        idle = len(self.crew.idle) + self.crew.coming
        if not idle and self.watch.all_slow():
            return Room(0, 0)
        return Room(idle, self._pace.ahead(len(self.crew.members), self._batch))

    def _claimed(self, claims: list[Claim]) -> None:
        if self.closed or not self.held:
            self._release(claims)
            return
        for claim in claims:
            if claim.handler in self.policies:
                self.intake.waiting.append(claim)
            else:
                self.outbox.add(release(claim))
        self.handing.hand_out()
        if self.intake.waiting:
            self.watch.wake()  # it gives back what nobody takes

    def _cancel(self, key: Key) -> None:
        for member in self.crew.members.values():
            if any(run.claim.key == key for run in member.ahead):
                member.give_back()
        for claim in self.intake.remove(lambda claim: claim.key == key):
            self._settle(claim, _CANCELLED)
        for member in self.crew.members.values():
            if member.run is not None and member.run.claim.key == key:
                member.cancel()

    def _give_back(self, handlers: tuple[str, ...]) -> None:
        self.handing.take_back()
        self._release(self.intake.remove(lambda claim: not handlers or claim.handler in handlers))

    def _release(self, claims: list[Claim]) -> None:
        for claim in claims:
            self.outbox.add(release(claim))

    def release_waiting(self) -> None:
        """Give back everything that no worker has begun."""
        self._give_back(())
        self.intake.consider()

    def _holdings(self) -> Iterator[Key]:
        yield from (claim.key for claim in self.intake.waiting)
        for member in self.crew.members.values():
            if member.run is not None:
                yield member.run.claim.key
            yield from (run.claim.key for run in member.ahead)
        yield from self.outbox.keys()

    def _lease(self, held: bool) -> None:
        if held == self.held:
            return
        self.held = held
        self.set_stopping()
        if held:
            self.intake.consider()
        else:
            self.release_waiting()

    # -- from the workers

    def on_ready(self, member: Member, loaded: Loaded) -> None:
        if loaded.error is not None:
            log.error("worker is not ready", pool=self._pool.name, worker=member.name, error=loaded.error)
            self.crew.trouble = loaded.error
            self._head.on_trouble(loaded.error)
            member.kill(Verdict.NOT_READY)
            return
        self.learn(loaded)
        member.page.set_stopping(self.closed or not self.held)
        self.crew.ready(member)
        self._head.on_up()
        self.handing.hand_out()
        self.intake.consider()

    def on_ending(self, member: Member, run: Run, ending: Ending) -> None:
        now = time.monotonic_ns()
        self._pace.note((now - run.start_ns) / 1e9)
        self._settle_run(member, run, ending, now)
        if self.crew.done(member, ending.tainted):
            self.handing.next_for(member)
        if len(self.intake.waiting) <= self.intake.low:
            self.intake.consider()
        if self.closed:
            self._head.on_less()

    def on_unread(self, run: Run) -> None:
        if run.cancelled:
            self._settle(run.claim, _CANCELLED)
        elif self.closed or not self.held:
            self._release([run.claim])
        else:
            self.intake.waiting.appendleft(run.claim)
            self.handing.soon()

    def on_dead(self, member: Member, run: Run | None, status: int) -> None:
        if run is not None:
            now = time.monotonic_ns()
            ending = ending_of_death(run, status, member.verdict, now, self._pool.memory_max)
            self._settle_run(member, run, ending, now)
        elif member.verdict is not Verdict.RETIRED:
            sentence = death_sentence(status, member.verdict)
            log.warning(
                "worker died without a job", pool=self._pool.name, worker=member.name, pid=member.pid,
                error=sentence,
            )  # fmt: skip
            self._head.on_trouble(self.crew.trouble or sentence)
        self.strangers.look()
        self.crew.gone(member, run is not None)
        self.handing.hand_out()
        self.intake.consider()
        self._head.on_less()

    def on_lines(self, member: Member, run: Run | None, lines: list[str]) -> None:
        where = self._where(member, run)
        for line in lines:
            log.info("output", line=line, **where)

    def on_dropped(self, member: Member, run: Run | None, count: int) -> None:
        log.warning("more output was not logged", bytes=count, **self._where(member, run))

    def _where(self, member: Member, run: Run | None) -> dict[str, Any]:
        where: dict[str, Any] = {"pool": self._pool.name, "worker": member.name}
        if run is not None:
            where |= {
                "handler": run.claim.handler,
                "job": id_text(run.claim.id),
                "attempt": run.claim.attempt,
            }
        return where

    # -- to the ingester

    def _settle_run(self, member: Member, run: Run, ending: Ending, now_ns: int) -> None:
        began = run.began_ns(ending, now_ns)
        outcome = self.policies.settle(
            run.claim, ending, started_ns=began, finished_ns=now_ns, pid=member.pid
        )
        if run.cancelled and outcome.next is not None:
            # It failed, or died, while it was being cancelled: nobody wants it to be tried again.
            ending = msgspec.structs.replace(ending, kind="cancelled")
            outcome = self.policies.settle(
                run.claim, ending, started_ns=began, finished_ns=now_ns, pid=member.pid
            )
        self._send(outcome)

    def _settle(self, claim: Claim, ending: Ending) -> None:
        self._send(self.policies.settle(claim, ending))

    def _send(self, outcome: Outcome) -> None:
        self.outbox.add(outcome)
        self.done[outcome.reason or ""] += 1
        if outcome.success is False:
            self._log_failure(outcome)

    def _log_failure(self, outcome: Outcome) -> None:
        log.warning(
            "attempt failed", handler=outcome.handler, job=id_text(outcome.id), attempt=outcome.attempt,
            reason=outcome.reason, status=outcome.status, error=outcome.error,
        )  # fmt: skip

    def _on_acknowledged(self) -> None:
        self.intake.consider()
        if self.closed:
            self._head.on_less()

    # -- the end

    def set_stopping(self) -> None:
        """Let every handler see in ctx.stopping whether it should come to an end."""
        for member in self.crew.members.values():
            if member.state is not State.DEAD:
                member.page.set_stopping(self.closed or not self.held)

    def close(self) -> None:
        """Take nothing more, give back what waits, start no worker."""
        self.closed = True
        self.crew.close()
        self.set_stopping()
        self.release_waiting()

    def interrupt(self) -> None:
        """Kill what runs; its attempts end as interrupted."""
        for member in list(self.crew.members.values()):
            if member.run is not None:
                member.kill(Verdict.INTERRUPTED)

    @property
    def finished(self) -> bool:
        """Nothing runs, nothing waits, and everything is acknowledged."""
        return not (
            self.intake.waiting
            or len(self.outbox)
            or any(member.run is not None for member in self.crew.members.values())
        )

    def info(self) -> dict[str, Any]:
        """What `workerd status` and the metrics show."""
        return {
            "workers": [worker_info(member) for member in self.crew.members.values()],
            "waiting": len(self.intake.waiting) + sum(len(m.ahead) for m in self.crew.members.values()),
            "unacknowledged": len(self.outbox),
            "done": dict(self.done),
            "worker_restarts": dict(self.crew.restarts),
            "strangers_killed": self.strangers.killed,
            "lease_held": self.held,
            "dispatcher": self.intake.connected,
            "ingester": self.outbox.connected,
        }
