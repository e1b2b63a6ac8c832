"""`top`: pools, workers, what runs now and for how long, rates, depth; redrawn every second."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import put_json
from workerd.cli.session import configuration
from workerd.cli.status import Document, asked, runs_for
from workerd.config.model import Config
from workerd.errors import StoreError

if TYPE_CHECKING:
    import psutil

    from workerd.store.base import Store, Tx


EVERY = 1.0
"""Seconds between two frames."""
SAMPLE = 0.2
"""Seconds over which CPU is measured for the first frame."""
STORE_TIMEOUT = 1.0
"""Seconds that a frame waits for the store: what the supervisor says is shown without it."""
DEPTH_CAP = 10_000

Once = Annotated[bool, typer.Option("--once", help="Print one frame and end.")]


def top(once: Once = False, c: ConfigPath = None, json: AsJson = False) -> None:
    """Show pools, workers, what runs now, rates and depth."""
    config = configuration(c)
    with contextlib.closing(TopSampler(config)) as gauge:
        gauge.read()
        if json or once:
            time.sleep(SAMPLE)
            document = gauge.read()
            if json:
                put_json(document)
            else:
                from workerd.cli.top_view import print_frame

                print_frame(document)
            return
        from workerd.cli.top_view import live

        # Ctrl-C is how one leaves it.
        with contextlib.suppress(KeyboardInterrupt), live() as show:
            while True:
                time.sleep(EVERY)
                show(gauge.read())


class TopSampler:
    """Reads one frame after the other; CPU is measured from the frame before."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store: Store | None = None
        self._processes: dict[int, psutil.Process] = {}

    def close(self) -> None:
        """Close the store's connection."""
        if self._store is not None:
            self._store.close()

    def read(self) -> Document:
        """A frame: what the supervisor says, what each process uses, how much waits. Raises Failed."""
        said = asked(self._config)
        roles = _list(said.get("roles"))
        ingester = next((r for r in roles if r["name"] == "ingester"), {})
        dispatcher = next((r for r in roles if r["name"] == "dispatcher"), {})
        frame = {
            "node": said.get("node"),
            "state": said.get("state"),
            "version": said.get("version"),
            "started_at": said.get("started_at"),
            "store": said.get("store"),
            "spool": said.get("spool"),
            "lease_left": dispatcher.get("lease_left"),
            "claims_per_second": dispatcher.get("claims_per_second"),
            "ends_per_second": ingester.get("rate"),
            "roles": [self._process(role) for role in roles],
            "pools": [self._pool(pool) for pool in _list(said.get("pools"))],
            "depth": self._depth(said),
        }
        alive = {p["pid"] for p in _processes(frame)}
        self._processes = {pid: known for pid, known in self._processes.items() if pid in alive}
        return frame

    def _pool(self, pool: Document) -> Document:
        workers = pool.get("workers")
        found = [self._worker(w) for w in workers] if isinstance(workers, list) else []
        return {
            **self._process(pool),
            "quarantined": bool(pool.get("quarantined")),
            "waiting": pool.get("waiting"),
            "done": pool.get("done"),
            "handlers": pool.get("handlers") or [],
            "workers": found,
        }

    def _worker(self, worker: Document) -> Document:
        keys = ("name", "pid", "state", "handler", "job", "attempt", "progress", "note", "jobs")
        known = {key: worker.get(key) for key in keys}
        return {**known, "seconds": runs_for(worker), **self._usage(worker.get("pid"))}

    def _process(self, part: Document) -> Document:
        known = {key: part.get(key) for key in ("name", "state", "pid", "restarts", "trouble")}
        return {**known, **self._usage(part.get("pid"))}

    def _usage(self, pid: int | None) -> Document:
        """CPU in per cent of one core since the frame before, and memory, of a process of this machine."""
        import psutil

        try:
            if not pid:
                raise psutil.NoSuchProcess(0)
            process = self._processes.setdefault(pid, psutil.Process(pid))
            # Its share of what forked processes have in common (PSS): the sum is what the machine spends.
            return {"cpu": process.cpu_percent(None), "memory": process.memory_full_info().pss}
        except psutil.Error:
            return {"cpu": None, "memory": None}

    def _depth(self, said: Document) -> list[Document] | None:
        """Jobs by handler and state, None while the store does not answer."""
        names = sorted({h for pool in _list(said.get("pools")) for h in pool.get("handlers") or ()})
        try:
            if self._store is None:
                from workerd.store.engines import open_store

                node, url = self._config.node, self._config.store
                self._store = open_store(url, state_dir=Path(node.state_dir), timeout=STORE_TIMEOUT)
            return self._store.read(lambda tx: _counts(tx, names))
        except StoreError:
            return None


def _counts(tx: Tx, names: list[str]) -> list[Document]:
    from workerd.job import Status
    from workerd.store import queries

    states = (Status.NEW, Status.SCHEDULED, Status.INPROGRESS)
    found: dict[str, Document] = {}
    for count in queries.counts(tx, names, states, DEPTH_CAP):
        row = found.setdefault(count.handler, {"handler": count.handler, **dict.fromkeys(states, 0)})
        row[count.status] = count.count
        if count.oldest is not None:
            row["oldest_seconds"] = max(0.0, (tx.now - count.oldest) / 1e6)
    return list(found.values())


def _list(parts: Any) -> list[Document]:
    return [{**part, "name": name} for name, part in parts.items()] if isinstance(parts, dict) else []


def _processes(frame: Document) -> list[Document]:
    return [*frame["roles"], *frame["pools"], *(w for pool in frame["pools"] for w in pool["workers"])]
