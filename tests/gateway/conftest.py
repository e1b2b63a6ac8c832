"""The node that the tests of routes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import Api


@pytest.fixture(scope="package", params=["mysql", "sqlite"])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A node with the handlers and workflows of CONFIG, on each engine."""
    folder = tmp_path_factory.mktemp("gw")
    url = f"sqlite:///{folder}/store.db"
    server = name = None
    if request.param == "mysql":
        server = request.getfixturevalue("mysql_server")
        name = server.new_database()
        url = server.url(name)
    with Api(folder / "node", url) as api:
        yield api
    if server is not None:
        server.drop_database(name)
