"""Generations of a pool: with `reload.overlap` new code takes over at once, and no run is interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

CODE = """
import time
from pathlib import Path
from workerd import handler

ANSWER = {answer}


def answer():
    return ANSWER


@handler(resumable=True)
def waits(ctx, path):
    while not Path(path).exists():
        time.sleep(0.01)
    return [ANSWER, ctx.stopping]
"""


def config(folder: Path, overlap: str, more: str = "") -> str:
    return f"""
[shutdown]
drain = "20s"
[reload]
overlap = "{overlap}"
[defaults]
path = ["{ROOT}", "{folder}"]
[handlers]
answer = {{ call = "generation:answer", pool = "work" }}
waits = {{ call = "generation:waits", pool = "work" }}
[pools.work]
workers = 2
{more}
"""


class Generations:
    """A daemon whose handlers' code the test rewrites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = Rows(f"sqlite:///{folder}/store.db")
        self.write_code(1)
        self.daemon = Daemon(folder / "node", f"sqlite:///{folder}/store.db", config(folder, "1h"))

    def write_code(self, answer: int) -> None:
        fresh = self.folder / "generation.new"
        fresh.write_text(CODE.replace("{answer}", str(answer)))
        os.utime(fresh, ns=(answer * 10**9, answer * 10**9))
        fresh.replace(self.folder / "generation.py")

    def begin(self, name: str) -> bytes:
        """Start a run that waits for the file `name`."""
        job = self.rows.insert("waits", {"path": str(self.folder / name)})
        eventually(lambda: self.daemon.runs(job), state=self.daemon.tail)
        return job

    def end(self, name: str, *jobs: bytes) -> list[Any]:
        (self.folder / name).touch()
        eventually(lambda: self.rows.ended(*jobs), state=self.daemon.tail)
        return [[(row["reason"], row["payload"]) for row in self.rows.attempts(job)] for job in jobs]

    def reload(self, answer: int) -> None:
        self.write_code(answer)
        self.daemon.cli("reload")

    def answer(self) -> bytes:
        job = self.rows.insert("answer")
        eventually(lambda: self.rows.ended(job), state=self.daemon.tail)
        return bytes(self.rows.last(job)["payload"])

    def pools(self) -> dict[str, str]:
        return {name: pool["state"] for name, pool in self.daemon.status()["pools"].items()}


@pytest.fixture
def generations(tmp_path: Path) -> Iterator[Generations]:
    harness = Generations(tmp_path)
    with harness.daemon:
        yield harness
    assert_settled(harness.rows)


@pytest.mark.slow
def test_new_code_takes_over_and_no_run_is_interrupted(generations: Generations) -> None:
    """Not even one that could resume; each generation is shown until its last run has ended."""
    first = generations.begin("one")
    generations.reload(2)
    assert generations.answer() == b"2"
    second = generations.begin("two")
    generations.reload(3)
    assert generations.answer() == b"3"
    drained = {"work\N{MIDDLE DOT}1": "draining", "work\N{MIDDLE DOT}2": "draining"}
    assert generations.pools() == {"work": "up"} | drained
    assert generations.daemon.ready()
    assert "work\N{MIDDLE DOT}1" in generations.daemon.cli("status").stdout
    assert generations.end("one", first) == [[("ok", b"[1,false]")]]
    eventually(lambda: len(generations.pools()) == 2, state=generations.daemon.tail)
    assert generations.end("two", second) == [[("ok", b"[2,false]")]]
    eventually(lambda: generations.pools() == {"work": "up"}, state=generations.daemon.tail)
    assert generations.daemon.stop() == 0


def test_the_end_of_the_overlap_interrupts_what_still_runs(generations: Generations) -> None:
    """It goes on in the new processes, without using an attempt."""
    generations.daemon.write(config(generations.folder, "1s"))
    generations.daemon.cli("reload")
    job = generations.begin("one")
    generations.reload(2)
    eventually(lambda: len(generations.rows.attempts(job)) == 2, state=generations.daemon.tail)
    eventually(lambda: generations.daemon.runs(job), state=generations.daemon.tail)
    assert generations.end("one", job) == [[("interrupted", None), ("ok", b"[2,false]")]]


@pytest.mark.slow
def test_a_former_generation_may_be_killed_cancelled_and_drained(generations: Generations) -> None:
    """It is not started again, its claims are settled as those of any pool, and the node stops with it."""
    killed = generations.begin("one")
    generations.reload(2)
    eventually(lambda: "work\N{MIDDLE DOT}1" in generations.pools())
    os.kill(generations.daemon.status()["pools"]["work\N{MIDDLE DOT}1"]["pid"], signal.SIGKILL)
    eventually(lambda: generations.pools() == {"work": "up"}, state=generations.daemon.tail)
    eventually(lambda: generations.daemon.runs(killed), state=generations.daemon.tail)
    cancelled = generations.begin("two")
    generations.reload(3)
    generations.daemon.cli("job", "cancel", cancelled.hex())
    assert generations.end("one", killed) == [[("lost", None), ("ok", b"[2,false]")]]
    eventually(lambda: generations.rows.last(cancelled)["reason"] == "cancelled")
    last = generations.begin("three")
    generations.reload(4)
    assert generations.daemon.stop() == 0
    assert [row["reason"] for row in generations.rows.attempts(last)] == ["interrupted", None]


@pytest.mark.slow
def test_a_pool_that_is_removed_ends_its_runs(generations: Generations) -> None:
    """A reload does not wait for them; code that does not load leaves the former processes to their runs."""
    job = generations.begin("one")
    (generations.folder / "generation.py").write_text("this is no Python\n")
    assert generations.daemon.cli("reload", check=False).returncode == 1
    assert generations.pools()["work\N{MIDDLE DOT}1"] == "draining"
    text = config(generations.folder, "1h")
    other = '[handlers.other]\ncall = "tests.support.handlers:noop"\n'
    generations.daemon.write(text[: text.index("[handlers]")] + other)
    generations.daemon.cli("reload")
    assert "work" not in generations.pools()
    assert generations.end("one", job) == [[("ok", b"[1,false]")]]
    eventually(lambda: generations.pools() == {"other": "up"}, state=generations.daemon.tail)
