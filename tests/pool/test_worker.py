"""A worker: one job at a time, in a process that is put in order before each."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.eventually import eventually
from tests.support.worker import Worker, pool_of
from workerd.pool.shared import DUMP_SIGNAL, SOFT_SIGNAL

FACES = "tests.support.faces"


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts workers whose handlers are faces, by their names there, and ends them."""
    workers: list[Worker] = []

    def start(*names: str, preload: bool = True, **keys: Any) -> Worker:
        calls = {name: f"{FACES}:{name}" for name in names}
        if "init" in keys:
            keys["init"] = f"{FACES}:{keys['init']}"
        workers.append(Worker(pool_of("test", **calls, **keys), preload=preload))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


# -- beginning and end


def test_a_job_is_run_and_its_ending_told(started: Any) -> None:
    """The payload comes back, with what the run used."""
    worker = started("add")
    ending = worker.run("add", {"a": 2})
    assert (ending.kind, ending.payload, ending.payload_type) == ("returned", b"3", "json")
    assert ending.usage.run_us is not None
    assert ending.usage.run_us >= 0
    assert ending.usage.max_rss_kib > 1000
    assert worker.run("add", {"a": 2, "b": 5}).payload == b"7"
    assert worker.loaded.specs is None


def test_what_it_closes_does_not_undo_a_run_that_has_ended(started: Any) -> None:
    """Its ending is told although nobody can see any more what it printed."""
    ending = started("closes_pipes").run("closes_pipes")
    assert (ending.kind, ending.payload) == ("returned", b'"closed"')


def test_a_worker_that_imports_for_itself_tells_what_it_found(started: Any) -> None:
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
def test_a_worker_that_cannot_begin_says_why(
    started: Any, names: list[str], keys: dict[str, Any], words: list[str]
) -> None:
    """It ends with the exit status for that, after a message."""
    worker = started(*names, **keys)
    assert all(word in worker.loaded.error for word in words)
    assert worker.status() == 78


def test_init_runs_once_before_the_first_job_and_its_signals_stay(started: Any) -> None:
    """What init sets up belongs to the worker, not to a job."""
    worker = started("what_was_seen", "keeps_sigusr2_ignored", init="init")
    assert worker.run("what_was_seen").payload == b'["init"]'
    assert worker.run("what_was_seen").payload == b'["init"]'
    assert worker.run("keeps_sigusr2_ignored").payload == b"true"


def test_the_end_of_the_channel_is_the_end_of_the_worker(started: Any) -> None:
    """An idle worker ends by itself, without an error."""
    worker = started("nothing")
    worker.run("nothing")
    worker.hang_up()
    assert worker.status() == 0


def test_signals_that_are_meant_for_the_daemon_end_no_job(started: Any) -> None:
    """A service manager that signals the whole group must not kill what drains."""
    worker = started("stops")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        worker.assign("stops")
        eventually(lambda: worker.receive().note == "begun")
        worker.signal(signum)
        worker.flags.set_stopping(True)
        ending = worker.ending()
        assert (ending.kind, ending.payload) == ("returned", b'"stopped"')
        worker.flags.set_stopping(False)


# -- deadlines


@pytest.mark.parametrize("name", ["spins", "sleeps", "backtracks", "sleeps_async", "spins_async"])
def test_the_soft_deadline_is_raised_in_user_code(started: Any, name: str) -> None:
    """In a Python loop, in a system call, in C code that looks at signals, in asyncio."""
    worker = started(name, "nothing")
    worker.assign(name, deadline=0.05)
    press(worker)
    ending = worker.ending()
    assert (ending.kind, ending.tainted) == ("deadline", True)
    assert ending.error == "DeadlineExceeded: the deadline of 0.05 s has passed"
    assert f"in {name}" in ending.stack
    assert "workerd/pool" not in ending.stack
    assert worker.run("nothing").tainted is False


def press(worker: Worker, every: int = 20) -> None:
    """Signal as the pool does, every so many milliseconds, until something can be read."""
    poll = select.poll()
    poll.register(worker.sock, select.POLLIN)
    while True:
        worker.signal(SOFT_SIGNAL)
        if poll.poll(every):
            return


def test_a_deadline_that_was_swallowed_is_raised_again(started: Any, tmp_path: Path) -> None:
    """The signal comes again, and finds nobody who is cleaning up."""
    worker = started("swallows_once")
    worker.assign("swallows_once", {"path": str(tmp_path / "once")}, deadline=0.01)
    press(worker)
    assert worker.ending().kind == "deadline"
    assert (tmp_path / "once").exists()


