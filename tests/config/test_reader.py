"""The configuration as a whole: sources, precedence, and every fault at once."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.unprivileged import unprivileged
from workerd.config.build import build, load
from workerd.config.config_value import keys_of
from workerd.config.handler_config import Backoff, RestartConfig
from workerd.config.model import HANDLER_KEYS, POOL_KEYS, SECTIONS, TABLES, Config
from workerd.config.reader import ConfigErrors, ConfigTree
from workerd.config.workflow_config import WorkflowJob
from workerd.errors import ConfigError

HANDLERS = '[handlers.a]\ncall = "os:getpid"\n[handlers.b]\ncall = "os:getppid"\n'


def configured(tmp_path: Path, text: str, **environ: str) -> Config:
    file = tmp_path / "workerd.toml"
    file.write_text(text)
    return load(file, environ)


def faults(tmp_path: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, text, **environ)
    return caught.value.errors


def fault(tmp_path: Path, text: str, **environ: str) -> str:
    """The one fault, without the file's name."""
    (found,) = faults(tmp_path, text, **environ)
    return found.removeprefix(f"{tmp_path / 'workerd.toml'}: ")


# -- sources


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    """No key is required; the node is named after its host."""
    config = configured(tmp_path, "")
    assert config.node.name == socket.gethostname()
    assert config.gateway == Config().gateway
    assert config.pools == {}


def test_a_folder_is_merged_in_order(tmp_path: Path) -> None:
    """workerd.toml comes first, then conf.d by name; tables are merged and the later value wins."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "workerd.toml").write_text(HANDLERS + '[dispatcher]\nbatch = 1\nlease = "10s"\n')
    (tmp_path / "conf.d" / "20.toml").write_text("[dispatcher]\nbatch = 3\n[handlers.b]\nworkers = 2\n")
    (tmp_path / "conf.d" / "10.toml").write_text("[dispatcher]\nbatch = 2\n[handlers.b]\nworkers = 7\n")
    (tmp_path / "conf.d" / "30.toml~").write_text("no toml at all")
    config = load(tmp_path, {})
    assert (config.dispatcher.batch, config.dispatcher.lease) == (3, 10.0)
    assert config.pools["b"].workers == 2


def test_an_error_names_its_file(tmp_path: Path) -> None:
    """Of several files the one that holds the wrong value is named."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "workerd.toml").write_text("[dispatcher]\nbatch = 1\n")
    (tmp_path / "conf.d" / "x.toml").write_text("[dispatcher]\nbatch = 0\n")
    with pytest.raises(ConfigError, match=r"conf\.d/x\.toml: dispatcher\.batch: expected a whole number"):
        load(tmp_path, {})


@pytest.mark.parametrize("mode", [0o000, 0o311, 0o644])
def test_a_conf_d_that_cannot_be_read_is_a_fault(tmp_path: Path, mode: int) -> None:
    """Taken for empty, `reload` would drop its pools; every other fault is reported with it."""
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (tmp_path / "workerd.toml").write_text("[dispatcher]\nbatch = 0\n")
    (folder / "10.toml").write_text(HANDLERS)
    folder.chmod(mode)
    found = unprivileged(lambda: load(tmp_path, {}))
    assert found.startswith("ConfigError: ")
    assert f"{folder}{'/10.toml' if mode == 0o644 else ''}: cannot be read: Permission denied" in found
    assert "dispatcher.batch" in found


def test_a_conf_d_that_is_no_folder_is_a_fault(tmp_path: Path) -> None:
    """The files that were to be in it are somewhere else."""
    (tmp_path / "workerd.toml").write_text(HANDLERS)
    (tmp_path / "conf.d").write_text("")
    with pytest.raises(ConfigError, match=r"conf\.d: cannot be read: Not a directory"):
        load(tmp_path, {})


@pytest.mark.parametrize("name", ["none", "none/workerd.toml"])
def test_a_path_that_does_not_exist_is_a_fault(tmp_path: Path, name: str) -> None:
    """A slip in -c must not start a node without handlers."""
    with pytest.raises(ConfigError, match="expected a file or folder, found none"):
        load(tmp_path / name, {"WORKERD_LOG__LEVEL": "info"})


