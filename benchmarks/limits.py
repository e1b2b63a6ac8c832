"""What do limits, groups and turns cost, and do they hold?

    python -m benchmarks.limits
    python -m benchmarks.limits --quick --store mariadb --case rates

Cases: `rates`, jobs under a limit and a rate that are far away, and in turns of 10,000 groups, each between
two runs of the same jobs without a limit; `groups`, as many groups as jobs, with a limit for each and in
turns, and the dispatcher's memory; `shares`, those of two groups by weight, and of a rate that is used;
`flood`, the wait of a group that adds a job now and then while another floods, in times of its wait alone,
and how many runs of the other begin meanwhile; `full`, the rate of a group
beside a full group with many waiting jobs. `of CPU time` is what a plain job costs all processes and the
server, as a share of what this one costs: it says more than the rate on a machine that has other work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from benchmarks.harness import (
    HANDLERS,
    STORES,
    Figure,
    Node,
    Server,
    config,
    mail,
    main,
    moment,
    parser,
    spread,
)
from tests.support.eventually import eventually
from workerd.job_spec import JobSpec

USED = {"used": (200, 100), "strict": (50, 1)}
"""Rates a second, with their bursts, that are used while work waits."""
FLOOD_WORKERS = 2
WAITS = 300
"""Measured beside a flood and alone: of a hundred the 99th percentile would be the longest of all."""
LIMITS = f"""
[limits.far]
concurrency = 5000
[limits.far-rate]
rate = "1000000/1s"
[limits.used]
rate = "{USED["used"][0]}/1s"
burst = {USED["used"][1]}
[limits.strict]
rate = "{USED["strict"][0]}/1s"
burst = {USED["strict"][1]}
[limits.full]
group_concurrency = 2
[limits.each]
group_concurrency = 1
[groups]
heavy = 3
"""
TABLES = {
    "plain": f'call = "{HANDLERS}:noop"\nworkers = 2',
    "limited": f'call = "{HANDLERS}:noop"\nworkers = 2\nlimit = "far"',
    "rated": f'call = "{HANDLERS}:noop"\nworkers = 2\nlimit = "far-rate"',
    "turns": f'call = "{HANDLERS}:noop"\nworkers = 2\nfair = true',
    "each": f'call = "{HANDLERS}:noop"\nworkers = 2\nlimit = "each"',
    "used": f'call = "{HANDLERS}:noop"\nworkers = 2\nlimit = "used"',
    "strict": f'call = "{HANDLERS}:noop"\nworkers = 2\nlimit = "strict"',
    "grouped": f'call = "{HANDLERS}:sleep"\nworkers = 4\nlimit = "full"',
    "flood": f'call = "{HANDLERS}:sleep"\nworkers = {FLOOD_WORKERS}\nfair = true',
}
GOALS = {"limited": "0.9", "rated": "0.9", "turns": "0.8"}
OF_GROUPS = {"each": "0.8", "turns": "0.8"}
CASES = ("rates", "groups", "shares", "flood", "full")
CHUNK = 2000


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """All cases on each store."""
    jobs = options.jobs or (10_000 if options.quick else 30_000)
    repeats = options.repeats or (2 if options.quick else 3)
    waiting = options.waiting or (100_000 if options.quick else 1_000_000)
    groups = 30_000 if options.quick else 100_000
    flood = 100_000
    turns = 5 if options.quick else 20
    for kind in [options.store] if options.store else STORES:
        with Server(kind) as server, Node(server.url(), config(TABLES, more=LIMITS)) as node:
            for case in [options.case] if options.case else CASES:
                node.forget()
                if case == "rates":
                    yield from _rates(server, node, jobs, repeats)
                elif case == "groups":
                    yield from _rates(server, node, groups, repeats, groups=groups, goals=OF_GROUPS)
                elif case == "shares":
                    yield from _shares(server, node)
                elif case == "flood":
                    yield from _beside_a_flood(server, node, flood, 0.1 if options.quick else 0.15)
                elif case == "full":
                    yield from _beside_a_full_group(server, waiting, turns)


# -- throughput, one after the other -----------------------------------------------------------


def _rates(
    server: Server,
    node: Node,
    jobs: int,
    repeats: int,
    *,
    groups: int = 10_000,
    goals: dict[str, str] = GOALS,
) -> Iterator[Figure]:
    memory = [node.pss()["dispatcher"]]

    def drained(handler: str) -> Drained:
        made = _drained(server, node, handler, jobs, groups)
        memory.append(node.pss()["dispatcher"])
        return made

    for handler in ("plain", *goals):
        drained(handler)
    plain = [drained("plain")]
    beside: dict[str, list[tuple[Drained, Drained]]] = {handler: [] for handler in goals}
    for _ in range(repeats):
        for handler, runs in beside.items():
            own = drained(handler)
            plain.append(drained("plain"))
            runs.append((own, Drained(*(statistics.mean(pair) for pair in zip(*plain[-2:], strict=True)))))
    settings = server.settings | {"jobs": jobs, "groups": groups}
    for handler, goal in goals.items():
        runs = beside[handler]
        more = settings | {"jobs_per_s": [round(own.rate) for own, _ in runs]}
        share = [own.rate / other.rate for own, other in runs]
        yield Figure("limits", f"{handler} / plain", "share", share, settings=more, goal=goal)
        more = settings | {"cpu_us_per_job": [round(own.cpu_us, 1) for own, _ in runs]}
        share = [other.cpu_us / own.cpu_us for own, other in runs]
        yield Figure("limits", f"{handler} / plain, of CPU time", "share", share, settings=more, goal=goal)
    name = f"the dispatcher's memory, before and after each run, {groups} groups"
    yield Figure("limits", name, "MiB", memory, settings=settings, better="less")


class Drained(NamedTuple):
    """Jobs a second, and microseconds of CPU time for each."""

    rate: float
    cpu_us: float


def _drained(server: Server, node: Node, handler: str, jobs: int, groups: int) -> Drained:
    """Run so many jobs, each of one of so many groups."""
    node.forget()
    node.client.pause(handler)
    for start in range(0, jobs, CHUNK):
        node.client.enqueue_many([
            JobSpec(handler=handler, vars=mail(n), group=f"g{n % groups}")
            for n in range(start, start + CHUNK)
        ])  # fmt: skip
    used = server.cpu() + sum(node.cpu().values())
    node.client.resume(handler)
    node.wait_for(handler, every=0.2)
    used = server.cpu() + sum(node.cpu().values()) - used
    row = node.rows.sql("SELECT MIN(claimed_at) AS a, MAX(ingested_at) AS b FROM workerd_jobs")[0]
    return Drained(jobs / (moment(row["b"]) - moment(row["a"])).total_seconds(), used * 1e6 / jobs)


# -- shares ------------------------------------------------------------------------------------


def _shares(server: Server, node: Node) -> Iterator[Figure]:
    """Of the first half of the starts, how many the group of weight 3 has; and how much of a rate is used."""
    groups = ["heavy"] * 3000 + ["light"] * 3000
    node.client.pause("turns")
    node.client.enqueue_many([JobSpec(handler="turns", vars=mail(0), group=group) for group in groups])
    node.client.resume("turns")
    node.wait_for("turns")
    sql = "SELECT group_key FROM workerd_jobs ORDER BY started_at LIMIT 3000"
    found = Counter(str(row["group_key"]) for row in node.rows.sql(sql))
    ratio = found["heavy"] / found["light"] / 3
    share = min(ratio, 1 / ratio)
    yield Figure("limits", "starts by weight 3 : 1", "share", [share], settings=server.settings, goal="0.95")
    for handler, (rate, burst) in USED.items():
        node.forget()
        jobs = rate * 10
        node.enqueue(handler, jobs, mail)
        node.wait_for(handler)
        row = node.rows.sql("SELECT MIN(claimed_at) AS a, MAX(claimed_at) AS b FROM workerd_jobs")[0]
        seconds = (moment(row["b"]) - moment(row["a"])).total_seconds()
        name = f"a rate that is used, {rate}/1s, burst {burst}"
        share = (jobs - burst) / rate / seconds
        yield Figure("limits", name, "share", [share], settings=server.settings, goal="0.95")


# -- beside others -----------------------------------------------------------------------------


def _beside_a_full_group(server: Server, waiting: int, turns: int) -> Iterator[Figure]:
    """What 100 jobs of one group cost beside a full group with so many waiting jobs, and with none.

    On two stores of one server, in turns: on both, runs of the full group hold two of the four workers.
    """
    text = config({"grouped": TABLES["grouped"]}, more=LIMITS)
    with Node(server.url(), text) as without, Node(server.url(), text) as beside:
        for node, jobs in ((without, 2), (beside, CHUNK)):
            specs = [JobSpec(handler="grouped", vars={"seconds": 3600}, group="full")] * jobs
            node.client.enqueue_many(specs)
            eventually(lambda node=node: node.rows.counts().get("inprogress") == 2)
        _multiply(beside, waiting)
        _of_one_group(server, beside, "first")  # which moves the others out of the way
        sql = "SELECT COUNT(*) AS n FROM workerd_jobs WHERE queue IS NOT NULL AND status = 'new'"
        eventually(lambda: beside.rows.sql(sql)[0]["n"] >= waiting * 0.99, within=900, every=5)
        server.rest()
        _of_one_group(server, without, "warm-up")
        of_each: dict[Node, list[tuple[float, float]]] = {without: [], beside: []}
        for turn in range(turns):
            for node in (without, beside) if turn % 2 else (beside, without):
                of_each[node].append(_of_one_group(server, node, f"turn{turn}"))
        for n, (case, unit) in enumerate((("time", "s"), ("CPU time", "ms a job"))):
            alone, full = ([one[n] for one in of_each[node]] for node in (without, beside))
            share = statistics.median(alone) / statistics.median(full)
            more = server.settings | {"waiting": waiting, "unit": unit, "alone": alone, "beside": full}
            name = f"beside a full group / beside none waiting, of {case}"
            yield Figure("limits", name, "share", [share], settings=more, goal="0.9")
        for node in (without, beside):
            node.rows.sql("UPDATE workerd_jobs SET cancel_requested_at = run_at WHERE node_id IS NOT NULL")


def _multiply(node: Node, waiting: int) -> None:
    """Copy the waiting jobs until there are so many."""
    unique = "randomblob(16)" if node.rows.sqlite else "UNHEX(MD5(CONCAT(id, UUID(), RAND())))"
    count = CHUNK
    while count < waiting:
        more = min(count, waiting - count, 50_000)
        node.rows.sql(
            f"INSERT INTO workerd_jobs (id, handler, vars, group_key) SELECT {unique}, handler, vars,"
            f" group_key FROM workerd_jobs WHERE group_key = 'full' AND status = 'new' LIMIT {more}"
        )
        count += more


def _of_one_group(server: Server, node: Node, group: str) -> tuple[float, float]:
    """Seconds that 100 jobs of one group take, and milliseconds of CPU time for each."""
    used = server.cpu() + sum(node.cpu().values())
    began = time.monotonic()
    specs = [JobSpec(handler="grouped", vars={"seconds": 0.01}, group=group)] * 100
    enqueued = node.client.enqueue_many(specs)
    node.client.wait(enqueued[-1].id, 600)
    seconds = time.monotonic() - began
    used = server.cpu() + sum(node.cpu().values()) - used
    return round(seconds, 3), round(used * 10, 3)


def _beside_a_flood(server: Server, node: Node, flood: int, every_s: float) -> Iterator[Figure]:
    """How long jobs of a group wait that come one at a time, alone and beside a flood of another group.

    Alone: every worker is idle, nothing else waits or runs, and the table is empty. A wait is from the
    insert, by the store's clock, to the start of the run. Beside a flood it includes the rest of a run under
    way, which nothing interrupts: of runs of 20 ms that is several times what a job alone waits. So the wait
    is also given in times of that and one such run. And how many runs of the flood begin meanwhile, which
    does not depend on how fast the machine is.
    """
    for seconds in (0.001, 0.02):
        node.forget()
        of_alone = [_waited(node, seconds, every_s) for _ in range(WAITS)]
        for _ in range(flood // CHUNK):
            node.client.enqueue_many([
                JobSpec(handler="flood", vars={"seconds": seconds}, group="a") for _ in range(CHUNK)
            ])  # fmt: skip
        of_beside = [_waited(node, seconds, every_s) for _ in range(WAITS)]
        left = "SELECT 1 FROM workerd_jobs WHERE status = 'new' AND group_key = 'a' LIMIT 1"
        assert node.rows.sql(left), "the flood was over before the last of these jobs"
        _give_up(node, "flood")
        more = server.settings | {
            "flood": flood, "run_s": seconds, "every_s": every_s, "workers": FLOOD_WORKERS,
        }  # fmt: skip
        runs = f"runs of {seconds * 1000:g} ms"
        alone, beside = (
            spread([(end - begin).total_seconds() * 1000 for begin, end in waits])
            for waits in (of_alone, of_beside)
        )
        yield Figure("limits", f"a job alone, {runs}", "ms", parts=alone, settings=more, better="less")
        yield Figure(
            "limits", f"a job beside a flood, {runs}", "ms", parts=beside, settings=more, better="less"
        )
        ratios = {part: beside[part] / alone[part] for part in ("p50", "p95", "p99")}
        name = f"beside a flood / alone, {runs}"
        yield Figure("limits", name, "times", parts=ratios, settings=more, goal="p99 2", better="less")
        ratios = {part: beside[part] / (alone[part] + seconds * 1000) for part in ("p50", "p95", "p99")}
        name = f"beside a flood / alone and one run, {runs}"
        yield Figure("limits", name, "times", parts=ratios, settings=more, better="less")
        yield _begun_meanwhile(node, of_beside, f"runs of the flood that begin meanwhile, {runs}", more)


def _begun_meanwhile(
    node: Node, waits: list[tuple[datetime, datetime]], name: str, settings: dict[str, Any]
) -> Figure:
    rows = node.rows.sql("SELECT started_at FROM workerd_jobs WHERE group_key = 'a' AND started_at > '2'")
    runs = sorted(moment(row["started_at"]) for row in rows)
    ahead = [
        bisect_left(runs, end.replace(tzinfo=None)) - bisect_left(runs, begin.replace(tzinfo=None))
        for begin, end in waits
    ]
    goal = f"p50 {FLOOD_WORKERS} / p99 {2 * FLOOD_WORKERS}"
    return Figure("limits", name, "runs", parts=spread(ahead), settings=settings, goal=goal, better="less")


def _give_up(node: Node, handler: str) -> None:
    """Delete what waits, and wait for what runs."""
    node.client.pause(handler)
    node.rows.sql("DELETE FROM workerd_jobs WHERE status = 'new' AND handler = %s", handler)
    node.client.resume(handler)
    node.wait_for(handler)


def _waited(node: Node, seconds: float, every_s: float) -> tuple[datetime, datetime]:
    """When a job was made, and when it started."""
    time.sleep(every_s)
    job = node.client.enqueue("flood", {"seconds": seconds}, group="b")
    ended = node.client.wait(job.id, 60)
    assert ended.started_at is not None
    assert ended.created_at is not None
    return ended.created_at, ended.started_at


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--store", choices=STORES, default="")
    made.add_argument("--case", choices=CASES, default="")
    made.add_argument("--jobs", type=int, default=0)
    made.add_argument("--waiting", type=int, default=0)
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
