"""The documentation as a site."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, pages


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links between pages lead somewhere, and every page is in the contents; nothing comes from elsewhere."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        assert not re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]+", page.read_text()
        )


LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file(page: Path) -> None:
    """On every page, as read without the site."""
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_each_how_to_is_in_the_contents() -> None:
    """Which are by subject; the other folders are listed whole."""
    contents = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs" / "how-to").glob("*.md"):
        assert f"how-to/{page.stem}\n" in contents, page.name


def test_the_readme_is_short() -> None:
    """It is what a stranger reads before deciding to read on."""
    assert len((ROOT / "README.md").read_bytes()) <= 8 * 1024
