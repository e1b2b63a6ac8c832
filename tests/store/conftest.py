"""What the tests of the store share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workerd.store import Store


@pytest.fixture
def mysql(mysql_url: str, opened: Callable[..., Store]) -> Store:
    """A migrated store on the session's server."""
    store = opened(mysql_url)
    store.migrate()
    return store
