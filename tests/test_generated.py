"""Pages of the documentation match the source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import PAGES
from tests.support.daemon import ROOT
from workerd.config.build import load


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    """`make generated` renews it."""
    assert path.read_text() == PAGES[path]()


def test_the_variables_of_the_page_on_environments_are_keys() -> None:
    """Each example can be set as it stands."""
    text = (ROOT / "docs/how-to/environment.md").read_text()
    found = dict(re.findall(r"`(WORKERD_[A-Z]+__[A-Z_]+)=(?:['\"]?)([^`]*?)(?:['\"]?)`", text))
    assert len(found) == 7
    config = load(None, found)
    assert config.store.url == "mysql://shop@db.internal:3306/shop"
    assert config.log.labels == {"environment": "production"}
    assert (config.pickup.requests_new, config.dispatcher.poll) == ("*/5 * * * *", 0.25)
