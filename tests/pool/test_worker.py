"""A worker process: one job at a time, reset before each."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.eventually import eventually
from tests.support.worker import Worker, pool_of
from workerd.pool.shared import DUMP_SIGNAL, NO_END_NS, SOFT_SIGNAL
from workerd.pool.worker_messages import Kept, LogRecord, Saved, Unstarted
from workerd.runtime.child import children_of
from workerd.runtime.log_frames import FrameReader

HANDLERS = "tests.pool.handlers.worker_handlers"


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts workers with handlers of tests.pool.handlers.worker_handlers, and kills them at the end."""
    workers: list[Worker] = []

    def start(*names: str, preload: bool = True, **keys: Any) -> Worker:
        calls = {name: f"{HANDLERS}:{name}" for name in names}
        for key in keys.keys() & {"init", "setup"}:
            keys[key] = f"{HANDLERS}:{keys[key]}"
        if "around" in keys:
            keys["around"] = tuple(f"{HANDLERS}:{name}" for name in keys["around"])
        workers.append(Worker(pool_of("test", **calls, **keys), preload=preload))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


# -- beginning and end


def test_a_job_is_run_and_its_result_sent(started: Any) -> None:
    """With what the run used."""
    worker = started("add")
    result = worker.run("add", {"a": 2})
    assert (result.kind, result.payload, result.payload_type) == ("returned", b"3", "json")
    assert result.usage.run_us is not None
    assert result.usage.run_us >= 0
    assert result.usage.max_rss_kib > 1000
    assert worker.run("add", {"a": 2, "b": 5}).payload == b"7"
    assert worker.loaded.specs is None


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_job_that_was_queued_does_not_begin_after_the_lease(started: Any, size: int) -> None:
    """The worker gives it back, also one that came over the channel, and goes on with the next in time."""
    worker = started("add")
    worker.flags.set_start_until(time.monotonic_ns())
    worker.assign("add", {"a": 2}, params=b" " * size)
    assert worker.receive() == Unstarted(worker.serial)
    assert worker.flags.started == 0
    worker.flags.set_start_until(NO_END_NS)
    assert worker.run("add", {"a": 2}).payload == b"3"


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_job_of_a_lease_that_was_lost_does_not_begin_under_the_next(started: Any, size: int) -> None:
    """Another node may have run it in between."""
    worker = started("add")
    worker.flags.set_first_serial(worker.serial + 2)
    worker.assign("add", {"a": 2}, params=b" " * size)
    assert worker.receive() == Unstarted(worker.serial)
    assert worker.flags.started == 0
    assert worker.run("add", {"a": 2}).payload == b"3"


def test_a_job_that_closes_its_output_has_a_result(started: Any) -> None:
    """Although its output can no longer be read."""
    result = started("closes_pipes").run("closes_pipes")
    assert (result.kind, result.payload) == ("returned", b'"closed"')


def test_a_worker_that_imports_handlers_sends_their_specs(started: Any) -> None:
    """With preload = false the pool learns options and signatures from it."""
    worker = started("decorated", preload=False)
    (spec,) = worker.loaded.specs
    assert spec.name == "decorated"
    assert spec.options["deadline"] == 30
    assert spec.aliases["json.JSONDecodeError"] == "json.decoder.JSONDecodeError"
    assert b'"x"' in spec.signature
    assert worker.run("decorated", {"x": 1}).payload == b"1"


@pytest.mark.parametrize(
    ("names", "keys", "words"),
    [
        (["nowhere"], {"preload": False}, ["nowhere", "has no nowhere"]),
        (["generator"], {"preload": False}, ["generator function"]),
        (["nothing"], {"init": "bad_init"}, ["init failed", "no database here", "bad_init"]),
        (["Broken"], {}, ["Broken", "no instance today"]),
    ],
)
def test_a_worker_that_is_not_ready_sends_the_reason(
    started: Any, names: list[str], keys: dict[str, Any], words: list[str]
) -> None:
    """And exits with the status for that."""
    worker = started(*names, **keys)
    assert all(word in worker.loaded.error for word in words)
    assert worker.status() == 78


def test_init_runs_once_and_its_signal_handlers_stay(started: Any) -> None:
    """They belong to the worker, not to a job."""
    worker = started("get_seen", "keeps_sigusr2_ignored", init="init")
    assert worker.run("get_seen").payload == b'["init"]'
    assert worker.run("get_seen").payload == b'["init"]'
    assert worker.run("keeps_sigusr2_ignored").payload == b"true"


