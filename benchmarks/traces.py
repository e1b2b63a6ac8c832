"""What do traces cost, and how many spans does a node export?

    python -m benchmarks.traces
    python -m benchmarks.traces --store sqlite --jobs 2000

Jobs of 10 ms and jobs that do nothing, with `[otel] enabled` false and true, in turns on nodes that run side
by side. The cost is what the daemon's processes use of CPU time for a job beyond the same without traces, in
per cent of 10 ms, which a busy machine disturbs less than rates. The collector, on the same machine, keeps
what it is sent and decodes it after the turn. Where a node makes more spans than it can export, it drops the
rest: `spans/s` are those that arrived while the jobs ran.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.harness import HANDLERS, STORES, Figure, Node, Server, config, main, parser
from benchmarks.throughput import span
from tests.support.collector import Collector
from tests.support.eventually import eventually
from workerd.client import Client
from workerd.job_spec import JobSpec

META = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
"""Each job comes from a span, which its run names."""
JOB_US = 10_000
ONE_PER_CENT = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
NODES: dict[str, dict[str, str] | None] = {"untraced": None, "traced": {}, "1 % sampled": ONE_PER_CENT}


class Case(NamedTuple):
    """A load; `goal`: per cent of a job that traces may cost."""

    name: str
    call: str
    vars: dict[str, Any]
    workers: int
    jobs: int
    goal: str = ""


CASES = (
    Case("10 ms jobs", "sleep", {"seconds": 0.01}, 8, 3000, "3"),
    Case("jobs without work", "noop", {"n": 1}, 2, 20_000),
)


class Turns(NamedTuple):
    """Of each node and turn: jobs a second, microseconds of CPU time a job, spans a second."""

    rates: dict[str, list[float]]
    cpu: dict[str, list[float]]
    spans: dict[str, list[float]]


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Jobs a second, what traces cost of them, spans a second."""
    for case in CASES:
        jobs = options.jobs or (case.jobs // 3 if options.quick else case.jobs)
        found = _turns(options.store, case, jobs, options.repeats or (3 if options.quick else 5))
        settings = {"store": options.store, "workers": case.workers, "jobs": jobs}
        for name, values in found.rates.items():
            yield Figure("traces", f"{case.name}, {name}", "jobs/s", values, settings=settings)
        for name, values in found.cpu.items():
            yield Figure("traces", f"{case.name}, {name}", "µs CPU", values, settings=settings, better="less")
        for name in list(NODES)[1:]:
            pairs = zip(found.cpu["untraced"], found.cpu[name], strict=True)
            cost = [(traced - untraced) / JOB_US * 100 for untraced, traced in pairs]
            yield Figure(
                "traces", f"{case.name}, {name}: cost", "% of 10 ms", cost, settings=settings,
                goal=case.goal, better="less",
            )  # fmt: skip
        yield Figure("traces", f"{case.name}: exported", "spans/s", found.spans["traced"], settings=settings)


def _turns(store: str, case: Case, jobs: int, repeats: int) -> Turns:
    found = Turns(defaultdict(list), defaultdict(list), defaultdict(list))
    with Server(store) as server, contextlib.ExitStack() as stack:
        collector = stack.enter_context(contextlib.closing(Collector(decoding=False)))
        nodes = {}
        for name, variables in NODES.items():
            nodes[name] = stack.enter_context(_node(server, case, collector, variables))
        for turn in range(repeats + 1):
            for name, node in nodes.items():
                collector.forget()
                before = sum(node.cpu().values())
                seconds = _drain(node, case, jobs if turn else jobs // 10)
                spans = collector.count()
                _settle(node, collector)
                if turn:  # the first one warms up
                    found.rates[name].append(jobs / seconds)
                    found.cpu[name].append((sum(node.cpu().values()) - before) / jobs * 1e6)
                    found.spans[name].append(spans / seconds)
    return found


def _node(server: Server, case: Case, collector: Collector, variables: dict[str, str] | None) -> Node:
    enabled = str(variables is not None).lower()
    handler = f'call = "{HANDLERS}:{case.call}"\nworkers = {case.workers}'
    node = Node(server.url(), config({case.call: handler}, more=f"[otel]\nenabled = {enabled}"))
    node.daemon.env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **(variables or {})}
    node.client = Client(node.url)  # enqueues are measured elsewhere
    return node


def _drain(node: Node, case: Case, jobs: int) -> float:
    """Seconds from the first claim to the last commit."""
    node.forget()
    node.client.pause(case.call)
    specs = [JobSpec(handler=case.call, vars=case.vars, meta=META)] * jobs
    for start in range(0, jobs, 2000):
        node.client.enqueue_many(specs[start : start + 2000])
    node.client.resume(case.call)
    node.wait_for(case.call, every=0.2)
    return span(node)


def _settle(node: Node, collector: Collector) -> None:
    """Wait until nothing more arrives."""
    last = -1

    def quiet() -> bool:
        nonlocal last
        before, last = last, len(collector.bodies)
        return before == last

    eventually(quiet, within=60, every=1.0, state=node.daemon.tail)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--jobs", type=int, default=0, help="a turn")
    made.add_argument("--store", choices=STORES, default=STORES[0])
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
