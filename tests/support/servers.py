"""Private database servers in temporary folders; never the system's own.

`MARIADBD=/path/mariadbd` or `MYSQLD=/path/mysqld` selects another server than Debian's MariaDB for all tests;
`MYSQL9=/path/mysqld` where the MySQL is that tests of Group Replication start;
`WORKERD_TEST_MYSQL_URL=mysql://root:…@host/` selects a running one, which tests cannot kill.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pymysql

from tests.support.eventually import eventually

EXTERNAL = os.environ.get("WORKERD_TEST_MYSQL_URL", "")
USER, PASSWORD = "app", "s3cr3t/?#@: %ü"
_names = itertools.count(1)

# Most tests need no durability across a machine crash: skipping fsync is faster, and a kill loses no commit.
FAST = ("--innodb-flush-log-at-trx-commit=2", "--innodb-doublewrite=0")
DURABLE = ("--innodb-flush-log-at-trx-commit=1",)


class Flavour:
    """The server program and its version-specific arguments; `program`: a MySQL's, "" for the usual one."""

    def __init__(self, program: str = "") -> None:
        self.oracle = bool(program) or "MYSQLD" in os.environ
        named = program or os.environ.get("MYSQLD") or os.environ.get("MARIADBD")
        found = (
            named or shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin")
        )
        if not found or not os.access(found, os.X_OK):
            raise RuntimeError("MariaDB's server is not installed; run `make test`, which installs it.")
        self.program = found
        self.base = Path(found).resolve().parent.parent

    def base_arguments(self) -> list[str]:
        if self.base == Path("/usr"):
            return []
        share = self.base / "share/mysql"
        return [
            f"--basedir={self.base}",
            f"--plugin-dir={self.base}/lib/mysql/plugin",
            f"--lc-messages-dir={share}",
            f"--character-sets-dir={share}/charsets",
        ]

    def own_arguments(self) -> list[str]:
        if self.oracle:
            return [
                "--secure-file-priv=NULL",
                "--mysqlx=OFF",
                "--innodb-redo-log-capacity=64M",
            ]
        return ["--innodb-log-file-size=64M"]

    def initialise(self, data: Path) -> None:
        folder = data.parent
        if self.oracle:
            command = [
                self.program,
                "--no-defaults",
                "--initialize-insecure",
                f"--datadir={data}",
                *self.base_arguments(),
            ]
        else:
            command = [
                str(self.base / "bin/mariadb-install-db"), "--no-defaults",
                f"--datadir={data}", f"--tmpdir={folder}",
                "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-log-bin",
                *([] if self.base == Path("/usr") else [f"--basedir={self.base}"]),
            ]  # fmt: skip
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, **_unprivileged()
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _unprivileged() -> dict[str, Any]:
    """Popen arguments that drop root, under which the servers refuse to run."""
    if os.getuid():
        return {}
    for name in ("mysql", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("no user `mysql` or `nobody` exists to run the server as")


def _chown(path: Path) -> None:
    identity = _unprivileged()
    if identity:
        os.chown(path, identity["user"], identity["group"])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _folder() -> Path:
    # Not pytest's tmp_path: the path of a Unix socket is limited to 107 bytes.
    path = Path(tempfile.mkdtemp(prefix="wdb."))
    path.chmod(0o755)
    _chown(path)
    return path


class Template:
    """A data directory of each program, initialised once per session and copied for every server."""

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}

    def copy_to(self, data: Path, flavour: Flavour) -> None:
        folder = self._folders.get(flavour.program)
        if folder is None:
            folder = _folder()
            flavour.initialise(folder / "data")
            self._folders[flavour.program] = folder
        subprocess.run(["cp", "-a", "--reflink=auto", str(folder / "data"), str(data)], check=True)
        (data / "auto.cnf").unlink(missing_ok=True)

    def remove(self) -> None:
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        self._folders.clear()


template = Template()


def _own_ports() -> Iterator[int]:
    """Ports that no other process of a parallel run hands out, each once before any comes again.

    Below net.ipv4.ip_local_port_range, so that the kernel gives none of them to an outgoing connection.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    first = 10_000 + number * 2_200
    return itertools.cycle(random.sample(range(first, first + 2_200), 2_200))


_ports = _own_ports()


def free_port() -> int:
    """A port that nobody uses."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("not reached: the ports come again and again")


