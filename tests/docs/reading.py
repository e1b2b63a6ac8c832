"""Reads a page as its reader does: writes its files, starts the daemon, runs each block, compares the output.

    python -m tests.docs.reading PAGE

runs in the current folder and ends with status 1 at the first block that does not do what the page says.
`STORE_URL` is the store of the page's daemon; without it the page starts its own, as the tutorials do.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.docs.blocks import ROOT, Block, blocks
from tests.docs.shell import Shell, ShellFailed, commands
from tests.support.daemon import Daemon
from tests.support.rows import Rows
from tests.support.servers import free_port

READERS = Path(__file__).parent / "readers"
COMMON = READERS / "common"
STUBS = Path("stubs.py")
"""What the handlers on a page call: they find it without an import."""
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
CHANGING_THE_HOST = (
    "apt", "apt-get", "docker", "journalctl", "kubectl", "make", "pip", "podman", "sudo", "systemctl",
)  # fmt: skip
SOME_ID = rf"\b(?:{UUID}\b|[0-9a-f]{{4,8}}-?…|ID\b(?!=))"


class Differs(Exception):
    """A block did something else than the page says."""


class Reader:
    """One reading of a page, in the current folder."""

    def __init__(self, page: Path, store_url: str) -> None:
        self.page = page
        self.folder = Path.cwd()
        self.store_url = store_url
        if store_url and (READERS / page.stem / "sqlite").exists():
            self.store_url = f"sqlite:///{self.folder}/store.db"
        self.names: dict[str, Any] = {"__name__": "page"}
        self.printed = ""
        self._port = free_port()
        self._words: dict[str, str] = {}
        self.daemon: Daemon | None = None
        pieces = self.folder / "pieces"
        pieces.mkdir()
        if store_url:
            self._lay_out()
        self.shell = Shell(pieces, dict(os.environ))

    def _lay_out(self) -> None:
        """What a reader of this page already has, and the configuration that differs in a test."""
        for source in (COMMON, READERS / self.page.stem):
            if source.is_dir():
                shutil.copytree(source, self.folder, dirs_exist_ok=True)
        further = self.folder / "etc" / "conf.d"
        further.mkdir(exist_ok=True)
        for file in further.glob("*.toml"):
            file.write_text(self._here(file.read_text()))
        words = self.folder / "words.txt"
        if words.exists():
            self._words = dict(line.split(maxsplit=1) for line in words.read_text().splitlines())
        os.environ |= self._environment()
        for program in CHANGING_THE_HOST:
            (self.folder / "bin" / program).symlink_to("refuse")
        sys.path.insert(0, str(self.folder))

    def _environment(self) -> dict[str, str]:
        gateway = f"127.0.0.1:{self._port}" if ":8020" in self.page.read_text() else ""
        return {
            "CURL_HOME": str(self.folder),  # its .curlrc: an answer from 400 on is a failure
            "PATH": f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}",
            "WORKERD_CONFIG": str(self.folder / "etc"),
            "WORKERD_DEFAULTS__PATH": f'["{self.folder}"]',
            "WORKERD_GATEWAY__LISTEN": gateway,
            "WORKERD_NODE__RUNTIME_DIR": str(self.folder / "run"),
            "WORKERD_NODE__STATE_DIR": str(self.folder / "state"),
            "WORKERD_SHUTDOWN__DRAIN": "100ms",
            "WORKERD_STORE__PASSWORD_FILE": "",
            "WORKERD_STORE__URL": self.store_url,
        }

    def read(self) -> None:
        """Run the page. Raises Differs, with the block."""
        there = [block for block in blocks(self.page) if block.runs and (block.runnable or block.is_output)]
        if not self.store_url:
            for block in there:
                self._try(block)
            return
        self._write_files([block for block in there if _is_prepared(block)])
        rest = [block for block in there if not _is_prepared(block)]
        if rest:
            self._start(rest)
            for block in rest:
                self._try(block)
            self._finish()
        else:
            self.shell.run("workerd check")

    def _write_files(self, prepared: list[Block]) -> None:
        """Files and configuration first: a page may show a handler before its configuration, or after it."""
        for number, block in enumerate(prepared):
            if block.file:
                self._write(block)
            else:
                (self.folder / f"etc/conf.d/{50 + number}.toml").write_text(self._here(block.text))

    def _start(self, rest: list[Block]) -> None:
        """The daemon, unless the page starts it, and what the reader did before."""
        if not any(re.search(r"^workerd start\b", block.text, re.MULTILINE) for block in rest):
            self.daemon = PageDaemon(self.folder, self.store_url, "", env=self._environment()).start()
        for source in (COMMON / "session.py", READERS / self.page.stem / "session.py"):
            if source.exists():
                self._python(source.read_text(), source.name)
        if (self.folder / STUBS).exists():
            self._python("from stubs import *", "stubs")
        told = {
            name: value for name, value in self.names.items() if name.isupper() and isinstance(value, str)
        }
        self.shell.run("\n".join(f"{name}={shlex.quote(value)}" for name, value in told.items()))

    def _finish(self) -> None:
        after = self.folder / "after.py"
        if after.exists():
            self._python(after.read_text(), after.name)
        if self.daemon is not None:
            failed = [line for line in self.daemon.logged().splitlines() if "pool.load_failed" in line]
            if failed:
                raise Differs(f"a handler of the page does not load: {failed[0]}")

    def _try(self, block: Block) -> None:
        try:
            self._run(block)
        except (Differs, ShellFailed, Exception) as error:
            if not isinstance(error, Differs | ShellFailed):
                traceback.print_exc()
            raise Differs(f"{block.name}: {error}") from None

    def _run(self, block: Block) -> None:
        if block.file:
            self._write(block)
        elif block.language in ("sh", "bash"):
            self.printed = self._shell(self._with_ids(block.text), block.exit_status)
        elif block.language == "console":
            self._console(block)
        elif block.language == "python":
            self._python(self._here(block.text), block.name)
        elif block.language == "sql":
            self._sql(block)
        elif block.language == "output":
            _compare(self._here(block.text), self.printed)

    def _write(self, block: Block) -> None:
        path = self.folder / self._here(block.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = block.text
        if block.language == "python":
            text = text.replace("…", "...")
            if (self.folder / STUBS).exists():
                text = f"from stubs import *\n{text}"
        path.write_text(text)

    def _shell(self, text: str, exit_status: int = 0) -> str:
        if re.search(r"workerd install(?! --prefix)|>\s*/etc/", text):
            raise Differs("this changes the host: write <!-- not run: … --> above the block")
        return self.shell.run(text, exit_status)

    def _console(self, block: Block) -> None:
        found = commands(block.text)
        for number, (command, expected) in enumerate(found, 1):
            status = block.exit_status if number == len(found) else 0
            self.printed = self._shell(self._with_ids(command), status)
            _compare(self._here(expected), self.printed)

    def _python(self, text: str, name: str) -> None:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(text.replace("…", "..."), name, "exec", flags, dont_inherit=True)
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            result = eval(code, self.names)
            if code.co_flags & 0x80:  # CO_COROUTINE
                asyncio.run(result)
        self.printed = shown.getvalue()

    def _sql(self, block: Block) -> None:
        rows = Rows(self.store_url)
        for statement in filter(str.strip, block.text.split(";")):
            rows.sql(statement)

    def _here(self, text: str) -> str:
        """With the port of this reading, and, where it did not make them itself, its folders."""
        text = re.sub(r"\b(?:localhost|127\.0\.0\.1):8020\b", f"127.0.0.1:{self._port}", text)
        if not self.store_url:
            return text
        return text.replace("/etc/workerd", f"{self.folder}/etc").replace("/srv/shop", str(self.folder))

    def _with_ids(self, text: str) -> str:
        """With what the reader puts for ID, 0195… and the words of the page."""
        found = "|".join((*map(re.escape, self._words), SOME_ID))
        return self._here(re.sub(found, lambda word: self._value(self._words.get(word[0], "${ID-}")), text))

    def _value(self, word: str) -> str:
        """What the shell has for this word; in a tutorial the id that was printed last."""
        if not self.store_url:
            return re.findall(UUID, self.printed)[-1]
        return self.shell.run(f'printf %s "{word}"')

    def close(self) -> None:
        """Stop the daemon, whatever failed."""
        self.shell.close()
        if self.daemon is not None:
            self.daemon.end()
            return
        configuration = os.environ.get("WORKERD_CONFIG", str(self.folder / "workerd.toml"))
        subprocess.run(["workerd", "stop", "-c", configuration], capture_output=True, check=False)


class PageDaemon(Daemon):
    """A daemon on the configuration of the page."""

    def write(self, config: str) -> None:
        self.path = self.folder / "etc"


def _is_prepared(block: Block) -> bool:
    return block.language == "toml" or bool(block.file)


_VARYING = (
    (re.compile(UUID), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "FINGERPRINT"),
    (re.compile(r"\d+(?:[.,]\d+)*"), "N"),
    (re.compile(r"[ \t]+"), " "),
)


def _compare(expected: str, printed: str) -> None:
    """Each line that is shown is printed; "…" stands for anything, figures and ids for any others."""
    for varying, word in _VARYING:
        expected, printed = varying.sub(word, expected), varying.sub(word, printed)
    for line in filter(str.strip, expected.splitlines()):
        pattern = ".*".join(map(re.escape, line.strip().split("…")))
        if not re.search(f"^ ?{pattern}$", printed.replace(" \n", "\n"), re.MULTILINE):
            raise Differs(f"shown on the page: {line}\nprinted: {printed}")


def main() -> int:
    page = ROOT / sys.argv[1]
    reader = Reader(page, os.environ.pop("STORE_URL", ""))
    try:
        reader.read()
    except (Differs, ShellFailed) as error:
        print(error)
        return 1
    finally:
        reader.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
