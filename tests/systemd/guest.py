"""The checks, run by systemd as root inside the guest; prints `ok` or `NOT ok` for each."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from eventually import eventually

CONFIG = """
[gateway]
listen = ""
[shutdown]
drain = "20s"
[defaults]
path = ["/srv/app"]
max_attempts = 1
max_crashes = 1
[handlers.add]
call = "guest_handlers:add"
[handlers.slow]
call = "guest_handlers:slow"
workers = 2
[handlers.fail]
call = "guest_handlers:fail"
[handlers.which]
call = "guest_handlers:which"
[handlers.tick]
call = "guest_handlers:which"
cron = "* * * * * *"
misfire = "all"
[handlers.secret]
call = "guest_handlers:read_credential"
[handlers.broken]
call = "guest_handlers:missing"
[handlers.greedy]
call = "guest_handlers:greedy"
memory_max = "64MiB"
[handlers.talk]
call = "guest_handlers:print_and_log"
[handlers.forks]
call = "guest_handlers:fork_until_refused"
pids_max = 20
[handlers.light]
call = "guest_handlers:spin"
cpu_weight = 20
[handlers.heavy]
call = "guest_handlers:spin"
cpu_weight = 200
[handlers.hang]
call = "guest_handlers:hang"
deadline = "1s"
grace = "500ms"
"""

failures: list[str] = []


def section(title: str) -> None:
    print(f"\n-- {title}", flush=True)


def check(expectation: str, passed: object) -> None:
    """Print whether the expectation holds and collect failures."""
    print(f"{'ok' if passed else 'NOT ok'}: {expectation}", flush=True)
    if not passed:
        failures.append(expectation)


def run(*argv: str, limit: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command in the guest; its output is text."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=limit, check=False)


def workerd(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run workerd as the service's user."""
    return run("runuser", "-u", "workerd", "--", "/usr/bin/workerd", *argv)


def job(handler: str, *args: str) -> str:
    """Enqueue a job; return its id."""
    made = workerd("enqueue", handler, *args)
    if made.returncode:
        print(made.stderr)
    return made.stdout.strip()


