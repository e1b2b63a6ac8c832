"""Failovers under load: two nodes, jobs by client, HTTP and command line, and what must hold afterwards."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import httpx
import pymysql

from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from tests.support.gateway import Api
from tests.support.servers import DatabaseServer
from workerd import Client
from workerd.errors import CommitUnknown, HandlerNotFound, StoreError

LEASE_S = 6.0
PAUSE_S = 0.1
"""Between two jobs of one sender."""
CONFIG = f"""
[dispatcher]
lease = "{LEASE_S:g}s"
poll = "100ms"
[defaults]
path = ["{ROOT}"]
[handlers.record]
call = "tests.support.handlers:record_time"
workers = 2
max_attempts = 1
"""
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Cluster(Protocol):
    """Servers that replicate."""

    @property
    def servers(self) -> Sequence[DatabaseServer]: ...

    @property
    def database(self) -> str: ...

    def store_url(self) -> str:
        """Of the nodes and the client."""

    def writable(self) -> DatabaseServer:
        """A server that takes writes now."""

    def remove(self) -> None:
        """End all servers."""


class Sent(NamedTuple):
    """A job that was accepted: by which way, when (monotonic seconds), and the errors before, if any."""

    id: uuid.UUID
    way: str
    accepted_at: float
    tries: int


@dataclass
class Report:
    """What one fault did.

    accepted, retried
        Jobs that were accepted, and those among them of which an earlier try was answered with an error.
    unreplicated, again
        Accepted by a primary that died before it had sent them on: nobody can have them. Jobs of which it had
        not sent on the claim, so that another node could not know that they had run.
    lost, twice, lies, stale, restarts
        Jobs that are gone, run more than once, answers that were not true, claims older than a lease,
        processes that were restarted: none of them may be.
    away_s, resumed_s
        From the fault until the new primary could be written; from then until a job that was accepted later
        ran. None: there was no time without one.
    """

    fault: str
    accepted: int = 0
    retried: int = 0
    unreplicated: int = 0
    again: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    away_s: float | None = None
    resumed_s: float | None = None

    @property
    def wrong(self) -> dict[str, list[str]]:
        """Everything that may not be."""
        found = {name: getattr(self, name) for name in ("lost", "twice", "lies", "stale", "restarts")}
        return {name: values for name, values in found.items() if values}

    def __str__(self) -> str:
        def seconds(value: float | None) -> str:
            return "-" if value is None else f"{value:.2f} s"

        return (
            f"{self.fault}: {self.accepted} accepted ({self.retried} after an error, {self.unreplicated}"
            f" never replicated), {self.again} run again whose claim was never replicated; new primary after"
            f" {seconds(self.away_s)}, jobs run again after another {seconds(self.resumed_s)};"
            f" wrong: {self.wrong or 'nothing'}"
        )


class Fault(NamedTuple):
    """`strike` does it, and returns the server that is to take over; `heal` mends it afterwards."""

    name: str
    strike: Callable[[], DatabaseServer]
    heal: Callable[[], None] = lambda: None
    loses: bool = False  # replication is asynchronous: what the dead primary had alone is gone


class Trial:
    """A cluster, two nodes on it, and senders that never stop."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.cluster = cluster
        self.runs_path = folder / "runs"
        self.runs_path.touch()
        self.nodes = [Api(folder / name, cluster.store_url(), CONFIG) for name in ("one", "two")]
        for node, name in zip(self.nodes, ("one", "two"), strict=True):
            node.daemon.name = name
            node.daemon.write(CONFIG)
        self._lock = threading.Lock()
        self._sent: list[Sent] = []
        self._unsure: set[uuid.UUID] = set()
        self._lies: list[str] = []
        self._stop = threading.Event()

    def __enter__(self) -> Trial:
        for node in self.nodes:
            node.__enter__()
        self.cluster.writable().sql(
            "CREATE TABLE failover_probe (id INT AUTO_INCREMENT PRIMARY KEY)", self.cluster.database
        )
        eventually(lambda: all(node.get("/ready").status_code == 200 for node in self.nodes))
        return self

    def __exit__(self, *exc: object) -> None:
        for node in self.nodes:
            node.__exit__(*exc)

    # -- the load

    @contextmanager
    def load(self) -> Iterator[None]:
        """Send jobs in every way while the block runs."""
        self._stop.clear()
        self._sent, self._lies, self._unsure = [], [], set()
        senders = [
            threading.Thread(target=self._by_client),
            *(threading.Thread(target=self._by_http, args=(node,)) for node in self.nodes),
            threading.Thread(target=self._by_command_line),
        ]
        for sender in senders:
            sender.start()
        try:
            yield
        finally:
            self._stop.set()
            for sender in senders:
                sender.join()

    @property
    def _vars(self) -> dict[str, str]:
        return {"path": str(self.runs_path)}

    def _accepted(self, ident: uuid.UUID, way: str, tries: int) -> None:
        with self._lock:
            self._sent.append(Sent(ident, way, time.monotonic(), tries))

    def _lie(self, text: str) -> None:
        with self._lock:
            self._lies.append(text)

    def _by_client(self) -> None:
        client = Client(self.cluster.store_url(), timeout=3)
        while not self._stop.wait(PAUSE_S):
            ident, maybe = uuid.uuid4(), False
            for tries in range(1000):
                try:
                    enqueued = client.enqueue("record", self._vars, id=str(ident))
                except CommitUnknown as error:
                    maybe = True
                    if error.ids != (str(ident),):
                        self._lie(f"client: CommitUnknown of {ident} names {error.ids}")
                except (StoreError, HandlerNotFound):
                    pass
                else:
                    if not enqueued.created and not maybe:
                        self._lie(f"client: {ident} was there although nothing was said to be changed")
                    self._accepted(ident, "client", tries)
                    break
                time.sleep(PAUSE_S)
        client.close()

    def _by_http(self, node: Api) -> None:
        with httpx.Client(base_url=str(node.http.base_url), timeout=30) as http:
            while not self._stop.wait(PAUSE_S):
                key, maybe = str(uuid.uuid4()), False
                for tries in range(1000):
                    answer = http.post(
                        "/jobs",
                        json={"handler": "record", "vars": self._vars},
                        headers={"Idempotency-Key": key},
                    )
                    if answer.status_code in (200, 201):
                        ident = uuid.UUID(answer.json()["id"])
                        if answer.status_code == 200 and not maybe:
                            self._lie(f"HTTP: {ident} was there although nothing was said to be changed")
                        self._accepted(ident, "http", tries)
                        break
                    if answer.status_code == 503:
                        maybe = maybe or answer.json().get("unknown") is True
                    elif answer.status_code != 422 or "handler" not in answer.text:
                        self._lie(f"HTTP: status {answer.status_code}: {answer.text}")
                    time.sleep(PAUSE_S)

    def _by_command_line(self) -> None:
        turn = 0
        while not self._stop.wait(5 * PAUSE_S):
            turn += 1
            node = self.nodes[turn % 2].daemon
            try:
                done = node.cli("enqueue", "record", f"path={self.runs_path}", check=False)
            except subprocess.TimeoutExpired:
                self._lie("command line: no answer within a minute")
                continue
            found = [uuid.UUID(text) for text in _UUID.findall(done.stdout + done.stderr)]
            if done.returncode == 0:
                self._accepted(found[0], "cli", 0)
            elif done.returncode == 1:
                self._unsure.update(found)
            elif "handler" not in done.stderr:
                self._lie(f"command line: {done.returncode}: {done.stderr}")

    # -- what is seen

    def runs(self) -> dict[uuid.UUID, list[float]]:
        """When each job was run, monotonic seconds."""
        found: dict[uuid.UUID, list[float]] = {}
        for line in self.runs_path.read_text().splitlines():
            ident, _, moment = line.split()
            found.setdefault(uuid.UUID(ident), []).append(float(moment))
        return found

    def rows(self, server: DatabaseServer, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
        """The status of each of these jobs that this server has."""
        found: dict[uuid.UUID, str] = {}
        for start in range(0, len(ids), 200):
            part = ", ".join(f"x'{ident.hex}'" for ident in ids[start : start + 200])
            rows = server.sql(
                f"SELECT id, status FROM workerd_jobs WHERE id IN ({part})", self.cluster.database
            )
            found |= {uuid.UUID(bytes=bytes(ident)): str(status) for ident, status in rows}
        return found

    def _restarts(self) -> list[str]:
        found = []
        for node in self.nodes:
            status = node.daemon.status()
            for kind in ("roles", "pools"):
                for name, process in (status.get(kind) or {"": {"restarts": "no answer"}}).items():
                    if process.get("restarts"):
                        found.append(f"{node.daemon.name}: {name} {process['restarts']}")
        return found

    def _stale(self, server: DatabaseServer) -> list[str]:
        rows = server.sql(
            "SELECT HEX(id) FROM workerd_jobs WHERE status = 'inprogress'"
            f" AND claimed_at < UTC_TIMESTAMP(6) - INTERVAL {LEASE_S:g} SECOND",
            self.cluster.database,
        )
        return [str(ident) for (ident,) in rows]

    # -- one fault

    def strike(self, fault: Fault, before_s: float = 2.0, after_s: float = 3.0) -> Report:
        """Let it happen under load; returns what came of it once everything has ended."""
        report = Report(fault.name)
        with self.load():
            time.sleep(before_s)
            struck = time.monotonic()
            successor = fault.strike()
            writable = self._when_writable(successor)
            report.away_s = writable - struck
            gone: set[uuid.UUID] = set()
            unclaimed: set[uuid.UUID] = set()
            if fault.loses:
                with self._lock:
                    earlier = [sent.id for sent in self._sent if sent.accepted_at < writable]
                had = self.rows(successor, earlier)
                gone = set(earlier) - set(had)
                ran = {ident for ident, moments in self.runs().items() if moments[0] < writable}
                unclaimed = {ident for ident, status in had.items() if status == "new"} & ran
            time.sleep(after_s)
            fault.heal()
            time.sleep(max(after_s, writable + LEASE_S - time.monotonic()))
            report.stale = self._stale(successor)
        sent, unsure = list(self._sent), set(self._unsure)
        kept = [one.id for one in sent if one.id not in gone]
        report.unreplicated = len(sent) - len(kept)
        self._wait_until_ended(successor, kept, report)
        runs = self.runs()
        report.accepted = len(sent)
        report.retried = sum(one.tries > 0 for one in sent)
        counts = Counter({ident: len(moments) for ident, moments in runs.items()})
        # What is gone may have run on the dead primary's behalf, and was sent again by nobody.
        watched = [*kept, *unsure]
        more = [ident for ident in watched if counts[ident] > 1]
        report.again = len(unclaimed.intersection(more))
        report.twice = [str(ident) for ident in more if ident not in unclaimed]
        report.lies = list(self._lies)
        report.restarts = self._restarts()
        later = [runs[one.id][0] - writable for one in sent if one.accepted_at > writable and one.id in runs]
        report.resumed_s = max(0.0, min(later)) if later else None
        return report

    def _when_writable(self, server: DatabaseServer) -> float:
        def may_write() -> bool:
            try:
                with server.root(self.cluster.database) as connection, connection.cursor() as cursor:
                    cursor.execute("SELECT @@read_only")
                    ((read_only,),) = cursor.fetchall()
                    if read_only:
                        return False
                    cursor.execute("INSERT INTO failover_probe VALUES (DEFAULT)")
                    return True
            except pymysql.Error:
                return False

        eventually(may_write, within=120, every=0.01)
        return time.monotonic()

    def _wait_until_ended(self, server: DatabaseServer, ids: Sequence[uuid.UUID], report: Report) -> None:
        """Those that do not end are lost."""
        end = time.monotonic() + 60
        while True:
            with suppress(pymysql.Error):
                found = self.rows(server, ids)
                open_ = [ident for ident in ids if found.get(ident) in ("new", "scheduled", "inprogress")]
                missing = [ident for ident in ids if ident not in found]
                if not open_ and not missing:
                    return
            if time.monotonic() > end:
                report.lost = [f"{ident} is {found.get(ident, 'gone')}" for ident in (*missing, *open_)]
                return
            time.sleep(0.1)
