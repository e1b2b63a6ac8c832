"""The tests of Django's tasks once more on Django 6, where this host has a Python for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.daemon import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tasks_on_django_6() -> None:
    """In a venv of their own, which is made once: Django 6 needs Python 3.12."""
    command = ["sh", "tests/support/test-django6", sys.prefix, f"{ROOT / '.venv-django6'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    if done.stdout.startswith("Django 6 is"):
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
