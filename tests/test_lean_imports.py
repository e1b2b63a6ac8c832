"""The database driver without its rarely needed modules."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from workerd import lean_imports
lean_imports.import_pymysql()
import pymysql._auth
assert not pymysql._auth._have_cryptography and "cryptography" not in sys.modules
assert lean_imports.load_rsa() and pymysql._auth._have_cryptography
assert not lean_imports.load_rsa()
"""


PREPARED = """
import sys
from workerd.store import engines as store
store.prepare("mysql")
import pymysql
ours, mine = sys.modules["workerd.store.mysql"], pymysql
assert "cryptography" not in sys.modules
store.unprepare()
assert "pymysql" not in sys.modules and "pymysql._auth" not in sys.modules
import pymysql
assert pymysql is not mine and pymysql._auth._have_cryptography
from workerd.config.model import StoreConfig
assert type(store.open_store(StoreConfig(url="mysql://u@h/d"))) is not ours.MySQLStore
"""


TLS = """
import sys
from workerd.store import engines as store
store.prepare("mysql")
from pymysql import connections
assert "ssl" not in sys.modules
link = connections.Connection(host="h", ssl_verify_cert=False, defer_connect=True)
import ssl
assert isinstance(link.ctx, ssl.SSLContext) and link.ctx.verify_mode is ssl.CERT_NONE
"""


SHARED_TLS = """
import sys
from workerd.store import engines as store
store.prepare("mysql", encrypted=True)
assert "ssl" in sys.modules
"""


DAEMON = """
import sys
import workerd.daemon
loaded = {"pymysql", "cryptography", "rich", "asyncio", "uvicorn"} & set(sys.modules)
assert not loaded, loaded
"""


def test_the_daemon_loads_a_driver_only_when_it_knows_its_store() -> None:
    """Until then RSA cannot be left out, and a pool would keep what handlers need whole."""
    done = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_for_handlers_has_the_complete_driver() -> None:
    """Modules loaded without RSA before the fork are reloaded with it after `unprepare`."""
    done = subprocess.run([sys.executable, "-c", PREPARED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", [TLS, SHARED_TLS])
def test_tls_is_loaded_on_demand(script: str) -> None:
    """By the first connection that may be encrypted, or for all processes where every one is."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rsa_is_loaded_on_demand() -> None:
    """The driver is loaded without RSA, has it after `load_rsa`, and is asked for it once only."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