@pytest.mark.parametrize("name", ["cleans_up", "cleans_up_async"])
def test_cleaning_up_is_not_interrupted_again(started: Any, name: str) -> None:
    """The grace is for that: signals that come meanwhile raise nothing."""
    worker = started(name)
    worker.assign(name, deadline=0.01)
    press(worker)
    assert worker.receive().note == "cleaning"
    press(worker)
    ending = worker.ending()
    assert (ending.kind, ending.note) == ("deadline", "cleaned")


@pytest.mark.parametrize(
    ("name", "kind", "tainted"),
    [("answers_anyway", "returned", True), ("translates", "deadline", True), ("puts_off", "retry", True)],
)
def test_what_a_handler_makes_of_its_deadline(started: Any, name: str, kind: str, tainted: bool) -> None:
    """A result and a decision of its own count; another exception is still the deadline's."""
    worker = started(name)
    worker.assign(name, deadline=0.01)
    press(worker)
    ending = worker.ending()
    assert (ending.kind, ending.tainted) == (kind, tainted)


def test_a_cancel_is_raised_as_cancelled(started: Any) -> None:
    """By the same signal; the page says which."""
    worker = started("sleeps")
    worker.assign("sleeps")
    worker.flags.request_cancel()
    press(worker)
    ending = worker.ending()
    assert (ending.kind, ending.tainted) == ("cancelled", True)


def test_a_signal_for_a_run_that_is_over_does_no_harm(started: Any) -> None:
    """Neither between jobs nor in the next one, which has time left."""
    worker = started("nothing", "add")
    worker.assign("nothing", deadline=0.000001)
    worker.ending()
    for n in range(50):
        worker.signal(SOFT_SIGNAL)
        assert worker.run("add", {"a": n}, deadline=60).payload == str(n + 1).encode()


@pytest.mark.parametrize("name", ["nothing", "prints", "progresses", "later", "sleeps_async", "fails"])
def test_signals_at_any_moment_never_hit_the_workers_own_code(started: Any, name: str) -> None:
    """A flood of soft signals, with the time always over: each run ends one way or the other."""
    vars = {"prints": {"text": "x"}, "later": {"x": 1}, "fails": {"kind": "value"}}.get(name)
    worker = started(name)
    kinds = set()
    for _ in range(50):
        worker.assign(name, vars, deadline=1e-9)
        press(worker, every=1)
        kinds.add(worker.ending().kind)
    assert kinds <= {"returned", "raised", "deadline"}
    assert worker.child.reap() is None


def test_a_dump_shows_the_stack_of_code_that_looks_at_nothing(started: Any) -> None:
    """faulthandler needs neither the GIL nor the handler's consent."""
    worker = started("holds")
    worker.assign("holds")
    text = eventually(lambda: dumped(worker, "in holds"))
    assert FACES.replace(".", "/") in text


def dumped(worker: Worker, words: str) -> str:
    """Ask for a dump, and take what is there if it has the words."""
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
    """What the pool cannot ask for any more was written on the way."""
    worker = started("dies")
    worker.assign("dies", {"how": "segv"})
    worker.status()
    assert "in dies" in dump(worker)


# -- what a handler says


def test_output_is_there_before_the_ending(started: Any) -> None:
    """Also what had no newline at its end."""
    worker = started("prints", "prints_what_is_no_text")
    worker.run("prints", {"text": "no newline"})
    assert worker.printed() == "to stderr\nno newline"
    worker.run("prints_what_is_no_text")
    assert worker.printed() == "\\udcff and é\n"


def test_ctx_log_writes_a_line(started: Any) -> None:
    """Readable, with its fields."""
    worker = started("logs")
    worker.run("logs")
    assert worker.printed() == "warning: slow image  width=200 name='a b'\n"


def test_progress_is_told_now_and_then_and_at_the_end(started: Any) -> None:
    """A handler may call it at any rate; the last word goes with the ending."""
    worker = started("progresses")
    ending = worker.run("progresses")
    assert (ending.progress, ending.note) == (0.9999, "at 9999")
    assert 1 <= len(worker.progress) < 100
    assert worker.progress[0].progress == 0.0


def test_a_thread_that_outlives_its_job_disturbs_no_other(started: Any) -> None:
    """Its progress is not heard any more."""
    worker = started("leaves_a_thread", "add")
    worker.run("leaves_a_thread")
    told = len(worker.progress)
    for n in range(100):
        assert worker.run("add", {"a": n}).payload == str(n + 1).encode()
    assert len(worker.progress) == told


