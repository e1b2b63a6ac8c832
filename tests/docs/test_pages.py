"""Each page as a reader follows it: every block in order; what the page shows is what is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import NOT_RUN, ROOT, RUN_BY, blocks, pages, runnable_blocks
from workerd.store.base import Store

TUTORIALS = sorted((ROOT / "docs" / "tutorial").glob("[0-9]*.md"))
OTHERS = [
    page
    for page in pages()
    if page not in TUTORIALS and any(block.runnable and block.runs for block in blocks(page))
]


def read(page: Path, folder: Path, store_url: str = "") -> None:
    """Follow the page in `folder`; with `store_url` beside a daemon on that store."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WORKERD_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.reading", str(page.relative_to(ROOT))],
        cwd=folder,
        env=environment | {"STORE_URL": store_url},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=110,
        check=False,
    )
    logs = [log.read_text() for log in (folder / "log", folder / "state" / "workerd.log") if log.exists()]
    assert done.returncode == 0, "\n".join((done.stdout, done.stderr, *logs))


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=names)
def test_a_tutorial_runs_in_an_empty_folder(page: Path, tmp_path: Path) -> None:
    """It starts and stops its own daemon."""
    read(page, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS, ids=names)
def test_a_page_runs_beside_a_daemon(page: Path, tmp_path: Path, mysql_url: str, mysql: Store) -> None:
    """Which has the configuration of the page, and what `tests/docs/readers` lays beside it."""
    read(page, tmp_path, mysql_url)


def test_each_block_runs_or_says_why_not() -> None:
    """Also which test runs it instead."""
    for block in runnable_blocks():
        assert block.runs or block.mark.removeprefix(NOT_RUN).strip(), block.name
        if block.mark.startswith(RUN_BY):
            runner = ROOT / block.mark.removeprefix(RUN_BY)
            assert block.page.name in runner.read_text() or block.page.stem in runner.read_text(), block.name