@pytest.mark.parametrize("preload", [True, False])
def test_setup_runs_before_and_around_encloses_each_run(started: Any, preload: bool) -> None:
    """Also when the handler fails; and setup runs once."""
    worker = started("get_steps", "fails", preload=preload, setup="set_up", around=["around", "around_it"])
    before = msgspec.json.decode(worker.run("get_steps").payload)
    assert before[-4:] == ["setup", "in", "call", "out"]
    assert worker.run("fails", {"kind": "value"}).kind == "raised"
    assert msgspec.json.decode(worker.run("get_steps").payload) == [
        *before, "in", "call", "out", "in", "call", "out",
    ]  # fmt: skip


def test_a_function_around_a_run_is_inside_its_deadline(started: Any) -> None:
    """It is interrupted as the handler is."""
    worker = started("nothing", around=["around_and_slow"])
    worker.assign("nothing", deadline=0.05)
    press(worker)
    result = worker.result()
    assert (result.kind, result.tainted) == ("deadline", True)
    assert "in around_and_slow" in result.stack


@pytest.mark.parametrize("name", ["sleeps", "spins", "sleeps_async", "cleans_up_async"])
def test_the_deadline_is_raised_in_a_handler_inside_of_others(started: Any, name: str) -> None:
    """The functions around it see it pass."""
    worker = started(name, "get_steps", around=["around", "around_it"])
    worker.assign(name, deadline=0.05)
    press(worker)
    if name == "cleans_up_async":
        assert worker.receive().note == "cleaning"
    result = worker.result()
    assert (result.kind, result.tainted) == ("deadline", True)


def test_an_idle_worker_exits_at_end_of_file(started: Any) -> None:
    """With status 0."""
    worker = started("nothing")
    worker.run("nothing")
    worker.disconnect()
    assert worker.status() == 0


def test_signals_for_the_daemon_end_no_job(started: Any) -> None:
    """A service manager may signal the whole group."""
    worker = started("stops")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        worker.assign("stops")
        eventually(lambda: worker.receive().note == "started")
        worker.signal(signum)
        worker.flags.set_stopping(True)
        result = worker.result()
        assert (result.kind, result.payload) == ("returned", b'"stopped"')
        worker.flags.set_stopping(False)


# -- saving


def leave_a_save(worker: Worker) -> Saved:
    """Run a job that returns while a thread of it waits for a save."""
    worker.assign("leaves_a_save")
    saved = worker.receive()
    assert isinstance(saved, Saved)
    assert saved.wait
    worker.flags.set_stopping(True)
    assert worker.result().payload == b'"left"'
    worker.flags.set_stopping(False)
    return saved


@pytest.mark.parametrize("answered", [False, True])
def test_a_save_that_its_run_left_waiting_delays_no_later_one(started: Any, answered: bool) -> None:
    """It raises when the run ends; an answer that comes after that is nobody's."""
    worker = started("leaves_a_save", "saves", "get_seen")
    left = leave_a_save(worker)
    if answered:
        worker.send(Kept(left.number))
    worker.assign("saves", {"value": 2})
    saved = worker.receive()
    assert isinstance(saved, Saved)
    assert (saved.serial, saved.number) == (worker.serial, left.number + 1)
    worker.send(Kept(saved.number))
    assert worker.result().payload == b'"saved"'
    assert b"only until that ends" in worker.run("get_seen").payload


def test_a_save_that_its_run_left_waiting_takes_no_assignment(started: Any) -> None:
    """One that comes over the channel, as its answer would, behind that answer or without."""
    worker = started("leaves_a_save", "echo")
    for _ in range(20):
        left = leave_a_save(worker)
        worker.send(Kept(left.number))
        assert worker.run("echo", {"x": "y" * 60_000}).kind == "returned"
        leave_a_save(worker)
        assert worker.run("echo", {"x": "y" * 60_000}).kind == "returned"


# -- deadlines


@pytest.mark.parametrize("name", ["spins", "sleeps", "backtracks", "sleeps_async", "spins_async"])
def test_the_soft_deadline_is_raised_in_user_code(started: Any, name: str) -> None:
    """In a Python loop, a system call, C code that checks signals, asyncio."""
    worker = started(name, "nothing")
    worker.assign(name, deadline=0.05)
    press(worker)
    result = worker.result()
    assert (result.kind, result.tainted) == ("deadline", True)
    assert result.error == "DeadlineExceeded: the deadline of 0.05 s has passed"
    assert f"in {name}" in result.stack
    assert "workerd/pool" not in result.stack
    assert worker.run("nothing").tainted is False


