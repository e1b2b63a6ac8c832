"""One daemon on each engine for all tests of the command line, and commands run in this process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.servers import DatabaseServer
from workerd.cli.main import main
from workerd.config.model import StoreConfig
from workerd.store.engines import open_store

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
max_attempts = 1

[handlers.add]
call = "tests.support.handlers:add"

[handlers.echo]
call = "tests.support.handlers:echo"

[handlers.held]
call = "tests.support.handlers:echo"

[handlers.behave]
call = "tests.support.handlers:behave"

[handlers.waits]
call = "tests.support.handlers:wait_for_file"
grace = "200ms"

[handlers.few]
call = "tests.support.handlers:noop"
max_waiting = 2

[handlers.nightly]
call = "tests.support.handlers:noop"
cron = "0 3 * * *"
timezone = "Europe/Berlin"

[workflows.two_good]
jobs = [
  {{ name = "first", handler = "echo" }},
  {{ name = "echo", handler = "echo", needs = ["first"] }},
  {{ name = "add", handler = "add", vars = {{ a = 1, b = 2 }} }},
]

[workflows.two]
steps = [
  {{ name = "first", jobs = ["behave"] }},
  {{ name = "second", jobs = ["echo"] }},
]
"""


@dataclass(frozen=True)
class CommandResult:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


class CommandLine:
    """Runs commands with one configuration."""

    def __init__(self, node: Daemon) -> None:
        self.node = node
        self.url = node.url

    def __call__(self, *words: str, check: bool = True) -> CommandResult:
        """Run a command in this process, which takes milliseconds; its output goes to no terminal."""
        out, err = io.BytesIO(), io.BytesIO()
        with (
            redirect_stdout(io.TextIOWrapper(out, "utf-8", write_through=True)),
            redirect_stderr(io.TextIOWrapper(err, "utf-8", write_through=True)),
        ):
            status = main([*words, "-c", str(self.node.path)])
            sys.stdout.flush()
            result = CommandResult(status, out.getvalue().decode(), err.getvalue().decode())
        assert not check or status == 0, result
        return result

    def json(self, *words: str) -> Any:
        """The document that a command prints with --json."""
        return json.loads(self(*words, "--json").stdout)

    def id(self, *words: str) -> str:
        """The id that a command prints."""
        return self(*words).stdout.strip()

    def status(self, job_id: str) -> str:
        """The status of a job."""
        return str(self.json("job", "show", job_id)["status"])


@pytest.fixture(scope="package", params=["mysql", "sqlite"])
def cli(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Commands on a running daemon, which the tests share: each uses handlers or jobs of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    server: DatabaseServer | None = None
    url = f"sqlite:///{folder}/store.db"
    if request.param == "mysql":
        server = request.getfixturevalue("mysql_server")
        assert server is not None
        url = server.url(server.new_database())
    store = open_store(StoreConfig(url=url))
    store.migrate()
    store.close()
    with Daemon(folder / "node", url, CONFIG) as daemon:
        yield CommandLine(daemon)
    if server is not None:
        server.drop_database(url.rpartition("/")[2])
