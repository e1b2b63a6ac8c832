"""The database driver without what is seldom needed."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from workerd.store import driver
driver.without_rsa()
import pymysql._auth
assert not pymysql._auth._have_cryptography and "cryptography" not in sys.modules
assert driver.with_rsa() and pymysql._auth._have_cryptography
assert not driver.with_rsa()
"""


def test_rsa_comes_when_it_is_asked_for() -> None:
    """The driver is loaded without RSA, has it after `with_rsa`, and is asked for it once only."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