def test_an_empty_folder_is_a_fault(tmp_path: Path) -> None:
    """A folder without any configuration is not one."""
    with pytest.raises(ConfigError, match=r"found neither"):
        load(tmp_path, {})


def test_syntax_errors_tell_their_line(tmp_path: Path) -> None:
    """Both broken files are reported, with the line."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "workerd.toml").write_text("[node]\nname = \n")
    (tmp_path / "conf.d" / "x.toml").write_bytes(b"[node]\n\nname = '\xff'\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {})
    first, second = caught.value.errors
    assert "at line 2" in first
    assert "expected UTF-8" in second
    assert "at line 3" in second


def test_the_environment_overrides(tmp_path: Path) -> None:
    """Variables with __ win over files, as TOML where they are TOML; all others are left alone."""
    config = configured(
        tmp_path,
        HANDLERS.replace("handlers.b", "handlers.Big"),
        WORKERD_STORE__URL="mysql://u@h/d",
        WORKERD_DISPATCHER__BATCH="7",
        WORKERD_DISPATCHER__LEASE="20s",
        WORKERD_LOG__LABELS='{ env = "prod" }',
        WORKERD_HANDLERS__BIG__WORKERS="3",
        WORKERD_HANDLERS__A__RETRY_ON='["OSError"]',
        WORKERD_CONFIG="ignored",
        OTHER__KEY="ignored",
    )
    assert config.store.url == "mysql://u@h/d"
    assert (config.dispatcher.batch, config.dispatcher.lease) == (7, 20.0)
    assert config.log.labels == {"env": "prod"}
    assert config.pools["Big"].workers == 3
    assert config.handlers["a"].policy_own == {"retry_on": ("OSError",)}


def test_a_fault_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    """An error in a variable names the variable, not the file."""
    assert fault(tmp_path, "", WORKERD_DISPATCHER__BATCH="many").startswith(
        "environment variable WORKERD_DISPATCHER__BATCH: dispatcher.batch: expected a whole number"
    )
    assert "expected a name such as" in fault(tmp_path, "", WORKERD_STORE__="x")


def test_the_environment_cannot_smuggle_a_second_key(tmp_path: Path) -> None:
    """A value with a line break in it is text, never more keys."""
    config = configured(tmp_path, "", WORKERD_NODE__RUNTIME_DIR='"/a"\n[gateway]\nlisten="0.0.0.0:1"')
    assert config.gateway.listen == Config().gateway.listen


# -- faults


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    """Unknown keys, wrong types, ranges and references come in one list, each with file and key."""
    found = faults(
        tmp_path,
        """
        unknown = 1
        [store]
        ulr = "x"
        [dispatcher]
        batch = "500"
        poll = "never"
        [gateway]
        open_metrics = 1
        [handlers.a]
        call = "os.getpid"
        max_attemps = 3
        """,
        WORKERD_LOG__LEVEL="loud",
    )
    assert len(found) == 8
    keys = {f.split(": ")[1] for f in found}
    assert keys == {
        "unknown", "store.ulr", "dispatcher.batch", "dispatcher.poll", "gateway.open_metrics",
        "handlers.a.call", "handlers.a.max_attemps", "log.level",
    }  # fmt: skip
    assert all("expected" in f and "got" in f for f in found)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[dispacher]\nbatch = 1", 'the nearest is "dispatcher"'),
        ("[dispatcher]\nbach = 1", 'the nearest is "batch"'),
        ('[handler.x]\ncall = "a:b"', 'the nearest is "handlers"'),
        ("[dispatcher]\nworkers = 1", "it belongs in [defaults] or [handlers.NAME] or [pools.NAME]"),
        ("[dispatcher]\nLEASE = 1", 'the nearest is "lease"'),
        ("[shutdown]\nxyz = 1", "known are drain"),
        ('[defaults]\nbackoff = { frist = "1s" }', 'the nearest is "first"'),
        ('[pools.x]\ncall = "a:b"', "it belongs in [defaults] or [handlers.NAME]"),
    ],
)
def test_the_nearest_known_key_is_named(tmp_path: Path, text: str, hint: str) -> None:
    """A slip is answered with the key that was meant."""
    assert fault(tmp_path, text).endswith(hint)


@pytest.mark.parametrize(
    "line",
    [
        "node.name = 5", "node = 5", "node.name = 'x\u0007'", 'node.runtime_dir = ""', 'log.level = "loud"',
        'log.labels = { "a-b" = "x" }', "log.labels = { a = 1 }", 'supervisor.watchdog = "0s"',
        'dispatcher.batch = 0', "dispatcher.batch = true", 'dispatcher.lease = "0s"', "ingester.batch = 1.5",
        'ingester.max_payload = "0"', 'ingester.spool = "1KiB"', 'gateway.listen = "8020"',
        'gateway.listen = "127.0.0.1:99999"', 'gateway.listen = "[::1"', 'gateway.listen = "unix:relative"',
        'gateway.allowed_hosts = "a"', 'gateway.open_metrics = "yes"', 'shutdown.drain = ""',
        'retention.completed = "soon"', 'pickup.jobs = "* * * *"', 'pickup.jobs = "0 0 31 2 *"',
        'store.url = "postgres://h/d"', 'store.url = "mysql:///d"', 'store.url = "mysql://h"',
        'store.url = "sqlite://"', "store.url = 5", 'defaults.retry_on = ["a b"]', 'defaults.retry_on = "E"',
        'defaults.deadline = true', "defaults.max_attempts = 0", "defaults.backoff = 3",
        'defaults.backoff = { factor = 0.5 }', 'defaults.backoff = { jitter = 2 }', "defaults.workers = 0",
        'defaults.timezone = "Mars/Olympus"', 'defaults.timezone = "Europe"', 'defaults.timezone = "../etc"',
        'defaults.misfire = "maybe"', 'defaults.overlap = ""', 'defaults.memory_max = 512',
        "defaults.env = []",
        'defaults.env = { A = 1 }', 'defaults.restart = { intensity = 0 }', 'defaults.init = "x"',
        "handlers.x = 1", "handlers.x = {}", 'handlers."" = { call = "a:b" }', "pools = 1",
        'handlers."a\\nb" = { call = "a:b" }', 'handlers.x = { call = "a:b", pool = "\\u001b[0m" }',
        'handlers.x = { call = "a:1b" }', f'handlers.{"x" * 192} = {{ call = "a:b" }}', "workflows.w = {}",
    ],
)  # fmt: skip
def test_values_out_of_kind_or_range(tmp_path: Path, line: str) -> None:
    """Each is one error that names what was expected, without control characters."""
    message = fault(tmp_path, line)
    assert "expected" in message
    assert message.isprintable()


def test_secrets_are_in_no_fault_and_no_repr(tmp_path: Path) -> None:
    """A password in the store's URL is shown by no message, whatever is wrong around it."""
    for line in (
        'store.url = "mysql://u:hunter2@h:x/d"',
        'store.url = ["mysql://u:hunter2@h/d"]',
        'store = "mysql://u:hunter2@h/d"',
        'store.ulr = "mysql://u:hunter2@h/d"',
        'gateway.listen = "mysql://u:hunter2@h/d"',
        'defaults.env = { PASSWORD = ["hunter2"] }',
    ):
        assert "hunter2" not in fault(tmp_path, line)
    config = configured(tmp_path, 'store.url = "mysql://u:hunter2@h/d"')
    assert config.store.url.endswith("hunter2@h/d")
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(config.store.__rich_repr__())


