"""Who acts is who the kernel says."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import pytest

from tests.support.daemon import ROOT
from workerd.operations import actor


def test_the_environment_does_not_name_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may write anything there; the audit is to say who it was."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    user = pwd.getpwuid(os.getuid()).pw_name
    assert actor.of_command() == actor.Actor(f"cli:{user}@{os.uname().nodename}", "cli")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_user_without_a_name_is_a_number() -> None:
    """As in a container that has no such line in its passwd."""
    code = "import os; os.setuid(54321); from workerd.operations import actor; print(actor.of_command().name)"
    done = subprocess.run(
        [sys.executable, "-c", f"import workerd.operations.actor; {code}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"cli:54321@{os.uname().nodename}"
