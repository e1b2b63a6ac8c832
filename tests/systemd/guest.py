"""The test itself, run by systemd as root in the box; prints `ok` or `NOT ok` for each thing to see."""

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
call = "shop:add"
[handlers.slow]
call = "shop:slow"
[handlers.secret]
call = "shop:secret"
[handlers.broken]
call = "shop:nothing_of_this_name"
[handlers.greedy]
call = "shop:greedy"
memory_max = "64MiB"
[handlers.talk]
call = "shop:talk"
[handlers.crowd]
call = "shop:crowd"
pids_max = 20
[handlers.light]
call = "shop:spin"
cpu_weight = 20
[handlers.heavy]
call = "shop:spin"
cpu_weight = 200
[handlers.hang]
call = "shop:hang"
deadline = "1s"
grace = "500ms"
"""

failures: list[str] = []


def say(title: str) -> None:
    print(f"\n-- {title}", flush=True)


def check(what: str, seen: object) -> None:
    """Print whether it was seen."""
    print(f"{'ok' if seen else 'NOT ok'}: {what}", flush=True)
    if not seen:
        failures.append(what)


def run(*argv: str, limit: float = 120) -> subprocess.CompletedProcess[str]:
    """A command in the box; its output as text."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=limit, check=False)


def workerd(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command line as the service's own user."""
    return run("runuser", "-u", "workerd", "--", "/usr/bin/workerd", *argv)


def job(handler: str, *args: str) -> str:
    """Enqueue one; its id."""
    made = workerd("enqueue", handler, *args)
    if made.returncode:
        print(made.stderr)
    return made.stdout.strip()


def shown(job_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(workerd("job", "show", job_id, "--json").stdout or "{}")
    return found


def ended(job_id: str) -> dict[str, object]:
    """The job once it has ended."""
    wait(lambda: shown(job_id).get("complete"), 60)
    return shown(job_id)


def prop(name: str) -> str:
    return run("systemctl", "show", "-P", name, "workerd").stdout.strip()


def group() -> Path:
    """The service's control group of version 2."""
    below = "system.slice/workerd.service"
    both = (Path("/sys/fs/cgroup", below), Path("/sys/fs/cgroup/unified", below))
    return next((path for path in both if (path / "cgroup.procs").exists()), both[0])


def logged(job_id: str) -> list[dict[str, object]]:
    """What the journal has of a job."""
    text = run("journalctl", "--no-pager", "-o", "json", f"JOB_ID={job_id}").stdout
    return [json.loads(line) for line in text.splitlines()]


def held_back() -> list[str]:
    pools = json.loads(workerd("status", "--json").stdout or "{}").get("pools", {})
    return [name for name, pool in pools.items() if pool["quarantined"]]


def wait(fact: Callable[[], object], limit: float) -> bool:
    """Whether the fact came within so many seconds."""
    try:
        return bool(eventually(fact, within=limit, every=0.1))
    except AssertionError:
        return False


def package() -> None:
    say("the package")
    made = run("dpkg", "-i", "/share/workerd.deb")
    check("dpkg installs it", made.returncode == 0)
    if made.returncode:
        print(made.stdout, made.stderr)
    check("the user is there", run("id", "workerd").returncode == 0)
    Path("/srv/app").mkdir(parents=True)
    shutil.copy("/share/shop.py", "/srv/app/shop.py")
    Path("/etc/workerd/conf.d/test.toml").write_text(CONFIG)
    Path("/etc/workerd/store-password").write_text("hunter2\n")
    Path("/etc/workerd/store-password").chmod(0o600)
    verify = run("systemd-analyze", "verify", "workerd.service")
    complaints = [line for line in verify.stderr.splitlines() if "workerd" in line]
    check(f"systemd-analyze verify has no word on it {complaints}", not complaints)
    security = run("systemd-analyze", "security", "--no-pager", "workerd.service").stdout
    score = re.search(r"exposure level for workerd.service: ([0-9.]+)", security)
    check(f"systemd-analyze security says {score and score[1]}", score and float(score[1]) <= 2.0)
    checked = workerd("check")
    check("workerd check names the handler that does not load, exit status 1", checked.returncode == 1)
    print(checked.stdout + checked.stderr)


def start() -> None:
    say("start")
    began = time.monotonic()
    check("systemctl start", run("systemctl", "enable", "--now", "workerd").returncode == 0)
    check(f"READY after {time.monotonic() - began:.1f} s", prop("ActiveState") == "active")
    print(run("systemctl", "status", "--no-pager", "--lines=0", "workerd").stdout)
    made = workerd("enqueue", "add", "a=40", "b=2", "--wait", "60s")
    check(f"a job runs: 40 + 2 = {made.stdout.strip()} {made.stderr.strip()}", made.stdout.strip() == "42")
    done = ended(job("secret"))
    check("the password arrives by LoadCredential=", done.get("payload") == "hunter2")
    check("and is in no log", "hunter2" not in run("journalctl", "-u", "workerd").stdout)
    check("the broken handler's pool is held back alone", wait(lambda: held_back() == ["broken"], 60))
    check(f"STATUS: {prop('StatusText')}", prop("StatusText"))


def words(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split()}


def journal() -> None:
    say("logs")
    job_id = job("add", "a=1")
    ended(job_id)
    found = logged(job_id)
    check("journalctl JOB_ID=… finds the failed job", found)
    fields = [(line.get("HANDLER"), line.get("ATTEMPT")) for line in found]
    check(f"with handler and attempt: {fields}", ("add", "1") in fields)
    job_id = job("talk")
    ended(job_id)
    said = [str(line.get("MESSAGE")) for line in logged(job_id)]
    check(f"and what a handler printed and logged: {said}", {"printed", "logged"} <= words(said))


def reload() -> None:
    say("reload")
    extra = Path("/etc/workerd/conf.d/more.toml")
    extra.write_text('[handlers.multiply]\ncall = "shop:multiply"\n')
    pid = prop("MainPID")
    done = run("systemctl", "reload", "workerd")
    check(f"systemctl reload {done.stderr.strip()}", done.returncode == 0)
    made = workerd("enqueue", "multiply", "a=6", "b=7", "--wait", "60s")
    check(f"a new handler runs: 6 × 7 = {made.stdout.strip()}", made.stdout.strip() == "42")
    failed = job("multiply", "a=1")
    ended(failed)
    check("its log lines are found by JOB_ID too", logged(failed))
    extra.write_text('[handlers.multiply]\ncall = "shop:multiply"\nworkers = "many"\n')
    refused = run("systemctl", "reload", "workerd")
    check("a wrong configuration makes the reload fail", refused.returncode != 0)
    check("and the old one runs on", prop("ActiveState") == "active" and prop("MainPID") == pid)
    own = group() / "pool.multiply"
    there = own.exists()
    extra.unlink()
    run("systemctl", "reload", "workerd")
    check("a pool that is dropped leaves no control group", wait(lambda: not own.exists(), 30) and there)


def deadline() -> None:
    say("deadline")
    done = ended(job("hang"))
    check(f"a hanging job ends: {done.get('reason')}", done.get("reason") == "deadline")
    check(
        "with the session that it left behind",
        wait(lambda: run("pgrep", "-f", "sleep 4242").returncode == 1, 10),
    )


def memory() -> None:
    say("memory")
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    if not controllers.exists() or "memory" not in controllers.read_text().split():
        print("no memory controller of version 2 here: not shown")
        return
    check("a group for each pool", (group() / "pool.add" / "manager").is_dir())
    print(run("systemd-cgls", "--no-pager", "-u", "workerd.service").stdout)
    restarts, pid = prop("NRestarts"), prop("MainPID")
    greedy = job("greedy")
    made = workerd("enqueue", "add", "a=1", "b=1", "--wait", "60s")
    done = ended(greedy)
    check(f"the greedy job ends: {done.get('reason')}, {done.get('error')}", done.get("reason") == "oom")
    check("another pool works on meanwhile", made.stdout.strip() == "2")
    check("the service is the same", (restarts, pid) == (prop("NRestarts"), prop("MainPID")))


def shares() -> None:
    say("processor and processes")
    have = (group() / "cgroup.controllers").read_text().split()
    print("controllers:", *have)
    if "pids" in have:
        limit = (group() / "pool.crowd" / "pids.max").read_text().strip()
        check(f"pids_max = 20 is in the pool's pids.max: {limit}", limit == "20")
        made = workerd("enqueue", "crowd", "--wait", "60s").stdout.strip()
        check(f"and stops a job at {made} processes of its own", made.isdigit() and 10 < int(made) < 20)
    if "cpu" in have:
        weights = [
            (group() / f"pool.{name}" / "cpu.weight").read_text().strip() for name in ("light", "heavy")
        ]
        check(f"cpu_weight of 20 and 200 is in the pools' cpu.weight: {weights}", weights == ["20", "200"])
        begin = f"begin={time.time() + 10}"
        both = [job(name, begin, "seconds=8") for name in ("light", "heavy")]
        light, heavy = (float(str(ended(job_id).get("payload"))) for job_id in both)
        check(f"of a busy processor they get {light:.2f} and {heavy:.2f} s", heavy > 2 * light)


def watchdog() -> None:
    say("watchdog")
    drop_in = Path("/etc/systemd/system/workerd.service.d/watchdog.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nWatchdogSec=4\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "workerd")
    pid = int(prop("MainPID"))
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    came_back = wait(lambda: prop("NRestarts") == "1" and prop("ActiveState") == "active", 90)
    check(
        f"a wedged supervisor is killed and started again after {time.monotonic() - began:.1f} s", came_back
    )
    check("as another process", int(prop("MainPID")) != pid)
    made = workerd("enqueue", "add", "a=1", "b=2", "--wait", "60s")
    check("that runs jobs", made.stdout.strip() == "3")


def stop() -> None:
    say("stop")
    job_id = job("slow", "seconds=3")
    wait(lambda: shown(job_id).get("status") == "inprogress", 30)
    began = time.monotonic()
    check("systemctl stop", run("systemctl", "stop", "workerd").returncode == 0)
    took = time.monotonic() - began
    check(f"drains in {took:.1f} s", 1 < took < 20)
    check(f"with success: {prop('Result')}", prop("Result") == "success")
    done = shown(job_id)
    check(f"the running job ended: {done.get('status')}", done.get("status") == "completed")
    check("no process is left", run("pgrep", "-u", "workerd").returncode == 1)


def removal() -> None:
    say("removal")
    with Path("/etc/workerd/workerd.toml").open("a") as file:
        file.write("# mine\n")
    check("dpkg removes it", run("dpkg", "-r", "workerd").returncode == 0)
    check("unit and program are gone", not Path("/usr/lib/systemd/system/workerd.service").exists())
    check("the configuration stays", "# mine" in Path("/etc/workerd/workerd.toml").read_text())
    check("and what is stored", Path("/var/lib/workerd/workerd.db").exists())


def main() -> int:
    print(f"Linux {os.uname().release}, {run('systemctl', '--version').stdout.splitlines()[0]}", flush=True)
    for part in (package, start, journal, reload, deadline, memory, shares, watchdog, stop, removal):
        try:
            part()
        except Exception as error:
            check(f"{part.__name__}: {type(error).__name__}: {error}", seen=False)
    if failures:
        print(run("journalctl", "--no-pager", "-u", "workerd", "-n", "80").stdout)
    print(f"\n{len(failures)} failures", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