def shown(job_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(workerd("job", "show", job_id, "--json").stdout or "{}")
    return found


def ended(job_id: str) -> dict[str, object]:
    """Wait until the job has ended; return its document."""
    wait(lambda: shown(job_id).get("complete"), 60)
    return shown(job_id)


def prop(name: str) -> str:
    return run("systemctl", "show", "-P", name, "workerd").stdout.strip()


def group() -> Path:
    """Return the service's cgroup v2 folder."""
    below = "system.slice/workerd.service"
    both = (Path("/sys/fs/cgroup", below), Path("/sys/fs/cgroup/unified", below))
    return next((path for path in both if (path / "cgroup.procs").exists()), both[0])


def logged(job_id: str) -> list[dict[str, object]]:
    """Return the journal entries of a job."""
    text = run("journalctl", "--no-pager", "-o", "json", f"JOB_ID={job_id}").stdout
    return [json.loads(line) for line in text.splitlines()]


def quarantined_pools() -> list[str]:
    pools = json.loads(workerd("status", "--json").stdout or "{}").get("pools", {})
    return [name for name, pool in pools.items() if pool["quarantined"]]


def wait(fact: Callable[[], object], limit: float) -> bool:
    """Whether the fact became true within `limit` seconds."""
    try:
        return bool(eventually(fact, within=limit, every=0.1))
    except AssertionError:
        return False


def package() -> None:
    section("package")
    made = run("dpkg", "-i", "/share/workerd.deb")
    check("dpkg installs it", made.returncode == 0)
    if made.returncode:
        print(made.stdout, made.stderr)
    check("the user exists", run("id", "workerd").returncode == 0)
    Path("/srv/app").mkdir(parents=True)
    shutil.copy("/share/guest_handlers.py", "/srv/app/guest_handlers.py")
    Path("/etc/workerd/conf.d/test.toml").write_text(CONFIG)
    Path("/etc/workerd/store-password").write_text("hunter2\n")
    Path("/etc/workerd/store-password").chmod(0o600)
    verify = run("systemd-analyze", "verify", "workerd.service")
    complaints = [line for line in verify.stderr.splitlines() if "workerd" in line]
    check(f"systemd-analyze verify reports nothing: {complaints}", not complaints)
    security = run("systemd-analyze", "security", "--no-pager", "workerd.service").stdout
    score = re.search(r"exposure level for workerd.service: ([0-9.]+)", security)
    check(
        f"systemd-analyze security exposure is at most 2.0: {score and score[1]}",
        score and float(score[1]) <= 2.0,
    )
    checked = workerd("check")
    check("workerd check exits with 1 for a handler that does not load", checked.returncode == 1)
    print(checked.stdout + checked.stderr)


def start() -> None:
    section("start")
    started = time.monotonic()
    check("systemctl start", run("systemctl", "enable", "--now", "workerd").returncode == 0)
    check(f"READY after {time.monotonic() - started:.1f} s", prop("ActiveState") == "active")
    print(run("systemctl", "status", "--no-pager", "--lines=0", "workerd").stdout)
    made = workerd("enqueue", "add", "a=40", "b=2", "--wait", "60s")
    check(f"a job runs: 40 + 2 = {made.stdout.strip()} {made.stderr.strip()}", made.stdout.strip() == "42")
    done = ended(job("secret"))
    check("the password arrives through LoadCredential=", done.get("payload") == "hunter2")
    check("the password is not in the log", "hunter2" not in run("journalctl", "-u", "workerd").stdout)
    check(
        "only the broken handler's pool is quarantined", wait(lambda: quarantined_pools() == ["broken"], 60)
    )
    check(f"STATUS is set: {prop('StatusText')}", prop("StatusText"))


def words(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split()}


def journal() -> None:
    section("logs")
    job_id = job("fail")
    ended(job_id)
    found = logged(job_id)
    check("journalctl JOB_ID=… finds the failed job", found)
    fields = [(line.get("HANDLER"), line.get("ATTEMPT")) for line in found]
    check(f"its entries have handler and attempt: {fields}", ("fail", "1") in fields)
    job_id = job("talk")
    ended(job_id)
    messages = [str(line.get("MESSAGE")) for line in logged(job_id)]
    check(
        f"the journal has what a handler printed and logged: {messages}",
        {"printed", "logged"} <= words(messages),
    )


def reload() -> None:
    section("reload")
    extra = Path("/etc/workerd/conf.d/more.toml")
    extra.write_text('[handlers.multiply]\ncall = "guest_handlers:multiply"\n')
    without = CONFIG.replace('[handlers.broken]\ncall = "guest_handlers:missing"\n', "")
    Path("/etc/workerd/conf.d/test.toml").write_text(without)
    pid = prop("MainPID")
    done = run("systemctl", "reload", "workerd")
    check(f"systemctl reload {done.stderr.strip()}", done.returncode == 0)
    made = workerd("enqueue", "multiply", "a=6", "b=7", "--wait", "60s")
    check(f"a new handler runs: 6 × 7 = {made.stdout.strip()}", made.stdout.strip() == "42")
    extra.write_text('[handlers.multiply]\ncall = "guest_handlers:multiply"\nworkers = "many"\n')
    refused = run("systemctl", "reload", "workerd")
    check("reload fails with an invalid configuration", refused.returncode != 0)
    check("the old configuration stays active", prop("ActiveState") == "active" and prop("MainPID") == pid)
    own = group() / "pool.multiply"
    existed = own.exists()
    extra.unlink()
    run("systemctl", "reload", "workerd")
    check("the control group of a dropped pool is removed", wait(lambda: not own.exists(), 30) and existed)


def deadline() -> None:
    section("deadline")
    done = ended(job("hang"))
    check(f"a hanging job ends: {done.get('reason')}", done.get("reason") == "deadline")
    check(
        "the session it left behind is killed",
        wait(lambda: run("pgrep", "-f", "sleep 4242").returncode == 1, 10),
    )


def memory() -> None:
    section("memory")
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    if not controllers.exists() or "memory" not in controllers.read_text().split():
        print("skipped: no cgroup v2 memory controller")
        return
    check("each pool has a control group", (group() / "pool.add" / "manager").is_dir())
    print(run("systemd-cgls", "--no-pager", "-u", "workerd.service").stdout)
    restarts, pid = prop("NRestarts"), prop("MainPID")
    greedy = job("greedy")
    made = workerd("enqueue", "add", "a=1", "b=1", "--wait", "60s")
    done = ended(greedy)
    check(f"the greedy job ends: {done.get('reason')}, {done.get('error')}", done.get("reason") == "oom")
    check("another pool works meanwhile", made.stdout.strip() == "2")
    check("the service was not restarted", (restarts, pid) == (prop("NRestarts"), prop("MainPID")))


def shares() -> None:
    section("CPU weight and pids limit")
    have = (group() / "cgroup.controllers").read_text().split()
    print("controllers:", *have)
    if "pids" in have:
        limit = (group() / "pool.forks" / "pids.max").read_text().strip()
        check(f"pids_max = 20 is in the pool's pids.max: {limit}", limit == "20")
        made = workerd("enqueue", "forks", "--wait", "60s").stdout.strip()
        check(f"a job can fork only {made} processes", made.isdigit() and 10 < int(made) < 20)
    if "cpu" in have:
        weights = [
            (group() / f"pool.{name}" / "cpu.weight").read_text().strip() for name in ("light", "heavy")
        ]
        check(f"cpu_weight of 20 and 200 is in the pools' cpu.weight: {weights}", weights == ["20", "200"])
        start_at = f"start_at={time.time() + 10}"
        both = [job(name, start_at, "seconds=8") for name in ("light", "heavy")]
        light, heavy = (float(str(ended(job_id).get("payload"))) for job_id in both)
        check(
            f"the heavy pool gets over twice the CPU time: {light:.2f} s and {heavy:.2f} s", heavy > 2 * light
        )


def watchdog() -> None:
    section("watchdog")
    drop_in = Path("/etc/systemd/system/workerd.service.d/watchdog.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nWatchdogSec=4\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "workerd")
    pid = int(prop("MainPID"))
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    restarted = wait(lambda: prop("NRestarts") == "1" and prop("ActiveState") == "active", 90)
    check(f"a stuck supervisor is killed and restarted after {time.monotonic() - started:.1f} s", restarted)
    check("the new supervisor has another pid", int(prop("MainPID")) != pid)
    made = workerd("enqueue", "add", "a=1", "b=2", "--wait", "60s")
    check("the restarted service runs jobs", made.stdout.strip() == "3")
    drop_in.unlink()
    run("systemctl", "daemon-reload")


def stop() -> None:
    section("stop")
    job_id = job("slow", "seconds=3")
    wait(lambda: shown(job_id).get("status") == "inprogress", 30)
    started = time.monotonic()
    check("systemctl stop", run("systemctl", "stop", "workerd").returncode == 0)
    took = time.monotonic() - started
    check(f"it drains in {took:.1f} s", 1 < took < 20)
    check(f"the result is success: {prop('Result')}", prop("Result") == "success")
    done = shown(job_id)
    check(f"the running job completed: {done.get('status')}", done.get("status") == "completed")
    check("no process is left", run("pgrep", "-u", "workerd").returncode == 1)


def upgraded(version: str) -> Path:
    """Make a package of another version."""
    tree, made = Path(f"/tmp/deb-{version}"), Path(f"/tmp/workerd-{version}.deb")
    run("dpkg-deb", "-R", "/share/workerd.deb", str(tree))
    for path, pattern in (
        (tree / "DEBIAN/control", r"^Version: .*$"),
        (tree / "usr/lib/workerd/workerd/__init__.py", r"^__version__ = .*$"),
    ):
        line = f"Version: {version}" if path.name == "control" else f'__version__ = "{version}"'
        path.write_text(re.sub(pattern, line, path.read_text(), flags=re.MULTILINE))
    run("dpkg-deb", "--root-owner-group", "--build", str(tree), str(made))
    return made


def new_code(number: int) -> None:
    """Change the code of the handlers."""
    code = Path("/srv/app/guest_handlers.py")
    code.write_text(re.sub(r"return [0-9]\n", f"return {number}\n", code.read_text()))


def status() -> dict[str, object]:
    found: dict[str, object] = json.loads(workerd("status", "--json").stdout or "{}")
    return found


def active(unit: str) -> bool:
    return run("systemctl", "is-active", unit).stdout.strip() == "active"


def main_pid(unit: str) -> int:
    pid = int(run("systemctl", "show", "-P", "MainPID", unit).stdout)
    assert pid, f"{unit} does not run"
    return pid


def handover() -> None:
    section("hand-over")
    package = upgraded("2.0.0")
    run("systemctl", "start", "workerd")
    minute = job("slow", "seconds=60")
    wait(lambda: shown(minute).get("status") == "inprogress", 30)
    new_code(2)
    done = run("dpkg", "-i", str(package))
    print(done.stdout + done.stderr)
    check("the package is upgraded while a job of 60 s runs", done.returncode == 0)
    check("the new version serves", active("workerd@2") and status().get("version") == "2.0.0")
    check_new_code("2")
    check("the former one drains", wait(lambda: prop("StatusText").startswith("Draining"), 10))
    former = status().get("former")
    check(f"status tells of it: {former}", former)
    both = [group(), group().with_name("system-workerd.slice") / "workerd@2.service"]
    if (both[0] / "cgroup.procs").exists():
        check("each has control groups of its own", all((path / "pool.slow").is_dir() for path in both))
    second = job("slow", "seconds=40")
    wait(lambda: shown(second).get("status") == "inprogress", 30)
    new_code(3)
    done = run("workerd", "install", "--handover")
    check(f"a second hand-over while the first drains: {done.stderr}", active("workerd@3"))
    check_new_code("3")
    os.kill(main_pid("workerd@3"), signal.SIGKILL)
    check_new_code("3")
    check("killed, it is started again and serves", active("workerd@3"))
    for job_id in (minute, second):
        found = ended(job_id)
        ran_s = float(str(found.get("run_us"))) / 1e6
        check(
            f"a job of {ran_s:.0f} s completed in its first attempt",
            (found.get("status"), found.get("attempt")) == ("completed", 1),
        )
    check(
        "the former ones end by themselves",
        wait(lambda: not active("workerd") and not active("workerd@2"), 30) and prop("Result") == "success",
    )
    killed_former()
    ticks = json.loads(workerd("job", "list", "--handler", "tick", "--limit", "200", "--json").stdout)["jobs"]
    times = [one["run_at"] for one in ticks]
    check(f"no tick fired twice: {len(times)}", times and len(times) == len(set(times)))
    wrong_use()
    check("all are stopped", run("systemctl", "stop", "workerd*").returncode == 0 and not active("workerd@2"))
    check("no process is left", wait(lambda: run("pgrep", "-u", "workerd").returncode == 1, 10))
    refused = run("workerd", "install", "--handover")
    check(f"nothing to take over from: {refused.stderr.strip()}", refused.returncode == 2)


def check_new_code(answer: str) -> None:
    asked = time.monotonic()
    found = workerd("enqueue", "which", "--wait", "60s").stdout.strip()
    check(f"a new job runs the new code after {time.monotonic() - asked:.1f} s: {found}", found == answer)


def killed_former() -> None:
    """A former daemon that is killed is started again, settles, and ends; the one that serves goes on."""
    new_code(4)
    lost = job("slow", "seconds=30")
    wait(lambda: shown(lost).get("status") == "inprogress", 30)
    check("a third hand-over", run("workerd", "install", "--handover").returncode == 0)
    serving = main_pid("workerd@2")
    os.kill(main_pid("workerd@3"), signal.SIGKILL)
    check("the job of a killed daemon is tried again", wait(lambda: shown(lost).get("attempt") == 2, 60))
    check("the killed daemon only settles", wait(lambda: not active("workerd@3"), 60))
    check("the one that serves was not started again", serving == main_pid("workerd@2"))
    check("the job completes", ended(lost).get("status") == "completed")
    check_new_code("4")


def wrong_use() -> None:
    drop_in = Path("/etc/systemd/system/workerd.service.d/wrong.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nEnvironment=WORKERD_STORE__URL=mysql://u@127.0.0.1:1/none?ssl=nonsense\n")
    refused = run("workerd", "install", "--handover")
    check(f"one that cannot start does not take over: {refused.stderr.strip()}", refused.returncode == 1)
    check("the former one goes on", active("workerd@2") and not active("workerd@3"))
    drop_in.unlink()
    run("systemctl", "daemon-reload")


def removal() -> None:
    section("removal")
    with Path("/etc/workerd/workerd.toml").open("a") as file:
        file.write("# local change\n")
    check("dpkg removes it", run("dpkg", "-r", "workerd").returncode == 0)
    check("the unit file is removed", not Path("/usr/lib/systemd/system/workerd.service").exists())
    check("the configuration stays", "# local change" in Path("/etc/workerd/workerd.toml").read_text())
    check("the stored jobs stay", Path("/var/lib/workerd/workerd.db").exists())


PARTS = (package, start, journal, reload, deadline, memory, shares, watchdog, stop, handover, removal)


def main() -> int:
    print(f"Linux {os.uname().release}, {run('systemctl', '--version').stdout.splitlines()[0]}", flush=True)
    for part in (
        package,
        start,
        journal,
        reload,
        deadline,
        memory,
        shares,
        watchdog,
        stop,
        handover,
        removal,
    ):
        try:
            part()
        except Exception as error:
            check(f"{part.__name__}: {type(error).__name__}: {error}", passed=False)
    if failures:
        print(run("journalctl", "--no-pager", "-u", "workerd*", "-n", "150").stdout)
    print(f"\n{len(failures)} failures", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