def test_a_password_that_every_user_may_read_is_noted(tmp_path: Path) -> None:
    """With the file that holds it, and without the password."""
    for mode, noted in ((0o644, True), (0o640, False)):
        file = tmp_path / "workerd.toml"
        file.write_text('store.url = "mysql://u:hunter2@localhost/d"')
        file.chmod(mode)
        notes = load(file, {}).notes
        assert bool(notes) is noted
        assert all(str(file) in note and "hunter2" not in note for note in notes)
    file.write_text('store.url = "mysql://u@localhost/d"')
    file.chmod(0o644)
    assert load(file, {}).notes == ()
    assert load(file, {"WORKERD_STORE__URL": "mysql://u:hunter2@localhost/d"}).notes == ()


@pytest.mark.parametrize(
    ("listen", "local"),
    [
        ("127.0.0.1:8020", True), ("127.9.9.9:1", True), ("localhost:80", True), ("[::1]:80", True),
        ("", True),
        ("unix:/run/x.sock", True), ("0.0.0.0:80", False), ("[::]:80", False), ("10.0.0.1:80", False),
        ("example.org:80", False), ("127.0.0.1.example.org:80", False),
    ],
)  # fmt: skip
def test_an_address_for_others_needs_tokens(tmp_path: Path, listen: str, local: bool) -> None:
    """Only loopback and Unix sockets may be listened on without tokens."""
    text = f'[gateway]\nlisten = "{listen}"\n'
    if local:
        assert configured(tmp_path, text).gateway.listen == listen
    else:
        assert "token_file" in fault(tmp_path, text)
    assert configured(tmp_path, text + 'token_file = "/etc/workerd/tokens"').gateway.listen == listen


