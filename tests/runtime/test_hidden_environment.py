"""Variables that are taken out of a process."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os, subprocess, sys
from workerd.runtime.hidden_environment import hidden_environment, hide_environment

fd = hide_environment("WORKERD_")
assert hidden_environment(fd) == {"WORKERD_STORE__URL": "mysql://u:secret@h/d", "WORKERD_EMPTY": ""}
assert hidden_environment(fd) == hidden_environment(fd)  # it can be read again at every reload
assert not [name for name in os.environ if name.startswith("WORKERD_")]
for process in ("self", str(os.getpid())):
    block = open(f"/proc/{process}/environ", "rb").read()
    assert b"secret" not in block and b"KEPT=kept" in block
if os.fork() == 0:
    assert b"secret" not in open("/proc/self/environ", "rb").read()
    os._exit(0)
assert os.wait()[1] == 0
assert b"secret" not in subprocess.check_output(["env"]) and os.environ["KEPT"] == "kept"
"""


def test_hidden_variables_are_shown_nowhere_and_the_others_stay() -> None:
    """Neither in the process nor in /proc, nor in what it forks or starts."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WORKERD_")}
    env |= {"WORKERD_STORE__URL": "mysql://u:secret@h/d", "WORKERD_EMPTY": "", "KEPT": "kept"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
