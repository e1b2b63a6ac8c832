"""The peers in the same run: throughput, latency, footprint, deadline and kill, each with 2 processes.

    python -m benchmarks.peers.run                      # all that are installed: pip install '.[peers]'
    python -m benchmarks.peers.run --only huey rq

A private Redis (append-only file, fsync each second); workerd itself, on a private MariaDB with durable
commits, is asked the same by the same means. Every job records its start with one write.

Throughput: jobs wait first, then the workers start; jobs a second between the first and the last start, and
every result must be stored. Latency: from before the enqueue call to the handler's first line, 100/s. Limit:
1 s by the peer's own means, on a loop and on C code that holds the GIL; milliseconds past it until the job
has ended or its process is dead. Kill: a job that kills its process; how often it ran, its recorded state,
and whether others still run. A job that never stops is waited for as long as `--patience`.
"""

from __future__ import annotations

import argparse
import os
import select
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Figure, folder, mail, main, parser, spread, versions
from benchmarks.peers.peer import PEERS, WORKERS, Note, Peer, Redis

RATE = 100.0
FAST, TIMES = ("workerd", "huey", "pebble"), 4
"""Those that would be through in a moment get more jobs."""


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Peer by peer."""
    patience = options.patience or (4.0 if options.quick else 10.0)
    with folder() as path:
        redis = Redis(path)
        try:
            for name in options.only or PEERS:
                try:
                    peer = Peer(name, path, redis)
                except ImportError as error:
                    print(f"{name} is left out ({error}); pip install '.[peers]' brings it")
                    continue
                try:
                    yield from questions(peer, options, patience)
                except (OSError, AssertionError) as error:
                    print(f"{name} did not go through all of it: {error}\n{peer.tail()}")
                finally:
                    peer.close()
        finally:
            redis.close()


def questions(peer: Peer, options: argparse.Namespace, patience: float) -> Iterator[Figure]:
    """All measurements of one peer."""
    jobs = options.jobs or (5000 if options.quick else 10_000) * (TIMES if peer.name in FAST else 1)
    settings: dict[str, Any] = peer.module.SETTINGS | {"workers": WORKERS, "jobs": jobs}
    if not peer.in_memory and peer.name != "workerd":
        settings["redis"] = "appendonly, fsync everysec"
    settings["version"] = versions(peer.module.LIBRARY).get(peer.module.LIBRARY, "")

    def figure(case: str, unit: str, values: list[float], **parts: Any) -> Figure:
        better = "more" if unit == "jobs/s" else "less"
        return Figure("peers", f"{peer.name}: {case}", unit, values, parts, settings, better=better)

    repeats = 1 if options.quick and peer.name not in FAST else 3
    rates = [throughput(peer, jobs) for _ in range(options.repeats or repeats)]
    yield figure("throughput", "jobs/s", rates)
    peer.restart()
    yield figure("latency", "ms", [], **latency(peer, 200 if options.quick else 1000))
    used = sum(p.memory_full_info().pss for p in peer.tree()) / 2**20
    yield figure("PSS", "MiB", [used])
    for job in ("spin", "c_code"):
        peer.restart()
        yield figure(f"limit on {job}", "ms", [], **limited(peer, job, patience))
    peer.restart()
    yield figure("kill -9 of its process", "", [], **killed(peer, patience))


def throughput(peer: Peer, jobs: int) -> float:
    """Jobs a second between the first and the last start, all results stored."""
    peer.clear()
    if peer.in_memory:
        peer.launch()
    peer.send_many("noop", [mail(n) for n in range(jobs)])
    if peer.in_memory:
        peer.module.go()
    else:
        peer.launch()
    assert peer.wait(lambda: len(peer.notes.of("noop")) >= jobs, 120, 0.1), (
        f"{jobs} jobs did not run in 120 s"
    )
    assert peer.wait(lambda: peer.module.stored() >= jobs, 20, 0.1), (
        f"{peer.module.stored()} results of {jobs}"
    )
    starts = sorted(note.at for note in peer.notes.of("noop"))
    return (jobs - 1) / ((starts[-1] - starts[0]) / 1e9)


def latency(peer: Peer, count: int) -> dict[str, float]:
    """Enqueue to start on idle workers."""
    time.sleep(1)
    begin = time.monotonic()
    for n in range(count):
        time.sleep(max(0.0, begin + n / RATE - time.monotonic()))
        peer.send("stamp", sent=time.monotonic_ns())
    assert peer.wait(lambda: len(peer.notes.of("stamp")) >= count, 60), "not all jobs began within 60 s"
    return spread([(note.at - note.number) / 1e6 for note in peer.notes.of("stamp")])


def limited(peer: Peer, job: str, patience: float) -> dict[str, Any]:
    """Milliseconds past the limit of 1 s until the job has ended or its process is dead."""
    sent = peer.send(job)
    if not peer.wait(lambda: bool(peer.notes.of(job)), 20, 0.002):
        return {"stopped": "it did not begin"}
    note = peer.notes.of(job)[0]
    limit = note.at / 1e9 + 1.0
    stopped = ended(peer, note, limit + patience)
    if stopped is not None:
        peer.wait(lambda: bool(said(peer, sent)), 1.0)
    past = f"not in {patience:g} s" if stopped is None else (stopped - limit) * 1000
    return {"stopped": past, "state": peer.module.became(sent)}


def ended(peer: Peer, note: Note, until: float) -> float | None:
    """The monotonic second in which the job noted its end or its process died."""
    try:
        process = os.pidfd_open(note.pid)
    except ProcessLookupError:
        return time.monotonic()
    poll = select.poll()
    poll.register(process, select.POLLIN)
    try:
        while time.monotonic() < until:
            if poll.poll(2):
                return time.monotonic()
            over = [end.at for end in peer.notes.of("ended") if end.pid == note.pid]
            if over:
                return over[0] / 1e9
    finally:
        os.close(process)
    return None


def said(peer: Peer, job: Any) -> bool:
    """Whether a job has a final state."""
    told = peer.module.became(job).lower()
    return not any(
        word in told for word in ("no result", "pending", "started", "queued", "inprogress", "new ")
    )


def killed(peer: Peer, patience: float) -> dict[str, Any]:
    """After a job that kills its process: runs of it, what is said of it, and whether others run."""
    sent = peer.send("die")
    if not peer.wait(lambda: bool(peer.notes.of("die")), 20):
        return {"runs": 0}
    # Negative numbers are these alone; a peer that keeps jobs back for a start does not keep them.
    for n in range(1, 21):
        if n == 11:
            time.sleep(1)  # whoever ends because of it has done so
        peer.send("noop", n=-n)
    peer.wait(lambda: said(peer, sent) and len(others(peer)) == 20, patience)
    return {
        "runs": len(peer.notes.of("die")), "state": peer.module.became(sent),
        "of 20 others run": len(others(peer)), "within_s": patience,
    }  # fmt: skip


def others(peer: Peer) -> set[int]:
    """The jobs behind the one that was killed, as far as they have begun."""
    return {note.number for note in peer.notes.of("noop") if note.number < 0}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--only", nargs="*", choices=PEERS)
    made.add_argument("--jobs", type=int, default=0)
    made.add_argument("--patience", type=float, default=0.0, help="seconds for a job that never stops")
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