# -- handlers and pools


def test_each_handler_has_a_pool_of_its_own(tmp_path: Path) -> None:
    """Without `pool` a pool is named like its handler, with the pool keys of the handler's table."""
    config = configured(tmp_path, HANDLERS + 'workers = 4\nmax_rss = "1MiB"\nrestart = { intensity = 9 }\n')
    assert list(config.pools) == ["a", "b"]
    assert (config.pools["b"].workers, config.pools["b"].max_rss) == (4, 1 << 20)
    assert config.pools["b"].restart == RestartConfig(intensity=9)
    assert config.pools["a"].workers == 1


def test_handlers_share_a_pool_by_name(tmp_path: Path) -> None:
    """Handlers that name the same pool are in it together, with the keys of [pools.NAME]."""
    config = configured(
        tmp_path,
        HANDLERS.replace("[handlers.b]", 'pool = "p"\n[handlers.b]') + 'pool = "p"\n[pools.p]\nworkers = 2\n',
    )
    assert [h.name for h in config.pools["p"].handlers] == ["a", "b"]
    assert config.pools["p"].workers == 2
    assert set(config.handlers) == {"a", "b"}


def test_pool_keys_of_a_shared_pool_stand_in_one_place(tmp_path: Path) -> None:
    """A handler that shares its pool cannot set its size; nor may one key be set in two tables."""
    assert "expected it in [pools.a], as 2 handlers share" in fault(
        tmp_path, HANDLERS + 'pool = "a"\nworkers = 2\n'
    )
    assert "expected it once, got it in [pools.b] too" in fault(
        tmp_path, HANDLERS + "workers = 2\n[pools.b]\nworkers = 3\n"
    )


def test_a_pool_without_handlers_is_noted(tmp_path: Path) -> None:
    """A warning, not an error: its handlers may come in a later file."""
    config = configured(tmp_path, HANDLERS + "[pools.lonely]\nworkers = 2\n")
    assert "lonely" not in config.pools
    assert config.notes == ("[pools.lonely] is not started, as no handler names it as its pool",)


def test_defaults_hold_for_all(tmp_path: Path) -> None:
    """[defaults] takes handler and pool keys; a table's own keys override it and are stored separately."""
    config = configured(
        tmp_path,
        '[defaults]\nworkers = 3\ndeadline = "10s"\nmax_waiting = 5\nbackoff = { first = "2s" }\n'
        + HANDLERS
        + 'workers = 1\ndeadline = "20s"\n',
    )
    a, b = config.handlers["a"], config.handlers["b"]
    assert (config.pools["a"].workers, config.pools["b"].workers) == (3, 1)
    assert a.policy_defaults == {"deadline": 10.0, "backoff": Backoff(first=2.0)}
    assert (a.policy_own, b.policy_own) == ({}, {"deadline": 20.0})
    assert (a.max_waiting, b.max_waiting) == (5, 5)


def test_no_cooler_differs_from_a_zero_cooler(tmp_path: Path) -> None:
    """ "" is not recurring; "0s" runs again at once."""
    config = configured(
        tmp_path, HANDLERS.replace("[handlers.b]", 'cooler = ""\n[handlers.b]') + 'cooler = "0s"\n'
    )
    assert (config.handlers["a"].schedule.cooler, config.handlers["a"].schedule.recurs) == (None, False)
    assert (config.handlers["b"].schedule.cooler, config.handlers["b"].schedule.recurs) == (0.0, True)


