"""The tutorials, each as a newcomer follows it: in an empty folder, every command in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks
from tests.support.servers import free_port

TUTORIALS = sorted((ROOT / "docs" / "tutorial").glob("[0-9]*.md"))


def script(page: Path) -> str:
    """The page as one shell script: files are written, commands are run, output is left out."""
    lines = ["set -eu", "trap 'workerd stop >/dev/null 2>&1 || true' EXIT"]
    for block in blocks(page):
        if not block.runs or block.language == "output":
            continue
        if block.file:
            lines.append(f"cat > {block.file} <<'END-OF-FILE'\n{block.text}END-OF-FILE")
        elif block.language == "sh":
            lines.append(_checked(block) if block.exit_status else block.text)
    return "\n".join(lines)


def _checked(block: Block) -> str:
    return f"status=0\n{block.text.strip()} || status=$?\ntest $status -eq {block.exit_status}"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_its_first_command_to_its_last(page: Path, tmp_path: Path) -> None:
    """And prints what it says, where "…" stands for anything."""
    port = free_port()
    text = script(page).replace("8020", str(port))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WORKERD_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=100,
        check=False,
    )
    log = tmp_path / "state" / "workerd.log"
    shown = f"{done.stdout}\n{done.stderr}\n{log.read_text() if log.exists() else ''}"
    assert done.returncode == 0, shown
    for block in blocks(page):
        if block.language == "output":
            for line in filter(None, block.text.splitlines()):
                pattern = ".*".join(map(re.escape, line.split("…")))
                assert re.search(f"^{pattern}$", done.stdout + done.stderr, re.MULTILINE), (
                    f"{line!r}: {shown}"
                )
