"""A daemon whose processes write the names of the modules they hold to files, when asked for news.

`python -m tests.support.imported_modules run -c PATH` is that daemon; the files are in $MODULES_FOLDER, each
called like its process: `dispatcher`, `pool h`, `worker`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import setproctitle

MODULES_FOLDER = "MODULES_FOLDER"


def write(name: str) -> None:
    """Write the modules of this process to the file `name`."""
    file = Path(os.environ[MODULES_FOLDER]) / name
    fresh = file.with_name(f"{name}.new")
    fresh.write_text("\n".join(sorted(sys.modules)))
    fresh.replace(file)


def modules_of_worker() -> None:
    """The handler that does it in a worker."""
    write("worker")


def _main() -> int:
    from workerd.cli.main import main
    from workerd.runtime import service

    usage = service.own_usage  # what a role or pool finds out when it is asked for news

    def own_usage() -> dict[str, float]:
        write(setproctitle.getproctitle().removeprefix("workerd: "))
        return usage()

    vars(service)["own_usage"] = own_usage
    return main()


if __name__ == "__main__":
    sys.exit(_main())
