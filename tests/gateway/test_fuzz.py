"""The gateway against its own description: whatever is sent, it answers as /schema says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway import Api

CASES = 2000
HOOKS = """
import schemathesis

@schemathesis.hook
def map_query(ctx, query):
    # A wait that is long is answered late, which says nothing of the answer.
    if query and "wait" in query:
        query["wait"] = "10ms"
    return query
"""
# What a schema cannot say, such as which handlers there are, is refused with 422 and the like.
SETTINGS = """
hooks = "hooks"
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "303", "401", "404", "409", "422", "429"]
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "415", "422"]

# A job that was just made has no payload yet, which is a 404 that the schema names.
[[operations]]
include-path = "/jobs/{id}/payload"
checks.ensure_resource_availability.enabled = false
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("token", ["", "s3cr3t-token"], ids=["open", "locked"])
def test_nothing_but_documented_answers(tmp_path: Path, store_url: str, token: str) -> None:
    """Thousands of requests, valid and not, get documented answers, and the log holds no traceback."""
    folder = tmp_path / "fuzz"
    folder.mkdir()
    (folder / "hooks.py").write_text(HOOKS)
    (folder / "schemathesis.toml").write_text(SETTINGS)
    gateway = ""
    headers = []
    if token:
        (folder / "tokens").write_text(token + "\n")
        gateway = f'token_file = "{folder}/tokens"'
        headers = ["--header", f"Authorization: Bearer {token}"]
    with Api(tmp_path / "node", store_url, gateway=gateway) as api:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("st")), "--config-file", str(folder / "schemathesis.toml"),
                "run", f"http://{api.address}/schema", "--checks", "all", "--max-examples", "60",
                "--exclude-path", "/events", "--request-timeout", "20", "--workers", "1", "--no-color",
                "--generation-deterministic", "--warnings", "off", *headers,
            ],
            cwd=folder, capture_output=True, text=True, timeout=850, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
        counted = re.search(r"([\d,]+) generated", done.stdout)
        assert counted is not None
        assert int(counted[1].replace(",", "")) >= CASES, done.stdout[-2000:]
        assert "Traceback" not in api.daemon.logged()
        assert api.get("/heartbeat").status_code == 200
