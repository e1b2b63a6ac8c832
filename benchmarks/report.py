"""Write a report of the results: ratios and goals, workerd beside its peers, a table and plots per question.

python -m benchmarks.report benchmarks/results
python -m benchmarks.report benchmarks/results --page       # also updates docs/explanation/measured.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import goals
from benchmarks.harness import shown
from benchmarks.plot import Bar, Column, bars, columns
from tests.support.daemon import ROOT

Record = dict[str, Any]
ORDER = (
    "throughput", "floor", "enqueue", "commands", "latency", "deadline", "recovery", "depth", "footprint",
    "nodes", "peers",
)  # fmt: skip
PAGE, PICTURE = ROOT / "docs" / "explanation" / "measured.md", "compared.svg"
BEGIN, END = "<!-- measured by `make bench` -->\n", "<!-- until here -->\n"
HEAD = (
    "| 2 processes each | jobs/s | enqueue to start, ms: p50 / p99 | memory, MiB "
    "| a loop past its limit | C code past its limit | a job whose process is killed |\n"
    "|---|---|---|---|---|---|---|"
)


def read(folder: Path) -> dict[str, list[Record]]:
    """The last record of each case, by benchmark."""
    found: dict[str, list[Record]] = {}
    for name in ORDER:
        path = folder / f"{name}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        latest = {record["case"]: record for record in map(json.loads, lines)}
        if latest:
            found[name] = list(latest.values())
    return found


def figures(record: Record) -> str:
    """A table cell: median with range, or percentiles."""
    if "median" in record:
        ends = f" ({shown(record['min'])} … {shown(record['max'])})" if len(record["values"]) > 1 else ""
        return f"{shown(record['median'])} {record['unit']}{ends}"
    parts = [f"{name} {v if isinstance(v, str) else shown(v)}" for name, v in record["parts"].items()]
    return f"{', '.join(parts)} {record['unit']}"


def verdict(record: Record) -> str:
    """The goal and whether it is met."""
    return f"{record['goal']}: {'met' if record.get('met') else '**missed**'}" if record.get("goal") else ""


def conditions(found: dict[str, list[Record]]) -> str:
    """The machine and the versions, in one sentence each."""
    some = next(iter(found.values()))[-1]
    machine, versions = some["machine"], some["versions"]
    return (
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB,"
        f" Linux {machine['kernel']}; load before: {machine['load_before']}; at {some['at']}.\n\n"
        + ", ".join(f"{name} {value}" for name, value in versions.items())
        + "."
    )


def markdown(found: dict[str, list[Record]], plots: dict[str, list[str]]) -> str:
    """The whole report."""
    lines = ["# Benchmarks", "", conditions(found), "", "## Ratios within this run", "", goals.table(found)]
    lines += ["", "## Goals", ""]
    lines += ["| question | case | measured | goal |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {r['case']} | {figures(r)} | {verdict(r)} |"
        for name, records in found.items()
        for r in records
        if r.get("goal")
    ]
    if "peers" in found:
        lines += ["", "## workerd and its peers", "", compared(found["peers"]), "", f"![]({PICTURE})"]
    for name, records in found.items():
        lines += ["", f"## {name}", "", "| case | measured: median (min … max) | goal |", "|---|---|---|"]
        lines += [f"| {r['case']} | {figures(r)} | {verdict(r)} |" for r in records]
        lines += [f"\n![{plot}]({plot})" for plot in plots.get(name, [])]
        lines += ["", *settings(name, records)]
    return "\n".join(lines) + "\n"


def settings(name: str, records: list[Record]) -> list[str]:
    """Versions and settings: of each peer, else of the first case."""
    wanted = [r for r in records if r["case"].endswith(": throughput")] if name == "peers" else records[:1]
    return [
        f"- Settings of {r['case'].partition(':')[0]}: `{json.dumps(r['settings'], default=str)[:600]}`"
        for r in wanted
    ]


# -- beside the peers


def by_peer(records: list[Record]) -> dict[str, dict[str, Record]]:
    """The results of each peer, by question."""
    told: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        name, _, question = record["case"].partition(": ")
        told[name][question] = record
    return told


def compared(records: list[Record]) -> str:
    """The table: one row per peer."""
    lines = []
    for name, told in by_peer(records).items():
        parts = told["latency"]["parts"] if "latency" in told else {}
        cells = [
            f"{name} {told['throughput']['settings'].get('version', '')}" if "throughput" in told else name,
            shown(told["throughput"]["median"]) if "throughput" in told else "",
            f"{shown(parts['p50'])} / {shown(parts['p99'])}" if parts else "",
            shown(told["PSS"]["median"]) if "PSS" in told else "",
            stopped(told.get("limit on spin")),
            stopped(told.get("limit on c_code")),
            after_kill(told.get("kill -9 of its process")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([HEAD, *lines])


def stopped(record: Record | None) -> str:
    """When a job past its limit was stopped, and its recorded state."""
    if record is None:
        return ""
    past, state = record["parts"]["stopped"], record["parts"].get("state", "")
    when = (
        past.replace("not in", "not stopped in")
        if isinstance(past, str)
        else f"stopped after {shown(past)} ms"
    )
    return f"{when}; “{state}”"


def after_kill(record: Record | None) -> str:
    """How often it ran, its recorded state, and how many other jobs ran."""
    if record is None:
        return ""
    parts = record["parts"]
    others = parts.get("of 20 others run", 0)
    return f"runs {shown(parts['runs'])}; “{parts.get('state', '')}”; {shown(others)} of 20 others run"


def picture(records: list[Record]) -> str:
    """The plot: three columns of bars, one row per peer."""
    told = by_peer(records)
    wanted = [
        ("throughput", "jobs a second", "more is better"),
        ("latency", "enqueue to start, ms", "p50 / p99, less is better"),
        ("PSS", "memory, MiB", "idle, whole tree, less is better"),
    ]
    made = [
        Column(title, note, {name: bar(t[question], name, name == "workerd") for name, t in told.items()
                             if question in t})
        for question, title, note in wanted
    ]  # fmt: skip
    labels = {name: f"{name}, in memory" if not durable(t) else name for name, t in told.items()}
    return columns("2 worker processes, results stored, one run", labels, made)


def durable(told: dict[str, Record]) -> bool:
    """Whether its jobs are stored outside of its process."""
    return all(record["settings"].get("durable", True) for record in told.values())


# -- plots


def bar(record: Record, label: str = "", own: bool = True) -> Bar:
    """A record as a bar: median and range, or p50 up to p99."""
    label = label or record["case"]
    if "median" in record:
        return Bar(label, record["median"], record["min"], record["max"], own)
    middle = record["parts"].get("p50", 0.0)
    high = record["parts"].get("p99", middle)
    return Bar(label, middle, middle, high, own, f"{shown(middle)} / {shown(high)}")


def draw(folder: Path, found: dict[str, list[Record]]) -> dict[str, list[str]]:
    """Write the plots; their names by benchmark."""
    plots: dict[str, list[str]] = defaultdict(list)
    for old in folder.glob("*.svg"):
        old.unlink()
    for benchmark, records in found.items():
        if benchmark == "peers":
            (folder / PICTURE).write_text(picture(records))
            continue
        by_unit: dict[str, list[Bar]] = defaultdict(list)
        for record in records:
            by_unit[record["unit"]].append(bar(record))
        for unit, rows in by_unit.items():
            if len(rows) < 2:
                continue
            stem = f"{benchmark}-{unit}".replace("/", "-per-").replace("%", "percent").replace(" ", "-")
            (folder / f"{stem}.svg").write_text(bars(benchmark, unit, rows))
            plots[benchmark].append(f"{stem}.svg")
    return plots


def into_page(found: dict[str, list[Record]]) -> None:
    """Write the tables between their markers in the page, and the plot beside the benchmarks."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    plot = f"![Throughput, latency and memory of workerd and its peers](../../benchmarks/{PICTURE})"
    told = f"{compared(found['peers'])}\n\n{conditions(found)}\n\n{plot}\n\n{goals.table(found)}\n"
    PAGE.write_text(f"{before}{BEGIN}\n{told}\n{END}{after}")
    (ROOT / "benchmarks" / PICTURE).write_text(picture(found["peers"]))


def main(words: list[str] | None = None) -> int:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--page", action="store_true", help="also renew docs/explanation/measured.md and its plot"
    )
    options = parser.parse_args(words)
    found = read(options.folder)
    if not found or (options.page and "peers" not in found):
        print(
            f"{options.folder} has no results, or none of the peers; run `make bench` first.", file=sys.stderr
        )
        return 1
    (options.folder / "report.md").write_text(markdown(found, draw(options.folder, found)))
    print(goals.table(found))
    print(f"{options.folder / 'report.md'} is written.")
    if options.page:
        into_page(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
