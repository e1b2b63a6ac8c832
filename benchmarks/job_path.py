"""The way of one job: every file of workerd that it passes, from the client to its recorded outcome.

    python -m benchmarks.job_path [--tree DIR] [--functions]

Runs a daemon on an embedded store with a profile function in each of its processes, lets it idle, then
enqueues one job and waits for its end. What also runs on an idle node is left out. Prints the files, and the
types of the values that were passed only for this job. `--tree` traces another checkout.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

JOB_ID = "01980000-0000-7000-8000-00000000cafe"
IDLE_S = 3.0
"""Long enough for every periodic task of an idle node to have run."""

# Loaded by every process through PYTHONPATH. The first byte of the shared page is the phase that is recorded.
_SITE = """
import atexit, mmap, os, signal, sys, threading
_fd = os.open(os.environ["JOB_PATH_PAGE"], os.O_RDWR)
_page = mmap.mmap(_fd, 4096)
_seen, _path = set(), os.environ["JOB_PATH_OUT"]
_root = os.environ["JOB_PATH_ROOT"]

def _is_data(kind):
    return kind.__module__.startswith("workerd") and not kind.__module__.startswith("workerd.config") and (
        any(hasattr(kind, mark) for mark in ("__struct_fields__", "__dataclass_fields__", "_fields"))
    )

def _profile(frame, event, arg):
    if event != "call" or not _page[0]:
        return
    code = frame.f_code
    if not code.co_filename.startswith(_root):
        return
    lines = []
    for value in list(frame.f_locals.values()):
        for item in (value if isinstance(value, (list, tuple)) and len(value) < 5 else [value]):
            kind = type(item)
            if _is_data(kind):
                lines.append(("type", kind.__module__ + "." + kind.__qualname__))
    lines.append(("call", code.co_filename[len(_root):] + ":" + code.co_qualname))
    for kind, what in lines:
        key = (_page[0], os.getpid(), kind, what)
        if key not in _seen:
            _seen.add(key)
            # Opened each time: a forked child closes descriptors that it does not know.
            out = os.open(_path, os.O_WRONLY | os.O_APPEND)
            os.write(out, f"{_page[0]} {os.getpid()} {kind} {what}\\n".encode())
            os.close(out)

sys.setprofile(_profile)
threading.setprofile(_profile)
"""

_HANDLERS = "def noop():\n    return None\n"


def trace(tree: Path, folder: Path) -> dict[str, Any]:
    """Files, functions and types of one job's way in the checkout `tree`."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_SITE)
    (folder / "app").mkdir()
    (folder / "app" / "traced.py").write_text(_HANDLERS)
    page, out = folder / "page", folder / "out"
    page.write_bytes(bytes(4096))
    out.touch()
    (folder / "workerd.toml").write_text(
        f'[node]\nruntime_dir = "{folder}/run"\nstate_dir = "{folder}/state"\n'
        f'[supervisor]\nwatchdog = "60s"\n[store]\nurl = "sqlite:///{folder}/store.db"\n'
        '[gateway]\nlisten = ""\n'
        f'[handlers.noop]\ncall = "traced:noop"\npath = ["{folder}/app"]\n'
    )
    environment = os.environ | {
        "PYTHONPATH": f"{folder}/site:{tree}",
        "JOB_PATH_PAGE": str(page),
        "JOB_PATH_OUT": str(out),
        "JOB_PATH_ROOT": f"{tree}/workerd/",
    }
    command = [sys.executable, "-m", "workerd", "run", "-c", str(folder / "workerd.toml")]
    log = (folder / "log").open("wb")
    with mmap.mmap(os.open(page, os.O_RDWR), 4096) as phase:
        daemon = subprocess.Popen(command, env=environment, cwd=tree, stdout=log, stderr=log)
        try:
            _until_up(folder, tree, environment)
            phase[0] = 1
            time.sleep(IDLE_S)
            phase[0] = 0
            client = (
                "import mmap, os, time, workerd\n"
                f'client = workerd.Client("{folder}/workerd.toml")\n'
                'client.enqueue("noop"); time.sleep(1)\n'  # connections and caches are there afterwards
                'page = mmap.mmap(os.open(os.environ["JOB_PATH_PAGE"], os.O_RDWR), 4096)\n'
                "page[0] = 2\n"
                f'job = client.enqueue("noop", id="{JOB_ID}").id\n'
                "page[0] = 3\n"
                "deadline = time.monotonic() + 20\n"
                "while not client.get(job).complete and time.monotonic() < deadline: time.sleep(0.05)\n"
                "time.sleep(0.3)\npage[0] = 0\n"
            )
            subprocess.run([sys.executable, "-c", client], env=environment, cwd=tree, check=True)
        finally:
            phase[0] = 0
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)
    return _gathered(out.read_text(), daemon.pid)


def _until_up(folder: Path, tree: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "workerd", "status", "--json", "-c", str(folder / "workerd.toml")]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=False)
        try:
            if json.loads(done.stdout)["state"] == "ready":
                return
        except (ValueError, KeyError):
            pass
        time.sleep(0.2)
    sys.exit(f"the daemon did not become ready:\n{(folder / 'log').read_text()[-4000:]}")


def _gathered(text: str, supervisor: int) -> dict[str, Any]:
    idle: set[tuple[str, str]] = set()
    calls: dict[str, set[str]] = defaultdict(set)
    types: set[str] = set()
    rows = [line.split(" ", 3) for line in text.splitlines()]
    for phase, pid, _, what in rows:
        if phase == "1":
            idle.add((pid, what))
    client = {pid for phase, pid, _, _ in rows if phase == "2"} - {
        pid for phase, pid, _, _ in rows if phase == "1"
    }
    for phase, pid, kind, what in rows:
        # The client's look-ups while it waits are not the job's way.
        if phase == "1" or (phase == "3" and pid in client) or (pid, what) in idle:
            continue
        if kind == "type":
            types.add(what)
        else:
            calls[what.partition(":")[0]].add(what.partition(":")[2])
    return {"files": {file: sorted(names) for file, names in sorted(calls.items())}, "types": sorted(types)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--functions", action="store_true", help="print the functions too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="workerd-path-") as folder:
        found = trace(arguments.tree.resolve(), Path(folder))
    for file, functions in found["files"].items():
        print(f"{len(functions):4}  {file}" + (f"  {', '.join(functions)}" if arguments.functions else ""))
    count = sum(map(len, found["files"].values()))
    print(f"{len(found['files'])} files, {count} functions, {len(found['types'])} types:")
    print("\n".join(f"      {name}" for name in found["types"]))


if __name__ == "__main__":
    main()
