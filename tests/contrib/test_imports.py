"""Nothing of a framework is imported without need, and a pool of its tasks loads no driver of ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = "django django_tasks sqlalchemy fastapi flask pydantic"
TASKS = """
from django.conf import settings
settings.configure(USE_TZ=True, INSTALLED_APPS=[], DATABASES={})
import workerd.contrib.django.runner
"""


def imported(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["workerd", "workerd.client", "workerd.async_client", "workerd.pool.pool"])
def test_no_framework_is_imported_by_workerd_itself(module: str) -> None:
    """Only by the modules of `contrib` that bear their names."""
    assert not imported(f"import {module}") & set(FRAMEWORKS.split())


def test_what_runs_the_tasks_of_django_loads_no_driver() -> None:
    """Nor the client."""
    found = imported(TASKS)
    assert "workerd.contrib.django.runner" in found
    assert not found & {"pymysql", "sqlite3", "workerd.client", "workerd.store.mysql", "workerd.store.sqlite"}


def test_sqlalchemy_needs_nothing_for_asyncio() -> None:
    """Whose extra package not everybody has installed."""
    assert "sqlalchemy.ext.asyncio" not in imported("import workerd.contrib.sqlalchemy")
