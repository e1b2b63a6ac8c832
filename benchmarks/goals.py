"""What workerd is to reach, as ratios within one run: machines differ by a factor of three, these less.

The report of `make bench` begins with these questions, their goals and what was measured, and the CPU time of
a job by process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.harness import shown

Record = dict[str, Any]
Results = Mapping[str, list[Record]]
"""The last record of each case, by benchmark."""


class Question(NamedTuple):
    """One line of the table; `measured` gives a number for each goal, or raises LookupError."""

    text: str
    goals: tuple[float, ...]
    measured: Callable[[Results], tuple[float, ...]]
    less: bool = False
    """Whether less is better."""
    unit: str = ""


class Answer(NamedTuple):
    """A question with its numbers; empty where the run had no time for it."""

    question: Question
    values: tuple[float, ...]

    @property
    def met(self) -> bool:
        """Whether all its goals are reached."""
        pairs = zip(self.values, self.question.goals, strict=True)
        return all(value <= goal if self.question.less else value >= goal for value, goal in pairs)

    @property
    def verdict(self) -> str:
        """Met, missed, or not measured."""
        return ("met" if self.met else "**missed**") if self.values else "not measured"

    def row(self) -> str:
        """The line of a Markdown table."""
        goals, values = (
            " / ".join(shown(number) for number in numbers) for numbers in (self.question.goals, self.values)
        )
        unit = f" {self.question.unit}" if self.question.unit else ""
        return f"| {self.question.text} | {goals}{unit} | {values or '–'} | {self.verdict} |"


# -- finding numbers


def _record(results: Results, benchmark: str, *words: str) -> Record:
    """The record whose case contains all words. Raises LookupError without one."""
    for record in results.get(benchmark, []):
        if all(word in record["case"] for word in words):
            return record
    raise LookupError(f"{benchmark}: {words}")


def _median(results: Results, benchmark: str, *words: str) -> float:
    return float(_record(results, benchmark, *words)["median"])


def _ratio(*parts: tuple[str, ...]) -> Callable[[Results], tuple[float, ...]]:
    """The median of the first case divided by that of the second; cases as `_record` takes them."""
    return lambda results: (_median(results, *parts[0]) / _median(results, *parts[1]),)


def _medians(*parts: tuple[str, ...]) -> Callable[[Results], tuple[float, ...]]:
    return lambda results: tuple(_median(results, *part) for part in parts)


INSERT = ("enqueue", "mariadb: plain INSERT")
PEBBLE = ("peers", "pebble: throughput")


def _latency(results: Results) -> tuple[float, ...]:
    """p50 and p99 from the client's call to the handler, in multiples of the time of a bare INSERT."""
    parts, insert_ms = _record(results, "latency", "client")["parts"], 1000 / _median(results, *INSERT)
    return parts["p50"] / insert_ms, parts["p99"] / insert_ms


def _paced_latency(results: Results) -> tuple[float, ...]:
    """The same, in multiples of an INSERT after as long a pause as each job comes after."""
    parts, insert = (_record(results, "latency", word)["parts"] for word in ("client", "pace"))
    return parts["p50"] / insert["p50"], parts["p99"] / insert["p50"]


def _http(results: Results) -> tuple[float, ...]:
    insert = _median(results, *INSERT)
    ways = ("mariadb: HTTP, one by one", "mariadb: HTTP, 64 connections")
    return tuple(_median(results, "enqueue", way) / insert for way in ways)


def _enqueue(results: Results) -> tuple[float, ...]:
    ratio = _ratio(("enqueue", "mariadb: client, one by one"), INSERT)(results)
    return *ratio, _median(results, "enqueue", "mariadb: client, in bulk")


def _next_job(results: Results) -> tuple[float, ...]:
    """The worst p99 of all ways to overrun a deadline."""
    cases = [r for r in results.get("deadline", []) if r["case"].endswith(": next job")]
    if not cases:
        raise LookupError("deadline")
    return (max(record["parts"]["p99"] for record in cases),)


QUESTIONS = (
    Question(
        "server CPU of a job, claim and close / bare statements with the primary key alone",
        (1.5,), _medians(("floor", "server CPU")), less=True,
    ),
    Question("throughput / pebble in memory", (1.0,), _ratio(("throughput", "mariadb, 2"), PEBBLE)),
    Question("whole program / bare statements", (0.8,), _medians(("floor", "whole program / bare"))),
    Question("SQLite / pebble in memory", (1.1,), _ratio(("throughput", "sqlite, 2"), PEBBLE)),
    Question("8 workers, 10 ms jobs: busy", (97,), _medians(("throughput", "10 ms")), unit="%"),
    Question("50 pools / 1 pool", (0.9,), _medians(("throughput", "50 pools / 1"))),
    Question("latency p50 / p99, client, in times of a bare INSERT", (5, 12), _latency, less=True),
    Question("the same, of one at the same pace", (5, 12), _paced_latency, less=True),
    Question("POST /jobs on 1 / 64 connections, in rates of a bare INSERT", (0.5, 2), _http),
    Question("enqueue one by one / bare INSERT; jobs a second in bulk", (0.9, 20_000), _enqueue),
    Question(
        "PSS with 2 / 8 workers", (40, 50),
        _medians(("footprint", "PSS, 2 workers, gateway off"), ("footprint", "PSS, 8 workers, gateway off")),
        less=True, unit="MiB",
    ),
    Question(
        "PSS with 2 / 8 workers and a gateway", (65, 75),
        _medians(("footprint", "PSS, 2 workers, gateway on"), ("footprint", "PSS, 8 workers, gateway on")),
        less=True, unit="MiB",
    ),
    Question("idle CPU", (0.3,), _medians(("footprint", "idle CPU, 2 workers, gateway off")), True, "%"),
    Question("next job after a deadline, p99", (20,), _next_job, less=True, unit="ms"),
    Question("deep store / shallow store", (0.95,), _medians(("depth", "finished / shallow"))),
)  # fmt: skip


def answers(results: Results) -> Iterator[Answer]:
    """Each question with what this run measured."""
    for question in QUESTIONS:
        try:
            yield Answer(question, question.measured(results))
        except LookupError:
            yield Answer(question, ())


def cpu_by_process(results: Results) -> list[str]:
    """Lines of a Markdown table: microseconds of CPU time of a job by process, the least of the repeats."""
    lines: list[str] = []
    for records in results.values():
        for record in records:
            costs = record["settings"].get("cpu_us_per_job")
            if not costs:
                continue
            least = {name: min(cost.get(name, 0.0) for cost in costs) for name in costs[0]}
            told = ", ".join(f"{name} {shown(us)}" for name, us in least.items() if us)
            case = f"{record['benchmark']}: {record['case']}"
            lines.append(f"| {case} | {shown(sum(least.values()))} | {told} |")
    return lines


def table(results: Results) -> str:
    """Both tables as Markdown."""
    cpu = cpu_by_process(results)
    return "\n".join(
        [
            "| question | goal | measured | |",
            "|---|---|---|---|",
            *(answer.row() for answer in answers(results)),
            *(["", "| CPU time of a job, µs | sum | by process |", "|---|---|---|", *cpu] if cpu else []),
        ]
    )
