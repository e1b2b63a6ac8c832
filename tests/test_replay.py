"""The run beside the daemon, without a store."""

from __future__ import annotations

import subprocess
import sys

from tests.support.daemon import ROOT
from workerd import testing

PROGRAM = """
import os, select, stat, sys, time, uuid
from workerd import replay
from workerd.config.model import Config, HandlerConfig, PoolConfig
from workerd.job import Claim
from workerd.redaction import Redaction

name = sys.argv[1]
handler = HandlerConfig(name=name, call=f"tests.support.replay_handlers:{name}", pool="p",
                        policy_own={"deadline": 0.2, "grace": 0.2})
pool = PoolConfig(name="p", handlers=(handler,), path=(sys.argv[2],))
config = Config(pools={"p": pool})
claim = Claim(id=uuid.uuid4().bytes, attempt=4, claimed_at=0, mono=time.monotonic_ns(), handler=name,
              vars=sys.argv[3].encode(), run_at=0)
printed, size, most = [], 0, 1 << 30
limits = "limits" in sys.argv
def pipes():
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and stat.S_ISFIFO(os.stat(int(name)).st_mode):
                yield int(name)
        except OSError:
            pass
def write(data):
    global size
    size += len(data)
    if size > most:
        sys.exit("more was printed than there was time for")
    printed[9:] = [data]
    if limits:
        select.select(list(pipes()), [], [])  # as slow as the handler: until it has printed more
options = replay.Options(Redaction(["a"]), limits=limits, reveal="reveal" in sys.argv)
replayed = replay.run(config, claim, options, write)
print(replayed.outcome.status, replayed.outcome.reason, replayed.outcome.state, replayed.redaction.paths)
print(b"".join(printed))
"""


def _run(*words: str) -> str:
    command = [sys.executable, "-c", PROGRAM, words[0], str(ROOT), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    return done.stdout + done.stderr


def test_the_handlers_own_secrets_are_redacted_beside_the_stores() -> None:
    """A handler that never ran under a daemon has no signature in the store."""
    text = _run("see", '{"password": "canary-secret"}')
    assert "completed ok" in text
    assert "('a', 'password')" in text
    assert "printed [redacted]" in text
    assert "printed canary-secret" in _run("see", '{"password": "canary-secret"}', "reveal")


def test_a_retry_is_decided_as_by_the_daemon() -> None:
    assert "retry retry" in _run("save_and_fail", "{}")


def test_the_deadline_holds_while_the_run_prints() -> None:
    """However fast it does, what prints is not read for ever."""
    assert "retry deadline" in _run("flood", "{}", "limits")
    assert "completed ok" in _run("leave_flood", "{}")


def test_a_handler_that_does_not_load() -> None:
    assert "CannotRun" in _run("missing", "{}")


def test_vars_that_do_not_fit() -> None:
    assert "failure failure" in _run("see", '{"a": "many"}')


def test_replay_is_false_unless_asked_for() -> None:
    handler = "tests.support.replay_handlers:see"
    assert testing.run(handler).payload["replay"] is False
    assert testing.attempt(handler, {}, replay=True).payload["replay"] is True
