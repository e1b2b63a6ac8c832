"""`top`: pools, workers, running jobs, rates and queues, redrawn every second."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated, Any

import psutil
import typer

from workerd.cli.keyboard import Keyboard
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import Document, print_json
from workerd.cli.session import load_config
from workerd.cli.status import ask_supervisor, runs_for
from workerd.cli.top_view import ViewState, live, print_frame
from workerd.config.model import Config
from workerd.errors import StoreError
from workerd.operations.access import Store, open_checked
from workerd.operations.figures import WAITING_AND_RUNNING, depths

FRAME_INTERVAL_S = 1.0
FIRST_CPU_SAMPLE_S = 0.2
"""CPU of the first frame is measured over this long."""
STORE_TIMEOUT_S = 1.0
"""A frame waits this long for the store, then shows only what the supervisor reports."""
MAX_COUNTED_JOBS = 100_000
"""Of a handler in one state; more are shown as `100,000+`."""

Once = Annotated[bool, typer.Option("--once", help="Print one frame and exit.")]


def top(once: Once = False, c: ConfigPath = None, json: AsJson = False) -> None:
    """Show pools, workers, running jobs, rates and queues, live."""
    with contextlib.closing(TopSampler(load_config(c))) as sampler:
        sampler.sample()
        if json or once:
            time.sleep(FIRST_CPU_SAMPLE_S)
            frame = sampler.sample()
            if json:
                print_json(frame)
            else:
                print_frame(frame)
            return
        _watch(sampler)


def _watch(sampler: TopSampler) -> None:
    """Draw frames until `q` or Ctrl-C; a key changes the view at once."""
    state, keyboard = ViewState(), Keyboard()
    with contextlib.suppress(KeyboardInterrupt), keyboard.listening(), live(state) as show:
        frame = sampler.sample()
        drawn_at = time.monotonic()
        while not state.ended:
            show(frame)
            for key in keyboard.wait(max(0.0, drawn_at + FRAME_INTERVAL_S - time.monotonic())):
                state.press(key)
            if time.monotonic() - drawn_at >= FRAME_INTERVAL_S:
                frame = sampler.sample()
                drawn_at = time.monotonic()


class TopSampler:
    """Samples one frame after the other; CPU is measured since the frame before."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store: Store | None = None
        self._processes: dict[int, psutil.Process] = {}

    def close(self) -> None:
        """Close the store's connection."""
        if self._store is not None:
            self._store.close()

    def sample(self) -> Document:
        """One frame: the supervisor's status, the usage of each process, and jobs by handler and state.

        Raises CommandFailed if the supervisor does not answer.
        """
        status = ask_supervisor(self._config)
        roles = _list(status.get("roles"))
        ingester = next((r for r in roles if r["name"] == "ingester"), {})
        dispatcher = next((r for r in roles if r["name"] == "dispatcher"), {})
        depth = self._depth(status)
        counted = {row["handler"]: row["new"] for row in depth} if depth is not None else None
        frame = {
            "node": status.get("node"),
            "state": status.get("state"),
            "version": status.get("version"),
            "started_at": status.get("started_at"),
            "store": status.get("store"),
            "spool": status.get("spool"),
            "lease_left": dispatcher.get("lease_left"),
            "claims_per_second": dispatcher.get("claims_per_second"),
            "ends_per_second": ingester.get("rate"),
            "roles": [self._process(role) for role in roles],
            "pools": [self._pool(pool, counted) for pool in _list(status.get("pools"))],
            "depth": depth,
        }
        alive = {p["pid"] for p in _processes(frame)}
        self._processes = {pid: known for pid, known in self._processes.items() if pid in alive}
        return frame

    def _pool(self, pool: Document, counted: dict[str, int] | None) -> Document:
        """A pool; `waiting`: jobs of its handlers that wait in the store, None while that does not answer."""
        waiting = None
        if counted is not None:
            waiting = [counted.get(handler, 0) for handler in pool.get("handlers") or ()]
        return {
            **self._process(pool),
            "quarantined": bool(pool.get("quarantined")),
            "waiting": None if waiting is None else sum(waiting),
            "waiting_is_more": max(waiting or [0]) >= MAX_COUNTED_JOBS,
            "in_hand": pool.get("waiting"),
            "done": pool.get("done"),
            "handlers": pool.get("handlers") or [],
            "workers": [self._worker(worker) for worker in pool.get("workers") or ()],
        }

    def _worker(self, worker: Document) -> Document:
        keys = ("name", "pid", "state", "handler", "job", "attempt", "progress", "note", "jobs")
        known = {key: worker.get(key) for key in keys}
        return {**known, "seconds": runs_for(worker), **self._usage(worker.get("pid"))}

    def _process(self, part: Document) -> Document:
        known = {key: part.get(key) for key in ("name", "state", "pid", "restarts", "trouble")}
        return {**known, **self._usage(part.get("pid"))}

    def _usage(self, pid: int | None) -> Document:
        """CPU since the frame before, in per cent of one core, and memory in bytes."""
        try:
            if not pid:
                raise psutil.NoSuchProcess(0)
            process = self._processes.setdefault(pid, psutil.Process(pid))
            # PSS divides what forked processes share, so that the sum is what the host uses.
            return {"cpu": process.cpu_percent(None), "memory": process.memory_full_info().pss}
        except psutil.Error:
            return {"cpu": None, "memory": None}

    def _depth(self, status: Document) -> list[Document] | None:
        """Jobs by handler and state, None while the store does not answer."""
        names = sorted({h for pool in _list(status.get("pools")) for h in pool.get("handlers") or ()})
        try:
            if self._store is None:
                self._store = open_checked(self._config, STORE_TIMEOUT_S)
            found = self._store.read(
                lambda tx: depths(tx, names, states=WAITING_AND_RUNNING, cap=MAX_COUNTED_JOBS)
            )
        except StoreError:
            return None
        return [
            {"handler": depth.handler, "cap": MAX_COUNTED_JOBS,
             **dict.fromkeys(WAITING_AND_RUNNING, 0), **depth.counts,
             **({} if depth.oldest_s is None else {"oldest_seconds": depth.oldest_s})}
            for depth in found
            if depth.counts
        ]  # fmt: skip


def _list(parts: Any) -> list[Document]:
    return [{**part, "name": name} for name, part in parts.items()] if isinstance(parts, dict) else []


def _processes(frame: Document) -> list[Document]:
    return [*frame["roles"], *frame["pools"], *(w for pool in frame["pools"] for w in pool["workers"])]
