"""A real pool process between a dispatcher and an ingester of the test, over real Unix sockets."""

from __future__ import annotations

import ctypes
import gc
import io
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import structlog

from workerd import clock
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config, NodeConfig, ShutdownConfig
from workerd.job import AttemptRef, Claim, Status, new_id
from workerd.messages import (
    Ack,
    Announced,
    Beat,
    Cancel,
    Claims,
    Demand,
    Drain,
    FromChild,
    Hello,
    Holdings,
    Inventory,
    LeaseState,
    Message,
    Outcomes,
    PayloadLimits,
    Progress,
    Release,
    Seen,
    Stop,
    ToDispatcher,
    ToIngester,
)
from workerd.outcome import Outcome
from workerd.pool import pool
from workerd.pool.shared import NO_END_NS
from workerd.runtime.channel import Channel
from workerd.runtime.child import Child, fork
from workerd.runtime.loop import Loop
from workerd.runtime.paths import Paths, RoleContext
from workerd.runtime.sockets import listen

ACK_DELAY_S = 0.002
STORE_TIME, MONO = clock.now_us(), time.monotonic_ns()
"""One pair for all claims: their `started_at` follow from it, and are in the order of the runs."""
"""The ingester acknowledges after this delay, as the real one does after its batch."""
HANDLERS = Path(__file__).parent / "handlers"
POLICY = {"grace": 0.2, "backoff": {"first": 0.01, "factor": 1.0, "max": 0.01, "jitter": 0.0}}


def make_pool(*attributes: str, module: str = "pool_handlers", **options: Any) -> PoolConfig:
    """A pool of handlers named like their attributes; `policy` overrides POLICY; `keys` of each."""
    own = {**POLICY, **options.pop("policy", {})}
    keys = options.pop("keys", {})
    return PoolConfig(
        name=options.pop("name", "test"),
        handlers=tuple(
            HandlerConfig(name=name, call=f"{module}:{name}", pool="test", policy_own=own, **keys)
            for name in attributes
        ),
        path=(str(HANDLERS),),
        **options,
    )