def test_cooler_and_cron_exclude_each_other(tmp_path: Path) -> None:
    """Both in one table is a fault; of a default and an own one the own one counts."""
    assert "expected cooler or cron, got both" in fault(
        tmp_path, HANDLERS + 'cooler = "1s"\ncron = "* * * * *"\n'
    )
    config = configured(tmp_path, '[defaults]\ncooler = "1s"\n' + HANDLERS + 'cron = "* * * * * *"\n')
    assert config.handlers["a"].schedule.cooler == 1.0
    assert (config.handlers["b"].schedule.cooler, config.handlers["b"].schedule.cron) == (None, "* * * * * *")


def test_two_schedules_cannot_have_one_name(tmp_path: Path) -> None:
    """A recurring handler and a recurring workflow of the same name would share one schedule."""
    workflow = '[workflows.b]\nsteps = [{ name = "s", jobs = ["a"] }]\n'
    assert "expected another name" in fault(
        tmp_path, HANDLERS + 'cooler = "1s"\n' + workflow + 'cron = "* * * * *"\n'
    )
    assert configured(tmp_path, HANDLERS + 'cooler = "1s"\n' + workflow).workflows["b"]


# -- workflows


def test_steps_are_the_short_form_of_a_graph(tmp_path: Path) -> None:
    """Each job needs all jobs of the step before; a repeated handler gets a number."""
    flow = configured(
        tmp_path,
        HANDLERS
        + '[workflows.w]\ntimezone = "Europe/Vienna"\ncooler = "5m"\nsteps = [\n'
        + '{ name = "one", jobs = ["a"] }, { name = "two", jobs = ["a", "b"] },'
        + '{ name = "three", jobs = ["b"] }]\n',
    ).workflows["w"]
    assert flow.step_names == ("one", "two", "three")
    assert flow.jobs == (
        WorkflowJob(name="a", handler="a", step=0),
        WorkflowJob(name="a#2", handler="a", needs=("a",), step=1),
        WorkflowJob(name="b", handler="b", needs=("a",), step=1),
        WorkflowJob(name="b#2", handler="b", needs=("a#2", "b"), step=2),
    )
    assert (flow.schedule.cooler, flow.schedule.timezone) == (300.0, "Europe/Vienna")


def test_jobs_are_any_graph(tmp_path: Path) -> None:
    """The long form names jobs, needs and vars, and is sorted into an order in which it can run."""
    flow = configured(
        tmp_path,
        HANDLERS
        + '[[workflows.w.jobs]]\nname = "last"\nhandler = "b"\nneeds = ["x", "y"]\n'
        + '[[workflows.w.jobs]]\nname = "y"\nhandler = "a"\nneeds = ["x"]\nvars = { n = 1 }\n'
        + '[[workflows.w.jobs]]\nname = "x"\nhandler = "a"\n',
    ).workflows["w"]
    assert [(j.name, j.step) for j in flow.jobs] == [("x", 0), ("y", 1), ("last", 2)]
    assert flow.jobs[1].vars == {"n": 1}


