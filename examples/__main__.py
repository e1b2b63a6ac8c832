"""Run an example: a daemon for its `workerd.toml`, in a temporary folder, and then its `main`.

python -m examples                  # what there is
python -m examples php_command      # one
python -m examples --all            # all that this host can run
python -m examples --store mysql://user@host/database order_workflow
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workerd.runtime.control import ask

FOLDER = Path(__file__).parent
START_TIMEOUT_S = 60.0
PROGRAMS = {"main.php": "php", "main.sh": "sh", "main.py": sys.executable}
"""What runs an example, by the name of its file."""


def examples() -> dict[str, str]:
    """Their names and first lines."""
    folders = sorted(path.parent for path in FOLDER.glob("*/workerd.toml"))
    return {
        folder.name: (folder / "README.md").read_text().splitlines()[0].lstrip("# ") for folder in folders
    }


def missing(name: str) -> str:
    """The program that this example needs and the host does not have; empty if it has all."""
    needs = FOLDER / name / "needs"
    programs = needs.read_text().split() if needs.exists() else []
    return next((program for program in programs if shutil.which(program) is None), "")


def run(name: str, store: str = "") -> int:
    """Run one with a daemon of its own; returns the exit status of its program."""
    folder = FOLDER / name
    with tempfile.TemporaryDirectory(prefix="workerd-example-") as temporary:
        env = {
            **os.environ,
            "PYTHONPATH": str(FOLDER.parent),
            "WORKERD_CONFIG": str(folder / "workerd.toml"),
            "WORKERD_NODE__RUNTIME_DIR": f"{temporary}/run",
            "WORKERD_NODE__STATE_DIR": f"{temporary}/state",
            "WORKERD_STORE__URL": store or f"sqlite:///{temporary}/store.db",
            "EXAMPLE_FOLDER": temporary,
        }
        workerd = [sys.executable, "-m", "workerd"]
        if store:
            subprocess.run([*workerd, "migrate"], env=env, cwd=folder, check=True)
        log = Path(temporary, "log")
        with log.open("wb") as output:
            daemon = subprocess.Popen([*workerd, "run"], env=env, cwd=folder, stdout=output, stderr=output)
        try:
            _wait_until_ready(daemon, Path(temporary, "run", "private", "supervisor"), log)
            file = next(file for file in PROGRAMS if (folder / file).exists())
            status = subprocess.run([PROGRAMS[file], file], env=env, cwd=folder, check=False).returncode
        finally:
            daemon.terminate()
            daemon.wait()
        if status:
            print(log.read_text(errors="replace"), file=sys.stderr)
        return status


def _wait_until_ready(daemon: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and daemon.poll() is None:
        try:
            if ask(socket, {"ask": "status"}).get("ready"):
                return
        except OSError:  # not up yet
            pass
        time.sleep(0.1)
    raise SystemExit(f"the daemon did not start:\n{log.read_text(errors='replace')}")


def main() -> int:
    """List them or run some; exit status 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m examples", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="every example")
    parser.add_argument("--store", default="", metavar="URL", help="default: an SQLite file of its own")
    options = parser.parse_args()
    known = examples()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no example {', '.join(unknown)}; there are {', '.join(known)}")
    names = list(known) if options.all else options.names
    for name, title in known.items() if not names else ():
        print(f"{name:18} {title}")
    failed = []
    for name in names:
        print(f"--- {name}: {known[name]}", flush=True)
        if program := missing(name):
            print(f"skipped: this host has no {program}")
        elif run(name, options.store):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