def process_state(pid: int) -> str:
    """The letter of proc(5): `T` for one that is stopped. Raises OSError if there is none."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return process_state(pid) not in "ZX"
    except OSError:
        return False


def released(outcome: Outcome) -> bool:
    """Whether the claim was returned without using an attempt."""
    return outcome.status is Status.NEW and outcome.reason is None and outcome.next is None


def warm_up(harness: PoolHarness) -> None:
    """Run short jobs until the pool demands a buffer of them."""
    harness.until(lambda: [harness.run("noop") for _ in range(20)] and harness.dispatcher.demand.room > 5)


class StubServer:
    """The listening side of a role, which can be stopped and started again."""

    def __init__(self, loop: Loop, path: Path, incoming: Any, on_message: Callable[[Any], None]) -> None:
        self._loop = loop
        self._path = path
        self._incoming = incoming
        self._on_message = on_message
        self._listening: socket.socket | None = None
        self.channel: Channel[Any] | None = None
        self.connections = 0

    def up(self) -> None:
        self._listening = listen(self._path)
        self._loop.on_readable(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listening is not None
        self.connections += 1
        sock, _ = self._listening.accept()
        self.channel = Channel(self._loop, sock, self._incoming, self._on_message, self._gone)

    def _gone(self) -> None:
        self.channel = None

    def send(self, message: Message) -> None:
        if self.channel is not None:
            self.channel.send(message)

    def down(self) -> None:
        if self._listening is not None:
            self._loop.forget(self._listening.fileno())
            self._listening.close()
            self._listening = None
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class DispatcherStub(StubServer):
    """Sends the claims in `jobs`, never more than the pool demands."""

    def __init__(self, loop: Loop, path: Path) -> None:
        super().__init__(loop, path, ToDispatcher, self._on_message)
        self.jobs: deque[Claim] = deque()
        self.sent = 0
        self.demand = Demand(0, 0, ())
        self.demands = 0
        self.holdings: list[Holdings] = []
        self.most_at_once = 0

    def _on_message(self, message: Message) -> None:
        match message:
            case Hello():
                self.sent, self.demand = 0, Demand(0, 0, ())
            case Demand():
                self.demand = message
                self.demands += 1
                self.give()
            case Holdings():
                self.holdings.append(message)

    def give(self) -> None:
        room = self.demand.room - (self.sent - self.demand.received)
        count = min(room, len(self.jobs)) if self.demand.handlers and self.channel else 0
        if count > 0:
            self.most_at_once = max(self.most_at_once, count)
            self.sent += count
            self.send(Claims([self.jobs.popleft() for _ in range(count)]))


class IngesterStub(StubServer):
    """Keeps received outcomes; acknowledges unless `silent`."""

    def __init__(self, loop: Loop, path: Path) -> None:
        super().__init__(loop, path, ToIngester, self._on_message)
        self.outcomes: list[Outcome] = []
        self.received: list[int] = []
        self.progress: list[Progress] = []
        self.seen: dict[str, bytes | None] = {}
        self.silent = False
        self._due = False
        self.max_payload = 1 << 20

    def _on_message(self, message: Message) -> None:
        match message:
            case Hello():
                self.send(PayloadLimits(self.max_payload))
            case Outcomes():
                self.outcomes += message.outcomes
                self.received += range(message.first, message.first + len(message.outcomes))
                if not self._due:
                    self._due = True
                    self._loop.call_later(ACK_DELAY_S, self._acknowledge)
            case Progress():
                self.progress.append(message)
            case Seen():
                self.seen[message.handler] = message.signature
                self.send(Announced(message.handler))

    def _acknowledge(self) -> None:
        self._due = False
        if self.received and not self.silent:
            self.send(Ack(self.received[-1] + 1))

    def of(self, claim: Claim) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.ref == claim.ref]


class PoolHarness:
    """Forks the pool: `with PoolHarness(tmp_path, make_pool("noop")) as harness: harness.until(…)`.

    `first` is called in the pool's process before anything else.
    """

    def __init__(
        self,
        folder: Path,
        pool: PoolConfig,
        *,
        drain: float = 5.0,
        first: Callable[[], object] = lambda: None,
    ) -> None:
        self._first = first
        self.config = Config(
            node=NodeConfig(name="test", runtime_dir=folder / "run", state_dir=folder / "state"),
            shutdown=ShutdownConfig(drain=drain),
            pools={pool.name: pool},
        )
        self.folder = folder
        self.pool = pool
        self.loop = Loop()
        paths = Paths(self.config.node)
        paths.private.mkdir(parents=True, exist_ok=True)
        self.dispatcher = DispatcherStub(self.loop, paths.dispatcher)
        self.ingester = IngesterStub(self.loop, paths.ingester)
        self.beats: list[Beat] = []
        self.status: int | None = None
        self.log = folder / "log"
        self.child: Child | None = None

    def __enter__(self) -> PoolHarness:
        self.dispatcher.up()
        self.ingester.up()
        self.start()
        return self

    def start(self) -> None:
        # Freed memory that the child inherits hides what its jobs allocate.
        ctypes.CDLL(None).malloc_trim(0)
        ours, theirs = socket.socketpair()
        ctx = RoleContext(config=self.config, incarnation=bytes(16), control=theirs, life=1)
        self.child = fork(lambda: self._be_pool(ctx), keep=[theirs.fileno()])
        theirs.close()
        self.control: Channel[FromChild] = Channel(
            self.loop, ours, FromChild, self.beats.append, lambda: None
        )
        self.loop.on_readable(self.child.pidfd, self._died)

    def _be_pool(self, ctx: RoleContext) -> int:
        # Sockets that tests have left would be collected there, and close numbers that are others by then.
        gc.freeze()
        self._first()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # pytest's own streams write to descriptors that this process has closed and will use for others.
        sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
        logging.root.handlers.clear()  # pytest's
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
            logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        )
        return pool.main(ctx, self.pool.name, 1)

    def _died(self) -> None:
        assert self.child is not None
        self.status = self.child.reap()
        self.loop.forget(self.child.pidfd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.child is not None
        if self.status is None:
            self.child.kill(signal.SIGKILL)
            self.until(lambda: self.status is not None)
        self.child.close()
        self.control.close()
        self.dispatcher.down()
        self.ingester.down()
        self.loop.close()

    # -- waiting

    def until(self, fact: Callable[[], Any], within: float = 20.0) -> Any:
        """Run the loop until `fact` returns something true; returns that."""
        end = time.monotonic() + within
        while not (value := fact()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {within} s; {self.state()}")
            self.loop.turn(0.02)
        return value

    def state(self) -> str:
        beat = self.beats[-1] if self.beats else None
        log = self.log.read_text()[-3000:] if self.log.exists() else ""
        return f"exit status {self.status}, demand {self.dispatcher.demand}, last beat {beat}\n{log}"

    # -- working

    def claim(self, handler: str, *, attempt: int = 1, **values: Any) -> Claim:
        fields = {k: values.pop(k) for k in list(values) if k in Claim.__struct_fields__}
        mono = time.monotonic_ns()
        now = clock.after(STORE_TIME, MONO, mono)
        return Claim(
            id=new_id(), attempt=attempt, claimed_at=now, mono=mono, handler=handler,
            vars=msgspec.json.encode(values), run_at=now, **fields,
        )  # fmt: skip

    def give(self, *claims: Claim) -> None:
        self.dispatcher.jobs.extend(claims)
        self.dispatcher.give()

    def outcome(self, claim: Claim, within: float = 20.0) -> Outcome:
        """Wait for its one outcome."""
        self.until(lambda: self.ingester.of(claim), within)
        (outcome,) = self.ingester.of(claim)
        return outcome

    def run(self, handler: str, **values: Any) -> Outcome:
        """Send one claim and wait for its outcome."""
        claim = self.claim(handler, **values)
        self.give(claim)
        return self.outcome(claim)

    def outcomes(self, claims: Iterable[Claim]) -> list[Outcome]:
        return [self.outcome(claim) for claim in claims]

    # -- state and messages

    def info(self) -> dict[str, Any]:
        return self.beats[-1].info if self.beats else {}

    def up(self) -> None:
        self.until(lambda: self.beats and self.beats[-1].state == "up")

    def log_events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [msgspec.json.decode(line) for line in lines if line.startswith("{")]

    def drain(self, seconds: float, *, overlap: bool = False) -> None:
        self.control.send(Drain(seconds, overlap))

    def stop(self) -> None:
        self.control.send(Stop())

    def cancel(self, claim: Claim) -> None:
        self.dispatcher.send(Cancel(claim.ref))

    def release(self, *handlers: str) -> None:
        self.dispatcher.send(Release(handlers))

    def lease(self, held: bool, until_ns: int = NO_END_NS) -> None:
        self.dispatcher.send(LeaseState(held, until_ns))

    def settled(self) -> None:
        """Wait until the pool holds no attempt."""
        tokens = itertools.count(1000)
        self.until(lambda: not self.holdings(next(tokens)))

    def holdings(self, token: int) -> set[AttemptRef]:
        self.dispatcher.send(Inventory(token))
        self.until(lambda: [h for h in self.dispatcher.holdings if h.token == token])
        return {
            AttemptRef(bytes(i), a) for h in self.dispatcher.holdings if h.token == token for i, a in h.keys
        }