def test_a_var_that_json_cannot_represent_is_reported_with_its_path(tmp_path: Path) -> None:
    """It would have become null."""
    text = HANDLERS + '[[workflows.w.jobs]]\nname = "x"\nhandler = "a"\nvars = { n = [1, nan] }\n'
    (fault,) = faults(tmp_path, text)
    assert "workflows.w.jobs[0].vars: n[1]: expected a number" in fault


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        (
            'steps = [{ name = "s", jobs = ["aa"] }]',
            ["a handler that is configured", '"aa"', 'nearest is "a"'],
        ),
        ('steps = [{ name = "s", jobs = [] }]', ["at least one"]),
        ('steps = [{ jobs = ["a"] }]', ["expected a name"]),
        ('steps = [{ name = "s", jobs = ["a"] }, { name = "s", jobs = ["a"] }]', ["a name of its own"]),
        ('steps = [{ name = "s", jobs = ["a"], needs = ["b"] }]', ["unknown"]),
        ('steps = ["a"]', ["steps[0]", "expected a table"]),
        ("jobs = []", ["at least one"]),
        ('jobs = [{ name = "x", handler = "a" }, { name = "x", handler = "b" }]', ["jobs[1]", "of its own"]),
        (
            'jobs = [{ name = "x#2", handler = "a" }]\nfinally = [{ name = "x", handler = "b" }]',
            ["later run of finally", '"x#2" beside "x"'],
        ),
        ('jobs = [{ name = "x" }]', ["jobs[0].handler"]),
        ('jobs = [{ name = "x", handler = "a", needs = ["y"] }]', ["jobs[0].needs", '"y"']),
        ('jobs = [{ name = "x", handler = "a", needs = ["x"] }]', ["cycles", '"x" needs "x"']),
        (
            'jobs = [{ name = "x", handler = "a", needs = ["y"] },'
            ' { name = "y", handler = "a", needs = ["x"] }, { name = "z", handler = "a", needs = ["y"] }]',
            ["cycles", '"x" needs "y" needs "x"', "unreachable", '"z"'],
        ),
        ('jobs = [{ name = "x", handler = "a" }]\nsteps = [{ name = "s", jobs = ["a"] }]', ["got both"]),
        ('steps = [{ name = "s", jobs = ["a"] }]\ncron = "x"', ["cron expression"]),
    ],
)
def test_workflows_that_cannot_run(tmp_path: Path, workflow: str, words: list[str]) -> None:
    """Cycles, unknown names and unreachable jobs are faults that name them."""
    message = "\n".join(faults(tmp_path, HANDLERS + f"[workflows.w]\n{workflow}\n"))
    for word in words:
        assert word in message


# -- arbitrary input


def _trees() -> Any:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    names = st.sampled_from(
        [
            *TABLES,
            *HANDLER_KEYS,
            *POOL_KEYS,
            *(k for section in SECTIONS.values() for k in keys_of(section)),
            "a",
        ]
    )
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4)
    )


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(TABLES),
        st.dictionaries(st.sampled_from(["a", "url", "batch", "cron"]), _trees()) | _trees(),
    )
)
def test_no_input_brings_it_down(tree: dict[str, Any]) -> None:
    """Every file content gives a configuration or a list of errors."""
    merged = ConfigTree()
    merged.add("file", tree)
    try:
        answer: object = build(merged, ConfigErrors())
    except ConfigError as error:
        answer = error.errors
    assert answer


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """The system's error for the file is passed on."""
    file = tmp_path / "workerd.toml"
    file.symlink_to(tmp_path / "workerd.toml")
    with pytest.raises(ConfigError):
        load(file, {})


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:s3cret@h/d?ssl=foo",
        "mysql://u:s3cret@h/d?bogus=1",
        "mysql://u:s3cret@h/d/more",
        "mysql://u:s3cret@h/d#fragment",
        "sqlite:///relative.db",
    ],
)
def test_a_store_url_that_the_store_would_refuse_is_a_configuration_error(tmp_path: Path, url: str) -> None:
    """Found with all other errors, before anything starts; the password is not shown."""
    file = tmp_path / "workerd.toml"
    file.write_text(f'[store]\nurl = "{url}"\n[ingester]\nbatch = 0\n')
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    first, second = sorted(caught.value.errors, reverse=True)
    assert first.startswith(f'{file}: store.url: expected "mysql://')
    assert "ingester.batch: expected a whole number" in second
    assert "s3cret" not in str(caught.value)


def test_around_of_a_pool_is_outside_of_its_handlers_own(tmp_path: Path) -> None:
    """Also where they share the pool; the default holds where neither says anything."""
    text = (
        'defaults = { around = ["d:d"] }\n'
        '[handlers.a]\ncall = "os:getpid"\npool = "p"\naround = ["a:a", "a:b"]\n'
        '[handlers.b]\ncall = "os:getpid"\npool = "p"\n'
        '[handlers.c]\ncall = "os:getpid"\n'
        '[handlers.d]\ncall = "os:getpid"\naround = []\n'
    )
    for pool, expected in (
        ("", [("a:a", "a:b"), ("d:d",), ("d:d",), ()]),
        ('[pools.p]\naround = ["p:p"]\n', [("p:p", "a:a", "a:b"), ("p:p",), ("d:d",), ()]),
    ):
        config = configured(tmp_path, text + pool)
        entered = [config.pools[h.pool].around + h.around for h in config.handlers.values()]
        assert entered == expected
    assert "references" in faults(tmp_path, HANDLERS + 'around = "os:getpid"\n')[0]
