"""What `workerd check` finds out, with handlers that do their worst while they are imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from workerd import check
from workerd.check import CheckReport, report, without_effect
from workerd.config.build import load
from workerd.config.model import Config


def configured(tmp_path: Path, text: str) -> Config:
    (tmp_path / "workerd.toml").write_text(text)
    return load(tmp_path, {})


@pytest.fixture
def looked(tmp_path: Path) -> CheckReport:
    """The report on one good handler and several that do not load, each in its own way."""
    modules = {
        "fine": "def run(n: int) -> int: return n",
        "raises": "raise OSError('no disk')",
        "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "exits": "import os; os._exit(3)",
        "leaves": "raise SystemExit(4)",
        "hangs": f"import os, subprocess, time\np = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))\ntime.sleep(1000)",
        "talks": "print('x' * 1_000_000)\ndef run(): pass",
    }
    for name, code in modules.items():
        (tmp_path / f"check_{name}.py").write_text(code)
    tables = "".join(f'[handlers.{name}]\ncall = "check_{name}:run"\n' for name in modules)
    return report(
        configured(
            tmp_path,
            f'defaults = {{ path = ["{tmp_path}"], load_timeout = "60s" }}\n{tables}'
            '[handlers.nothing]\ncall = "check_fine:missing"\n[pools.hangs]\nload_timeout = "3s"\n'
            '[handlers.class]\ncall = "check_fine:run"\nretry_on = ["Nonsense"]\n',
        )
    )


def test_every_handler_that_does_not_load_is_told_with_its_reason(
    looked: CheckReport, tmp_path: Path
) -> None:
    """An import that raises, crashes, exits or hangs harms nobody else, and is killed with all it started."""
    faults = {handler.name: handler.fault for handler in looked.handlers}
    assert [name for name, fault in faults.items() if not fault] == ["fine", "talks"]
    assert not looked.loads
    for name, words in {
        "raises": "no disk",
        "crashes": "killed by SIGSEGV",
        "exits": "exit status 3",
        "leaves": "SystemExit",
        "hangs": "longer than 3s",
        "nothing": "check_fine has no missing",
        "class": "Nonsense",
    }.items():
        assert words in faults[name]
    left = int((tmp_path / "pid").read_text())
    eventually(
        lambda: not Path(f"/proc/{left}/cmdline").exists() or not Path(f"/proc/{left}/cmdline").read_bytes()
    )


def test_the_report_says_what_would_be_started(tmp_path: Path) -> None:
    """Roles, pools with their limits, handlers with their schedules, and what has no effect."""
    config = configured(
        tmp_path,
        """
        node = { name = "n1" }
        gateway = { listen = "", open_metrics = true }
        store = { password_file = "/nonexistent/password" }
        pickup = { enabled = false }
        [handlers.a]
        call = "os:getpid"
        workers = 3
        memory_max = "64MiB"
        cron = "*/5 * * * *"
        [handlers.b]
        call = "os:getppid"
        overlap = "skip"
        cooler = "30s"
        [pools.c]
        [workflows.w]
        steps = [{ name = "s", jobs = ["a", "b"] }]
        """,
    )
    made = report(config)
    assert made.loads
    assert (made.node, made.roles) == ("n1", ["ingester", "dispatcher"])
    assert [(p.name, p.workers, p.limits) for p in made.pools] == [("a", 3, "memory 64MiB"), ("b", 1, "")]
    assert [h.recurs for h in made.handlers] == ["at */5 * * * * UTC", "30s after each end"]
    assert made.workflows == ["w: 2 jobs"]
    assert [said.split(":")[0] for said in without_effect(config)] == [
        "store.password_file",
        "gateway.open_metrics",
    ]
    notes = "\n".join(made.notes)
    for words in ("[pools.c]", "handlers.b.overlap", "pickup.enabled", "/nonexistent/password"):
        assert words in notes


def test_an_empty_configuration_is_pointed_out(tmp_path: Path) -> None:
    """A node without handlers is allowed, and hardly meant."""
    made = report(configured(tmp_path, ""))
    assert made.loads
    assert "No handler is configured" in made.notes[0]


def test_what_is_weaker_here_is_said_in_sentences(tmp_path: Path) -> None:
    """Each sentence says what follows; the ones that hold for this process are there."""
    config = configured(tmp_path, f'node = {{ state_dir = "{tmp_path}", runtime_dir = "{tmp_path}" }}\n')
    said = "\n".join(check.weaknesses(config))
    assert "SQLite" in said
    assert ("root" in said) == (os.getuid() == 0)
    assert "cannot be written" not in said
    away = configured(tmp_path, 'store = { url = "mysql://h/d" }\nnode = { state_dir = "/proc/x" }\n')
    assert "SQLite" not in "\n".join(check.weaknesses(away))
