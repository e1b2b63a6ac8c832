"""Runs the benchmarks one after the other and makes the report.

python -m benchmarks.run            # what the README shows, about ten minutes
python -m benchmarks.run --all      # everything, hours
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

QUICK: tuple[tuple[str, ...], ...] = (
    ("throughput", "--quick"),
    ("floor", "--quick"),
    ("latency", "--quick"),
    ("deadline", "--quick"),
    ("enqueue", "--quick"),
    ("footprint", "--quick"),
    ("recovery", "--quick"),
    ("depth", "--quick"),
    ("nodes", "--quick"),
    ("peers.run", "--quick"),
)
ALL: tuple[tuple[str, ...], ...] = (
    ("throughput", "--all"),
    ("floor",),
    ("latency",),
    ("latency", "--store", "sqlite"),
    ("deadline",),
    ("enqueue",),
    ("footprint", "--all"),
    ("recovery",),
    ("nodes", "--galera"),
    ("peers.run",),
    ("depth", "--all"),
)
LIMIT = 720.0
"""Seconds that the quick run may take; what does not fit is left out, and said to be."""


def main() -> int:
    """Run them; exit status 1 if one of them failed."""
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
    for name, *words in ALL if options.all else QUICK:
        left = None if options.all else LIMIT - (time.monotonic() - began)
        print(f"== {name} {' '.join(words)}", flush=True)
        if left is not None and left < 10:
            failed.append(f"{name} (no time was left)")
            continue
        command = [sys.executable, "-m", f"benchmarks.{name}", *words, "--results", str(options.results)]
        try:
            if subprocess.run(command, timeout=left, check=False).returncode:
                failed.append(name)
        except subprocess.TimeoutExpired:
            failed.append(f"{name} (cut off: {LIMIT:.0f} s are over)")
    subprocess.run([sys.executable, "-m", "benchmarks.report", str(options.results)], check=False)
    for name in failed:
        print(f"Not complete: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
