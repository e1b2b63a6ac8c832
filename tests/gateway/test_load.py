"""The gateway under steady load with open long polls: every request is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_http.py"


@pytest.mark.slow
@pytest.mark.parametrize("engine", [[], ["--mysql"]], ids=["sqlite", "mysql"])
def test_no_error_under_load(engine: list[str]) -> None:
    """500 enqueues a second for 20 s with 50 long polls open: no error; how long it took is printed."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--json", *engine],
        capture_output=True, text=True, timeout=220, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    print(json.dumps(result, indent=1))
    assert result["errors"] == 0, result
    assert result["enqueued"] == 10_000
    assert not result["fault"]
