"""Makes a report of what was measured: a Markdown table, and a plot for each question and unit.

python -m benchmarks.report benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.harness import shown
from benchmarks.plot import Bar, bars

Record = dict[str, Any]
ORDER = (
    "throughput", "floor", "enqueue", "latency", "deadline", "recovery", "depth", "footprint", "nodes",
    "peers",
)  # fmt: skip
COMPARED = {"throughput": "throughput", "latency": "latency", "PSS": "footprint"}
"""What the peers' cases are called, and where workerd's own are that belong beside them."""
OWN = {
    "throughput": ("mariadb, 2 workers", "sqlite, 2 workers"),
    "latency": ("client on the same node",),
    "PSS": ("PSS, 2 workers, gateway off",),
}


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
    """The table's cell: median with its range, or the parts of a distribution."""
    if "median" in record:
        ends = f" ({shown(record['min'])} … {shown(record['max'])})" if len(record["values"]) > 1 else ""
        return f"{shown(record['median'])} {record['unit']}{ends}"
    parts = {k: v for k, v in record.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return ", ".join(f"{name} {shown(value)}" for name, value in parts.items()) + f" {record['unit']}"


def markdown(found: dict[str, list[Record]], plots: dict[str, list[str]]) -> str:
    """The whole report."""
    some = next(iter(found.values()))[-1]
    machine, versions = some["machine"], some["versions"]
    lines = [
        "# Benchmarks",
        "",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB,"
        f" Linux {machine['kernel']}; load before: {machine['load_before']}; at {some['at']}.",
        "",
        ", ".join(f"{name} {value}" for name, value in versions.items()) + ".",
    ]
    for name, records in found.items():
        lines += ["", f"## {name}", "", "| case | measured: median (min … max) | goal |", "|---|---|---|"]
        lines += [f"| {r['case']} | {figures(r)} | {r.get('goal', '')} |" for r in records]
        lines += [f"\n![{plot}]({plot})" for plot in plots.get(name, [])]
        lines += ["", f"Settings: `{json.dumps(records[0]['settings'], default=str)[:400]}`"]
    return "\n".join(lines) + "\n"


def bar(record: Record, label: str = "", own: bool = True) -> Bar:
    """A record as a bar: median and range, or p50 up to p99."""
    label = label or record["case"]
    if "median" in record:
        return Bar(label, record["median"], record["min"], record["max"], own)
    middle = record.get("p50", record.get("stopped", 0.0))
    return Bar(label, middle, middle, record.get("p99", middle), own)


def draw(folder: Path, found: dict[str, list[Record]]) -> dict[str, list[str]]:
    """Write the plots; their names by benchmark."""
    plots: dict[str, list[str]] = defaultdict(list)

    def keep(benchmark: str, stem: str, text: str) -> None:
        name = f"{stem}.svg".replace("/", "-per-").replace("%", "percent").replace(" ", "-")
        (folder / name).write_text(text)
        plots[benchmark].append(name)

    for benchmark, records in found.items():
        if benchmark == "peers":
            continue
        by_unit: dict[str, list[Bar]] = defaultdict(list)
        for record in records:
            by_unit[record["unit"]].append(bar(record))
        for unit, rows in by_unit.items():
            keep(benchmark, f"{benchmark}-{unit}", bars(benchmark, unit, rows))
    for question, home in COMPARED.items():
        rows = [bar(r, f"workerd: {r['case']}") for r in found.get(home, []) if r["case"] in OWN[question]]
        theirs = [r for r in found.get("peers", []) if r["case"].endswith(f": {question}")]
        rows += [bar(r, r["case"].partition(":")[0], own=False) for r in theirs]
        if theirs:
            title = f"workerd and its peers: {question}"
            keep("peers", f"peers-{question}", bars(title, theirs[0]["unit"], rows))
    return plots


def main(words: list[str] | None = None) -> int:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(words).folder
    found = read(folder)
    if not found:
        print(f"There are no results in {folder}; run `make bench` first.", file=sys.stderr)
        return 1
    (folder / "report.md").write_text(markdown(found, draw(folder, found)))
    print(f"{folder / 'report.md'} is written.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