def press(worker: Worker, every: int = 20) -> None:
    """Send the soft signal every so many milliseconds, until the worker has sent something.

    Its output is read meanwhile, since a result waits for that.
    """
    poll = select.poll()
    poll.register(worker.sock, select.POLLIN)
    while True:
        worker.signal(SOFT_SIGNAL)
        if poll.poll(every):
            return
        worker.printed()


def test_a_swallowed_deadline_is_raised_again(started: Any, tmp_path: Path) -> None:
    """At the next signal that finds no cleanup in progress."""
    worker = started("swallows_once")
    worker.assign("swallows_once", {"path": str(tmp_path / "once")}, deadline=0.01)
    press(worker)
    assert worker.result().kind == "deadline"
    assert (tmp_path / "once").exists()


@pytest.mark.parametrize("name", ["cleans_up", "cleans_up_async"])
def test_cleanup_is_not_interrupted(started: Any, name: str) -> None:
    """Signals that arrive meanwhile raise nothing."""
    worker = started(name)
    worker.assign(name, deadline=0.01)
    eventually(lambda: "begun" in worker.printed())
    press(worker)
    assert worker.receive().note == "cleaning"
    press(worker)
    result = worker.result()
    assert (result.kind, result.note) == ("deadline", "cleaned")


@pytest.mark.parametrize(
    ("name", "kind", "tainted"),
    [("answers_anyway", "returned", True), ("translates", "deadline", True), ("puts_off", "retry", True)],
)
def test_a_handler_may_decide_at_its_deadline(started: Any, name: str, kind: str, tainted: bool) -> None:
    """A return value and Retry count; another exception is still the deadline's."""
    worker = started(name)
    worker.assign(name, deadline=0.01)
    press(worker)
    result = worker.result()
    assert (result.kind, result.tainted) == (kind, tainted)


def test_a_cancel_is_raised_as_cancelled(started: Any) -> None:
    """By the same signal; the flags distinguish them."""
    worker = started("sleeps")
    worker.assign("sleeps")
    worker.flags.request_cancel()
    press(worker)
    result = worker.result()
    assert (result.kind, result.tainted) == ("cancelled", True)


def test_a_late_signal_does_no_harm(started: Any) -> None:
    """Neither between jobs nor in the next one."""
    worker = started("nothing", "add")
    worker.assign("nothing", deadline=0.000001)
    worker.result()
    for n in range(50):
        worker.signal(SOFT_SIGNAL)
        assert worker.run("add", {"a": n}, deadline=60).payload == str(n + 1).encode()


@pytest.mark.parametrize("name", ["nothing", "prints", "progresses", "later", "sleeps_async", "fails"])
def test_signals_never_interrupt_the_workers_own_code(started: Any, name: str) -> None:
    """Under a flood of soft signals after the deadline every run has a result."""
    vars = {"prints": {"text": "x"}, "later": {"x": 1}, "fails": {"kind": "value"}}.get(name)
    worker = started(name)
    kinds = set()
    for _ in range(50):
        worker.assign(name, vars, deadline=1e-9)
        press(worker, every=1)
        kinds.add(worker.result().kind)
    assert kinds <= {"returned", "raised", "deadline"}
    assert worker.child.reap() is None


def test_a_dump_shows_the_stack_of_uninterruptible_code(started: Any) -> None:
    """faulthandler does not need the GIL."""
    worker = started("holds")
    worker.assign("holds")
    text = eventually(lambda: dumped(worker, "in holds"))
    assert HANDLERS.replace(".", "/") in text


def dumped(worker: Worker, words: str) -> str:
    """Request a stack dump; returns it if it contains the words."""
    worker.signal(DUMP_SIGNAL)
    return dump(worker) if words in dump(worker) else ""


def dump(worker: Worker) -> str:
    return os.pread(worker.dump, 1 << 16, 0).decode()


# -- dying


