"""The demo's handlers, one for each way a job can end, and their input."""

from __future__ import annotations

import ast
import os
import signal
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workerd.handler import Context, Failure, Retry


def parse_source(file: str) -> dict[str, int]:
    """Parse a Python source file and count what is in it; an invalid file raises an error."""
    source = Path(file).read_bytes()
    nodes = Counter(type(node).__name__ for node in ast.walk(ast.parse(source, file)))
    return {
        "bytes": len(source),
        "lines": source.count(b"\n"),
        "nodes": nodes.total(),
        "functions": nodes["FunctionDef"] + nodes["AsyncFunctionDef"] + nodes["Lambda"],
        "classes": nodes["ClassDef"],
        "imports": nodes["Import"] + nodes["ImportFrom"],
    }


def comes_round(ctx: Context) -> str:
    """Ask for two retries, then succeed."""
    if ctx.attempt < 3:
        raise Retry("the server is not ready yet", after=0.2)
    return f"done at attempt {ctx.attempt}"


def breaks(order: int) -> None:
    """Raise an error that the policy retries until the attempts are used up."""
    raise ConnectionError(f"order {order}: connection refused")


def gives_up(order: int) -> None:
    """Fail permanently: a retry makes no sense."""
    raise Failure(f"order {order} was cancelled by the customer")


def shrugs(path: str) -> int:
    """Raise an error that its configuration lists in `ignore`."""
    return Path(path).stat().st_size


class Rests:
    """Nothing to do: `active` is false before each run."""

    def active(self) -> bool:
        return False

    def ensure(self, ctx: Context) -> None:
        """Never called while `active` is false."""


def sleeps(ctx: Context) -> None:
    """Sleep past the soft deadline, which interrupts it."""
    ctx.progress(0.5, "half way")
    time.sleep(60)


def computes() -> int:
    """Compute in C without releasing the GIL: only SIGKILL ends it."""
    return sum(range(10**13))


def crashes() -> None:
    """Die of a signal, as a broken extension module does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def exits() -> None:
    """End the whole process without an error."""
    os._exit(3)


def waits(ctx: Context) -> None:
    """Wait until it is cancelled."""
    while not ctx.stopping:
        time.sleep(0.02)


def grows() -> int:
    """Take memory until it is killed for it."""
    blocks = []
    while True:
        blocks.append(bytearray(2 << 20))
        time.sleep(0.02)


def rejected() -> str:
    """Return a result that a trigger of the demo's database rejects."""
    return "never stored"


def falls(ctx: Context) -> str:
    """Lose the pool around it, which the demo kills; then succeed."""
    while ctx.attempt == 1:
        time.sleep(1)
    return f"done at attempt {ctx.attempt}"


def outlasts(ctx: Context) -> str:
    """Run longer than a shutdown waits; then succeed under the next daemon."""
    while ctx.attempt == 1:
        time.sleep(1)
    return f"done at attempt {ctx.attempt}"


REJECTION = """CREATE TRIGGER demo_rejection BEFORE UPDATE ON workerd_jobs
    WHEN NEW.handler = 'rejected' AND NEW.status = 'completed'
    BEGIN SELECT RAISE(ABORT, 'a trigger of the database rejects this row'); END"""
"""A rule of the database's own, as yours may have."""

BROKEN = {
    "unclosed.py": b"def f(:\n    return (1,\n",
    "indented.py": b"if True:\n        x = 1\n    y = 2\n",
    "python2.py": b"print 'hello, 2008'\n",
    "not_utf8.py": b"name = 'caf\xe9'\n",
    "no_such_codec.py": b"# -*- coding: klingon-8 -*-\nx = 1\n",
    "nul.py": b"x = 1\x00\n",
    "deep.py": b"x = " + b"(" * 2000 + b")" * 2000 + b"\n",
    "binary.py": bytes(range(256)) * 4,
}
"""Files that the parser rejects, each for another reason."""


@dataclass(frozen=True)
class DemoTask:
    """Jobs of one handler: their vars, and the handler's table in the configuration."""

    handler: str
    note: str
    vars: list[dict[str, Any]]
    table: dict[str, str] = field(default_factory=dict)


def standard_library() -> list[str]:
    """Every Python source file of the interpreter's standard library, its tests where installed."""
    paths = sysconfig.get_paths()
    files: set[str] = set()
    for root in {paths["stdlib"], paths["platstdlib"]}:
        files.update(_sources(Path(root)))
    return sorted(files)


def _sources(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        # Installed packages are not part of the standard library.
        folders[:] = [name for name in folders if name not in ("site-packages", "dist-packages")]
        for name in files:
            path = Path(folder, name)
            if name.endswith(".py") and path.is_file():
                yield str(path.resolve())


def write_broken(folder: Path) -> list[str]:
    """Write the broken files into `folder`; returns their paths."""
    folder.mkdir()
    for name, content in BROKEN.items():
        (folder / name).write_bytes(content)
    return [str(folder / name) for name in BROKEN]


def demo_tasks(folder: Path) -> list[DemoTask]:
    """All jobs that the demo enqueues."""
    files = standard_library() + write_broken(folder / "broken")
    return [
        DemoTask(
            "parse_source",
            "one file of the standard library each",
            [{"file": file} for file in files],
            # A file that cannot be parsed today cannot be parsed in a second either.
            {"fail_on": '["SyntaxError", "ValueError", "RecursionError", "MemoryError"]'},
        ),
        DemoTask("comes_round", "Retry, then success", [{}] * 4),
        DemoTask(
            "breaks",
            "an error, until its attempts are used up",
            [{"order": n} for n in range(3)],
            {"max_attempts": "3", "backoff": '{ first = "100ms" }'},
        ),
        DemoTask("gives_up", "Failure", [{"order": n} for n in range(3)]),
        DemoTask("misfits", "vars that do not fit its arguments", [{"order": "seven"}, {}, {"ordr": 7}]),
        DemoTask(
            "shrugs",
            "an error that its policy ignores",
            [{"path": "/nowhere"}] * 3,
            {"ignore": '["OSError"]'},
        ),
        DemoTask("rests", "active() is false", [{}] * 2),
        DemoTask("sleeps", "soft deadline", [{}] * 2, {"deadline": '"400ms"', "max_attempts": "1"}),
        DemoTask(
            "computes",
            "hard deadline, in C that holds the GIL",
            [{}] * 2,
            {"deadline": '"300ms"', "grace": '"200ms"', "max_attempts": "1"},
        ),
        DemoTask("crashes", "killed by a signal", [{}] * 2, {"max_crashes": "2"}),
        DemoTask("exits", "exit status 3", [{}] * 2, {"max_crashes": "1"}),
        DemoTask("waits", "cancelled while it runs", [{}] * 2, {"grace": '"500ms"'}),
        DemoTask("tarries", "it has not begun in time", [{}], {"expires": '"0s"'}),
        DemoTask("grows", "over its memory limit", [{}], {"memory_max": '"96MiB"', "max_crashes": "1"}),
        DemoTask("rejected", "the store refuses its outcome", [{}]),
        DemoTask("falls", "its pool is killed, then success", [{}]),
        DemoTask("outlasts", "a shutdown interrupts it, then success", [{}]),
    ]


CALLS = {"misfits": "gives_up", "rests": "Rests", "tarries": "comes_round"}
"""Handlers whose function or class in this module has another name."""