# -- what a handler does to its process


@pytest.mark.parametrize(
    "what",
    ["folder", "descriptors", "signals", "mask", "timer", "streams", "detach", "redirect"],
)
def test_the_process_is_put_in_order_before_each_job(started: Any, what: str) -> None:
    """Whatever the last job did, the next one finds what the first one found."""
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


def test_a_worker_looks_as_it_should(started: Any) -> None:
    """A session of its own, /dev/null and one pipe, nothing of the pool's in reach, its job in its title."""
    worker = started("state")
    worker.assign("state", id=bytes(range(16)))
    seen = msgspec.json.decode(worker.ending().payload)
    assert seen["leader"]
    assert seen["stdin"]
    assert seen["pipes"][0] == seen["pipes"][1] == os.fstat(worker.output).st_ino
    assert len(seen["low"]) <= 1  # the listing's own
    assert seen["inheritable"] == []
    assert seen["blocked"] == 0
    assert seen["title"] == "workerd: worker test/0 00010203-0405-0607-0809-0a0b0c0d0e0f"
    title = Path(f"/proc/{worker.child.pid}/cmdline")
    eventually(lambda: title.read_bytes().rstrip(b"\0") == b"workerd: worker test/0")


def test_a_forked_child_that_comes_back_does_not_answer_for_the_job(started: Any) -> None:
    """One job, one ending, though two processes return from the handler."""
    worker = started("forks_and_returns", "add")
    assert worker.run("forks_and_returns").payload == b'"parent"'
    assert worker.run("add", {"a": 1}).payload == b"2"


def test_a_forked_childs_progress_is_not_the_jobs(started: Any) -> None:
    """It would be written between the worker's own frames."""
    worker = started("forks_and_waits")
    assert worker.run("forks_and_waits").progress is None
    assert worker.progress == []


@pytest.mark.parametrize("how", ["subprocess", "multiprocessing"])
def test_children_can_be_terminated(started: Any, how: str) -> None:
    """That the worker does not listen to SIGTERM is not inherited."""
    assert started("terminates").run("terminates", {"how": how}).payload == b"-15"


def test_a_child_that_is_left_behind_does_not_hold_the_channel(started: Any) -> None:
    """The pool sees the end of the channel though the child lives on."""
    worker = started("leaves_a_child", "dies")
    child = int(worker.run("leaves_a_child").payload)
    worker.assign("dies", {"how": "exit"})
    assert worker.receive() is None
    assert worker.status() == 3
    os.kill(child, signal.SIGKILL)


def test_what_was_daemonized_belongs_to_its_worker(started: Any) -> None:
    """So that it is found and killed with the worker it came from."""
    worker = started("daemonizes")
    pid = int(worker.run("daemonizes").payload)
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"PPid:\t{worker.child.pid}\n" in status
    os.kill(pid, signal.SIGKILL)


# -- what it used


def test_memory_is_measured_for_each_job_alone(started: Any) -> None:
    """The peak is set back; a child's counts with the job that had it."""
    worker = started("uses", "nothing")
    low = worker.run("nothing").usage.max_rss_kib
    high = worker.run("uses", {"kib": 100_000, "burn": 0, "child": False}).usage.max_rss_kib
    assert high > low + 90_000
    assert worker.run("nothing").usage.max_rss_kib < low + 50_000


def test_cpu_time_of_children_is_counted(started: Any) -> None:
    """Of those that the job waited for."""
    worker = started("uses", "nothing")
    ending = worker.run("uses", {"kib": 1, "burn": 0.2, "child": True})
    assert ending.usage.cpu_us >= 200_000
    assert worker.run("nothing").usage.cpu_us < 100_000


# -- size


def test_large_vars_and_payloads_pass(started: Any) -> None:
    """A frame may be many times what one read or write takes."""
    worker = started("echo")
    vars = {"x": "y" * 3_000_000}
    sender = threading.Thread(target=worker.assign, args=("echo", vars), kwargs={"limit": 1 << 23})
    sender.start()
    sender.join()
    assert msgspec.json.decode(worker.ending().payload) == vars


def test_a_payload_over_the_limit_fails_the_job_and_names_both_numbers(started: Any) -> None:
    """It is never sent to anybody."""
    ending = started("large").run("large", {"size": 5000}, limit=4096)
    assert (ending.kind, ending.payload) == ("failure", None)
    assert "5000 bytes" in ending.error
    assert "4096 (4KiB)" in ending.error
