"""`workerd check`, with handlers that misbehave while they are imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.own_group import inside, own_group
from workerd.check import CheckReport, check_config, without_effect
from workerd.config.build import load
from workerd.config.model import Config
from workerd.degradations import degradations


def configured(tmp_path: Path, text: str) -> Config:
    (tmp_path / "workerd.toml").write_text(text)
    return load(tmp_path, {})


@pytest.fixture
def checked(tmp_path: Path) -> CheckReport:
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
    return check_config(
        configured(
            tmp_path,
            f'defaults = {{ path = ["{tmp_path}"], load_timeout = "60s" }}\n{tables}'
            '[handlers.nothing]\ncall = "check_fine:missing"\n[pools.hangs]\nload_timeout = "3s"\n'
            '[handlers.class]\ncall = "check_fine:run"\nretry_on = ["Nonsense"]\n',
        )
    )


def test_exposed_secrets_are_among_the_notes(tmp_path: Path) -> None:
    """With what to do about it."""
    (tmp_path / "tokens").touch()
    (tmp_path / "tokens").chmod(0o666)
    report = check_config(configured(tmp_path, f'[gateway]\ntoken_file = "{tmp_path}/tokens"\n'))
    assert any("chmod 0640" in note for note in report.notes)


def test_every_handler_that_does_not_load_is_listed_with_its_reason(
    checked: CheckReport, tmp_path: Path
) -> None:
    """An import that raises, crashes, exits or hangs harms no other; all that it started is killed."""
    errors = {handler.name: handler.error for handler in checked.handlers}
    assert [name for name, error in errors.items() if not error] == ["fine", "talks"]
    for name, words in {
        "raises": "no disk",
        "crashes": "killed by SIGSEGV",
        "exits": "exit status 3",
        "leaves": "SystemExit",
        "hangs": "longer than 3s",
        "nothing": "check_fine has no missing",
        "class": "Nonsense",
    }.items():
        assert words in errors[name]
    left = int((tmp_path / "pid").read_text())
    eventually(
        lambda: not Path(f"/proc/{left}/cmdline").exists() or not Path(f"/proc/{left}/cmdline").read_bytes()
    )


def test_the_report_lists_what_would_be_started(tmp_path: Path) -> None:
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
    report = check_config(config)
    assert not any(handler.error for handler in report.handlers)
    assert (report.node, report.roles) == ("n1", ["ingester", "dispatcher"])
    assert [(p.name, p.workers, p.limits) for p in report.pools] == [("a", 3, "memory 64MiB"), ("b", 1, "")]
    assert [h.recurs for h in report.handlers] == ["at */5 * * * * UTC", "30s after each end"]
    assert report.workflows == ["w: 2 jobs"]
    assert [sentence.split(":")[0] for sentence in without_effect(config)] == [
        "store.password_file",
        "gateway.open_metrics",
    ]
    notes = "\n".join(report.notes)
    for words in ("[pools.c]", "handlers.b.overlap", "pickup.enabled", "/nonexistent/password"):
        assert words in notes


def test_an_empty_configuration_is_pointed_out(tmp_path: Path) -> None:
    """A node without handlers is allowed, and hardly meant."""
    report = check_config(configured(tmp_path, ""))
    assert "No handler is configured" in report.notes[0]


def test_what_is_degraded_on_this_host_is_listed(tmp_path: Path) -> None:
    """Each message names the consequence."""
    config = configured(tmp_path, f'node = {{ state_dir = "{tmp_path}", runtime_dir = "{tmp_path}" }}\n')
    text = "\n".join(degradations(config))
    assert "SQLite" in text
    assert ("root" in text) == (os.getuid() == 0)
    assert "cannot be written" not in text
    away = configured(tmp_path, 'store = { url = "mysql://h/d" }\nnode = { state_dir = "/proc/x" }\n')
    assert "SQLite" not in "\n".join(degradations(away))


def test_sockets_that_an_import_opens_are_noted(tmp_path: Path) -> None:
    """Workers cannot use what their pool opened; with preload = false each has its own."""
    (tmp_path / "check_opens.py").write_text("import socket\ns = socket.socket()\ndef run(): pass\n")
    table = f'defaults = {{ path = ["{tmp_path}"] }}\n[handlers.opens]\ncall = "check_opens:run"\n'
    table += 'memory_max = "64MiB"\npids_max = 64\n'
    (note,) = check_config(configured(tmp_path, table)).notes
    assert note.startswith('handler "opens": importing it leaves open: socket')
    assert "connect in `init`" in note
    assert check_config(configured(tmp_path, table + "preload = false\n")).notes == []


def test_files_that_an_import_opens_are_noted(tmp_path: Path) -> None:
    """They are shared, unlike sockets."""
    (tmp_path / "check_logs.py").write_text(f"log = open({str(tmp_path / 'log')!r}, 'a')\ndef run(): pass\n")
    table = f'defaults = {{ path = ["{tmp_path}"], memory_max = "64MiB", pids_max = 64 }}\n'
    (note,) = check_config(configured(tmp_path, table + '[handlers.logs]\ncall = "check_logs:run"\n')).notes
    assert note.startswith(f'handler "logs": importing it leaves open: {tmp_path}/log (descriptor')
    assert "share" in note


def test_limits_are_proposed_for_pools_without_them(tmp_path: Path) -> None:
    """That leave something of the host to the roles."""
    table = "".join(f'[handlers.h{n}]\ncall = "os:getpid"\nworkers = 4\n' for n in range(7))
    notes = check_config(configured(tmp_path, table + 'memory_max = "64MiB"\n')).notes
    (memory,) = [note for note in notes if note.startswith("No memory_max: h0, h1, h2, h3, h4 and 1 more. ")]
    (pids,) = [note for note in notes if note.startswith("No pids_max: h0, h1, h2, h3, h4 and 2 more. ")]
    assert 'memory_max = "' in memory
    assert "pids_max = 256" in pids


def test_the_limits_of_a_container_are_told_and_kept(tmp_path: Path) -> None:
    """What is proposed fits into them."""
    table = '[handlers.h]\ncall = "os:getpid"\nworkers = 2\n'
    with own_group("pids", pids_max="50") as folder, inside(folder):
        notes = check_config(configured(tmp_path, table)).notes
    assert any(note.startswith("This control group has ") and "50 processes" in note for note in notes)
    assert any("pids_max = 25 is enough" in note for note in notes)


@pytest.mark.parametrize(
    ("keys", "is_noted"), [("", True), ('cooler = "30s"', False), ('cron = "* * * * *"', False)]
)
def test_a_class_with_cooler_that_does_not_recur_is_noted(tmp_path: Path, keys: str, is_noted: bool) -> None:
    """Its method alone starts nothing."""
    code = "class Beat:\n    def ensure(self): pass\n    def cooler(self): return 1.0\n"
    (tmp_path / "check_cooler.py").write_text(code)
    table = f'defaults = {{ path = ["{tmp_path}"], memory_max = "64MiB", pids_max = 64 }}\n'
    table += f'[handlers.beat]\ncall = "check_cooler:Beat"\n{keys}\n'
    notes = check_config(configured(tmp_path, table)).notes
    assert [note.startswith('handler "beat": its class has cooler()') for note in notes] == [True] * is_noted
