"""Each example runs to its end with one command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import examples.__main__ as runner
from tests.support.daemon import ROOT
from workerd.config.build import load

SAYS = {
    "django_shop": "'value': 'sent to ada@example.org'",
    "fastapi_app": "'result': 'cat9.png@200'",
    "flask_app": "'result': 'cat.png@200'",
    "monitoring": "shop_bytes_total 42.0",
    "order_workflow": "'receipt': 'receipt 7', 'approved_by': 'anna'",
    "php_command": "'month': 'busy', 'sum': 42, 'attempt': 2",
    "php_insert": "Welcome, Ada!",
    "shell_command": "The program ended with exit status 66.",
    "sqlalchemy_shop": "order 1 confirmed to ada@example.org",
    "wrappers": "fetch goes through http://proxy.example.org:3128",
}
"""What each of them prints."""


def test_every_example_is_listed_and_has_a_test() -> None:
    """With its first line as the title."""
    assert set(runner.examples()) == set(SAYS)
    done = subprocess.run(
        [sys.executable, "-m", "examples"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "order_workflow     The workflow of an order" in done.stdout


@pytest.mark.parametrize("name", sorted(SAYS))
def test_its_configuration_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands."""
    monkeypatch.chdir(runner.FOLDER / name)
    assert load(Path("workerd.toml"), {}).handlers


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAYS))
def test_it_runs_to_its_end(name: str) -> None:
    """And prints what it should."""
    if program := runner.missing(name):
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "examples", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAYS[name] in done.stdout
