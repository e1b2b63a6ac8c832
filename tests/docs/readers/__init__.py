"""What the reader of a page has: `readers/NAME` is laid into the folder in which docs/…/NAME.md is read.

| file | what it is |
|---|---|
| `etc/conf.d/*.toml` | configuration beside that of the page |
| `session.py` | Python that runs before the page's, in the same namespace, with `client` and the daemon up; |
| | texts with a capital name are variables of the shell: `ID` is what ID and 0195… on the page stand for |
| `stubs.py` | names that handlers on the page use: it is imported into each Python file of the page |
| `words.txt` | lines of a word of the page's commands, and what the shell puts in its place |
| `after.py` | Python that runs after the page's: calls what the page defines, and asserts |
| `sqlite` | an empty file: the page is read beside a store of SQLite, not MariaDB |

`common` is laid into every one.
"""

from __future__ import annotations

import os
from typing import Any

import workerd
from tests.test_transaction import by_pymysql


def mysql_connection() -> Any:
    """A connection of the reader's own to the database that workerd uses too; it commits for itself."""
    return by_pymysql(os.environ["WORKERD_STORE__URL"])


def failed_job(client: workerd.Client, handler: str, **vars: Any) -> str:
    """The id of a job that has failed for good."""
    job = client.wait(client.enqueue(handler, vars).id)
    assert job.status == "failure", job
    return job.id
