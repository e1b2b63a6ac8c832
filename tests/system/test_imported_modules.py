"""Which libraries each process of a daemon holds: a library in the wrong one costs memory in every node."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.imported_modules import MODULES_FOLDER
from tests.support.servers import free_port
from workerd.client import Client

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
[handlers.modules]
call = "tests.support.imported_modules:modules_of_worker"
"""

SHARED = {"cronsim", "msgspec", "setproctitle", "structlog", "typing_extensions", "uuid_utils"}
GATEWAY = {
    "anyio", "click", "cython_runtime", "httptools", "idna", "sniffio", "starlette", "uvicorn",
}  # fmt: skip
LIBRARIES = {
    "ingester": SHARED | {"pymysql"},
    "dispatcher": SHARED | {"pymysql"},
    "gateway": SHARED | {"pymysql"} | GATEWAY,
    "pool modules": SHARED,
    "worker": SHARED,
}
"""The libraries that a process may hold, without those of Python itself."""

GATEWAY_ALONE = {
    "asyncio", "bz2", "concurrent", "email", "html", "html.entities", "http", "importlib.resources",
    "logging.config", "lzma", "multiprocessing", "queue", "shutil", "ssl", "subprocess", "tempfile",
}  # fmt: skip
"""Large parts of Python that only the gateway may hold, where connections to the store are not encrypted."""

NOWHERE = {
    "difflib", "importlib.abc", "tomllib", "unicodedata", "urllib.request", "xml", "zipfile",
}  # fmt: skip
"""Others that no process may hold as long as it does not need them."""


@pytest.fixture
def modules(tmp_path: Path, mysql_url: str) -> Iterator[dict[str, set[str]]]:
    """The modules of each process, once a job has run."""
    folder = tmp_path / "modules"
    folder.mkdir()
    daemon = Daemon(
        tmp_path / "node", mysql_url, CONFIG,
        gateway=f"127.0.0.1:{free_port()}",
        entry=("tests.support.imported_modules",),
        env={MODULES_FOLDER: str(folder)},
    )  # fmt: skip
    daemon.cli("migrate")
    with daemon:
        with Client(daemon.path) as client:
            client.enqueue("modules")

        def all_written() -> bool:
            daemon.status()
            return LIBRARIES.keys() <= {file.name for file in folder.iterdir()}

        eventually(all_written, state=daemon.tail)
        yield {name: set((folder / name).read_text().split()) for name in LIBRARIES}


def test_every_process_holds_only_the_libraries_that_it_needs(modules: dict[str, set[str]]) -> None:
    """Nothing is imported in the supervisor that only one role needs."""
    for name, held in modules.items():
        tops = {module.partition(".")[0] for module in held} - sys.stdlib_module_names
        foreign = {top for top in tops if not top.startswith("_")} - {"tests", "workerd"}
        assert foreign <= LIBRARIES[name], (name, foreign - LIBRARIES[name])


def test_large_parts_of_python_are_held_by_the_gateway_alone(modules: dict[str, set[str]]) -> None:
    """Each takes 0.1 to 2 MiB."""
    for name in LIBRARIES.keys() - {"gateway"}:
        held = modules[name] & GATEWAY_ALONE
        assert not held, (name, held)
