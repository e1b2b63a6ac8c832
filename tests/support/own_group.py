"""A control group of the test's own, as a container is put in one; of either version."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from workerd import host

FILES = {
    ("memory", 1): "memory.limit_in_bytes",
    ("memory", 2): "memory.max",
    ("pids", 1): "pids.max",
    ("pids", 2): "pids.max",
}


@contextlib.contextmanager
def own_group(controller: str, **files: str) -> Iterator[Path]:
    """A group below this process's own; `files`: what is written, with `_` for the point of their names."""
    found = host._find(controller)
    if found is None or os.getuid() != 0:
        pytest.skip(f"this machine lets no test make a control group with {controller}")
    folder = next(found.folders()) / f"workerd-test-{os.getpid()}"
    try:
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("_", ".", 1)).write_text(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"this machine lets no test limit {controller}: {error}")
    try:
        yield folder
    finally:
        eventually(lambda: not (folder / "cgroup.procs").read_text().split())
        folder.rmdir()


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """This process in the group, and the children that it forks meanwhile."""
    enter(folder)
    try:
        yield
    finally:
        enter(folder.parent)


def limit_file(controller: str) -> str:
    """The name of the file with the group's limit, as `own_group` takes it."""
    found = host._find(controller)
    version = found.version if found is not None else 2
    return FILES[controller, version].replace(".", "_", 1)


def enter(folder: Path) -> None:
    """Move this process into the group."""
    (folder / "cgroup.procs").write_text(str(os.getpid()))