@pytest.mark.parametrize(("how", "status"), [("exit", 3), ("kill", -9), ("segv", -11)])
def test_a_handler_that_kills_its_process(started: Any, how: str, status: int) -> None:
    """The wait status is the handler's."""
    worker = started("dies")
    worker.assign("dies", {"how": how})
    assert worker.receive() is None
    assert worker.status() == status


def test_a_crash_leaves_its_stack(started: Any) -> None:
    """Written by faulthandler during the crash."""
    worker = started("dies")
    worker.assign("dies", {"how": "segv"})
    worker.status()
    assert "in dies" in dump(worker)


# -- output, log and progress


def test_output_is_written_before_the_result(started: Any) -> None:
    """An unfinished line too."""
    worker = started("prints", "prints_what_is_no_text")
    worker.run("prints", {"text": "no newline"})
    assert worker.printed() == "to stderr\nno newline"
    worker.run("prints_what_is_no_text")
    assert worker.printed() == "\\udcff and é\n"


def test_ctx_log_sends_a_record(started: Any) -> None:
    """Its level, its text and its fields, with the number of the run."""
    worker = started("logs")
    worker.run("logs")
    ((data, is_record),) = FrameReader().split(worker.printed().encode())
    record = msgspec.json.decode(data, type=LogRecord)
    assert is_record
    assert record == LogRecord("warning", "slow image", worker.serial, {"width": 200, "name": "a b"})


def test_progress_is_sent_now_and_then_and_with_the_result(started: Any) -> None:
    """A handler may call it at any rate."""
    worker = started("progresses")
    result = worker.run("progresses")
    assert (result.progress, result.note) == (0.9999, "at 9999")
    assert 1 <= len(worker.progress) < 100
    assert worker.progress[0].progress == 0.0


def test_progress_of_a_thread_that_outlives_its_job_is_ignored(started: Any) -> None:
    """It does not disturb later jobs."""
    worker = started("leaves_a_thread", "add")
    worker.run("leaves_a_thread")
    sent = len(worker.progress)
    for n in range(100):
        assert worker.run("add", {"a": n}).payload == str(n + 1).encode()
    assert len(worker.progress) == sent


# -- what a handler does to its process


@pytest.mark.parametrize(
    "what",
    [
        "folder",
        "descriptors",
        "signals",
        "mask",
        "timer",
        "streams",
        "detach",
        "redirect",
        "environment",
        "replaced environment",
        "zone",
        "umask",
        "niceness",
        "locale",
        "limits",
        "timeout",
    ],
)
def test_the_process_is_reset_before_each_job(started: Any, what: str) -> None:
    """Whatever the last job did, the next one finds the initial state."""
    worker = started("wrecks", "state", "prints", "holds")
    before = msgspec.json.decode(worker.run("state").payload)
    worker.printed()
    assert worker.run("wrecks", {"what": what}).kind == "returned"
    after = msgspec.json.decode(worker.run("state").payload)
    before.pop("title")
    after.pop("title")
    assert after == before
    worker.run("prints", {"text": "heard\n"})
    assert worker.printed() == "to stderr\nheard\n"
    worker.assign("holds")
    eventually(lambda: dumped(worker, "in holds"))


def test_what_cannot_be_put_back_costs_the_worker(started: Any) -> None:
    """It is replaced, as no job may find what another has changed."""
    worker = started("lowers_a_hard_limit", "nothing", init="drop_privileges")
    assert worker.run("nothing").tainted is False
    assert worker.run("lowers_a_hard_limit").tainted is True


def test_exit_functions_run_at_end_of_file(started: Any, tmp_path: Path) -> None:
    """Those that jobs, `init` and imports registered; what they print is output."""
    worker = started("registers_at_exit")
    worker.run("registers_at_exit", {"path": str(tmp_path / "left")})
    worker.disconnect()
    assert worker.status() == 0
    assert (tmp_path / "left").exists()
    assert worker.printed() == "leaving\n"


def test_a_worker_has_its_own_session_output_and_title(started: Any) -> None:
    """And no descriptor of the pool within reach."""
    worker = started("state")
    worker.assign("state", id=bytes(range(16)))
    seen = msgspec.json.decode(worker.result().payload)
    assert seen["leader"]
    assert seen["stdin"]
    assert seen["pipes"][0] == seen["pipes"][1] == os.fstat(worker.output).st_ino
    assert len(seen["low"]) <= 1  # the listing's own
    assert seen["inheritable"] == []
    assert seen["blocked"] == 0
    assert seen["title"] == "workerd: worker test/0 00010203-0405-0607-0809-0a0b0c0d0e0f"
    title = Path(f"/proc/{worker.child.pid}/cmdline")
    eventually(lambda: title.read_bytes().rstrip(b"\0") == b"workerd: worker test/0")