class DatabaseServer:
    """A private server that tests start, stop, kill, freeze and thaw, with databases and SQL as root."""

    private = True

    def __init__(self, options: tuple[str, ...] = FAST, flavour: Flavour | None = None) -> None:
        self.flavour = flavour or Flavour()
        self.folder = _folder()
        self.socket = self.folder / "s"
        self.port = free_port()
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        template.copy_to(self.folder / "data", self.flavour)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it was started and has exited."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> DatabaseServer:
        """Start it and wait until it answers; after kill9, on the same data and port."""
        self.launch()
        self.start_answering()
        return self

    def start_answering(self) -> None:
        """Wait until it answers after `launch`, and create the user of the stores."""
        self.wait()
        with self.root() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE USER IF NOT EXISTS {USER}@'%%' IDENTIFIED BY %s", (PASSWORD,))
            cursor.execute(f"GRANT ALL ON *.* TO {USER}@'%'")

    def launch(self) -> None:
        """Start it without waiting for it to answer."""
        for leftover in (self.socket, Path(f"{self.socket}.lock"), self.folder / "pid"):
            leftover.unlink(missing_ok=True)
        command = [
            self.flavour.program, "--no-defaults", *self.flavour.base_arguments(),
            f"--datadir={self.folder}/data", f"--socket={self.socket}", f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--pid-file={self.folder}/pid", f"--tmpdir={self.folder}",
            f"--log-error={self.folder}/error.log",
            "--skip-name-resolve", "--max-connections=300", "--innodb-buffer-pool-size=256M",
            *self.flavour.own_arguments(),
            *(["--skip-log-bin"] if self.flavour.oracle and "--log-bin=binlog" not in self.options else []),
            *self.options,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=self.folder, start_new_session=True, preexec_fn=_die_with_parent, **_unprivileged(),
        )  # fmt: skip

    def wait(self) -> None:
        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log()[-3000:]
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)):
                    return False
            with self.root():
                return True

        eventually(answers, within=60, state=lambda: self.log()[-3000:])

    def log(self) -> str:
        path = self.folder / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill9(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Send SIGSTOP and wait until all its threads are stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        eventually(lambda: all(state == "T" for state in self._threads()))

    def _threads(self) -> list[str]:
        stats = [path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/stat")]
        return [stat.rpartition(")")[2].split()[0] for stat in stats]

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, sign: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(sign)
            self._process.wait(60)

    def remove(self) -> None:
        self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def root(self, database: str | None = None) -> Iterator[pymysql.Connection[Any]]:
        """Open a connection as root with autocommit, for tests to act as another program."""
        connection = pymysql.connect(
            user="root", unix_socket=str(self.socket), database=database, autocommit=True, charset="utf8mb4",
            connect_timeout=30, ssl_disabled=True,
        )  # fmt: skip
        try:
            yield connection
        finally:
            connection.close()

    def sql(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        with self.root(database) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def new_database(self) -> str:
        name = f"w{os.getpid()}_{next(_names)}"
        self.sql(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {name}")

    def url(self, database: str, *, tcp: bool = False) -> str:
        where = "" if tcp else f"?unix_socket={self.socket}"
        return f"mysql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}{where}"


class ExternalServer(DatabaseServer):
    """A running server selected by the environment; tests create and drop only databases."""

    private = False

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)

    def start(self) -> DatabaseServer:
        return self

    def remove(self) -> None:
        pass

    @contextmanager
    def root(self, database: str | None = None) -> Iterator[pymysql.Connection[Any]]:
        connection = pymysql.connect(
            user=self._parts.username, password=self._parts.password or "", host=self._parts.hostname,
            port=self._parts.port or 3306, database=database, autocommit=True, charset="utf8mb4",
        )  # fmt: skip
        try:
            yield connection
        finally:
            connection.close()

    def url(self, database: str, *, tcp: bool = False) -> str:
        return f"{self._parts.scheme}://{self._parts.netloc}/{database}"


def session_server() -> DatabaseServer:
    """Return the server that most tests share."""
    return ExternalServer(EXTERNAL) if EXTERNAL else DatabaseServer().start()
