"""Run the benchmarks one after the other and write the report.

python -m benchmarks.run            # what docs/explanation/measured.md shows, about ten minutes
python -m benchmarks.run --all      # everything, hours
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

QUICK: tuple[tuple[str, ...], ...] = (
    # Pebble is the last of them: it runs right before the throughput that is compared with it.
    ("peers.run", "--quick"),
    ("throughput", "--quick"),
    ("floor", "--quick"),
    ("latency", "--quick"),
    ("deadline", "--quick"),
    ("enqueue", "--quick"),
    ("footprint", "--quick"),
    ("recovery", "--quick"),
    ("depth", "--quick"),
    ("nodes", "--quick"),
)
ALL: tuple[tuple[str, ...], ...] = (
    ("peers.run",),
    ("throughput", "--all"),
    ("floor",),
    ("latency",),
    ("latency", "--store", "sqlite"),
    ("deadline",),
    ("enqueue",),
    ("enqueue", "--store", "sqlite"),
    ("commands",),
    ("traces",),
    ("footprint", "--all"),
    ("recovery",),
    ("nodes", "--galera"),
    ("bench_requests",),
    ("graphs",),
    ("depth", "--all"),
)
LIMIT, REPORT = 720.0, 10.0
"""Time limit of the quick run in seconds, and the share for the report; the rest is cut and listed."""


def main() -> int:
    """Run them; exit status 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="everything")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    for old in options.results.glob("*.jsonl"):
        old.unlink()
    began, failed = time.monotonic(), []
    plan = ALL if options.all else QUICK
    for number, (name, *words) in enumerate(plan, 1):
        spent = time.monotonic() - began
        left = None if options.all else LIMIT - REPORT - spent
        print(f"== {number} of {len(plan)}, {spent:.0f} s: {name} {' '.join(words)}", flush=True)
        wrong = one(name, words, options.results, left)
        if wrong:
            failed.append(f"{name}: {wrong}")
    print(f"== {time.monotonic() - began:.0f} s, the report", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.report", str(options.results)], check=False)
    for line in failed:
        print(f"Not complete: {line}", file=sys.stderr)
    return 1 if failed else 0


def one(name: str, words: list[str], results: Path, left: float | None) -> str:
    """Run one benchmark for at most `left` seconds; returns the error, or ""."""
    if left is not None and left < 10:
        return "no time was left"
    command = [sys.executable, "-m", f"benchmarks.{name}", *words, "--results", str(results)]
    process = subprocess.Popen(command)
    try:
        status = process.wait(left)
        return f"exit status {status}" if status else ""
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it stops what it started
        return f"cut off, {LIMIT:.0f} s are over"
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(REPORT)
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