def test_a_forked_child_that_returns_sends_no_result(started: Any) -> None:
    """One job, one result."""
    worker = started("forks_and_returns", "add")
    assert worker.run("forks_and_returns").payload == b'"parent"'
    assert worker.run("add", {"a": 1}).payload == b"2"


def test_progress_of_a_forked_child_is_ignored(started: Any) -> None:
    """It would be written between the worker's own frames."""
    worker = started("forks_and_waits")
    assert worker.run("forks_and_waits").progress is None
    assert worker.progress == []


@pytest.mark.parametrize("how", ["subprocess", "multiprocessing"])
def test_children_of_a_handler_can_be_terminated(started: Any, how: str) -> None:
    """That the worker ignores SIGTERM is not inherited."""
    assert started("terminates").run("terminates", {"how": how}).payload == b"-15"


def test_an_orphaned_child_does_not_keep_the_channel_open(started: Any) -> None:
    """The pool reads end of file though the child of a worker that died lives on."""
    worker = started("leaves_a_child_and_dies")
    worker.assign("leaves_a_child_and_dies")
    assert worker.receive() is None
    assert worker.status() == 3


# -- processes that a run started


@pytest.mark.parametrize("name", ["leaves_a_child", "daemonizes"])
def test_a_process_that_a_run_left_ends_with_it(started: Any, name: str) -> None:
    """Detached or not, and it is reaped."""
    worker = started(name, "nothing")
    pid = int(worker.run(name).payload)
    assert not os.path.exists(f"/proc/{pid}")
    assert worker.run("nothing").kind == "returned"


def test_children_of_a_run_that_failed_end_with_it(started: Any) -> None:
    """Before the result is sent, so that they take no place of the next attempt."""
    worker = started("leaves_many_and_fails")
    pids = worker.run("leaves_many_and_fails", {"count": 50}).error.removeprefix("ValueError: ").split()
    assert len(pids) == 50
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_what_init_started_lives_on_and_is_reaped_when_it_is_dead(started: Any) -> None:
    """Also while the worker is idle."""
    worker = started("nothing", "helper_lives", init="start_helper")
    eventually(lambda: len(children_of(worker.child.pid)) == 1)
    assert worker.run("helper_lives").payload == b"true"


def test_a_run_can_wait_for_a_process_of_an_earlier_run(started: Any) -> None:
    """Its status was kept for it when it was reaped."""
    worker = started("starts_what_fails", "waits_for_what_failed")
    worker.run("starts_what_fails")
    assert children_of(worker.child.pid) == []
    assert worker.run("waits_for_what_failed").payload == b"3"


# -- resource usage


def test_peak_memory_is_measured_per_job(started: Any) -> None:
    """That of children too."""
    worker = started("uses", "nothing")
    low = worker.run("nothing").usage.max_rss_kib
    high = worker.run("uses", {"kib": 100_000, "burn": 0, "child": False}).usage.max_rss_kib
    assert high > low + 90_000
    assert worker.run("nothing").usage.max_rss_kib < low + 50_000


def test_cpu_time_of_children_is_counted(started: Any) -> None:
    """Of those that the job waited for."""
    worker = started("uses", "nothing")
    result = worker.run("uses", {"kib": 1, "burn": 0.2, "child": True})
    assert result.usage.cpu_us >= 200_000
    assert worker.run("nothing").usage.cpu_us < 100_000


# -- size


def test_large_vars_and_payloads_pass(started: Any) -> None:
    """A frame may be many times what one read or write takes."""
    worker = started("echo")
    vars = {"x": "y" * 3_000_000}
    sender = threading.Thread(target=worker.assign, args=("echo", vars), kwargs={"limit": 1 << 23})
    sender.start()
    sender.join()
    assert msgspec.json.decode(worker.result().payload) == vars


def test_a_payload_over_the_limit_is_a_failure_naming_size_and_limit(started: Any) -> None:
    """It is not sent."""
    result = started("large").run("large", {"size": 5000}, limit=4096)
    assert (result.kind, result.payload) == ("failure", None)
    assert "5000 bytes" in result.error
    assert "4096 (4KiB)" in result.error
