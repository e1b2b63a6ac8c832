"""Compress a file with an awkward name, and one that is not there."""

from __future__ import annotations

import os
from pathlib import Path

from workerd import Client

file = Path(os.environ["EXAMPLE_FOLDER"], "a file; $(with) 'an awkward' name")
file.write_bytes(b"x" * 100_000)
with Client() as client:
    job = client.wait(client.enqueue("compress", {"file": str(file)}).id, timeout="30s")
    print("compressed to", int(job.result), "bytes")
    lost = client.wait(client.enqueue("compress", {"file": "/nowhere"}).id, timeout="30s")
    print("missing:", lost.status, lost.error)
    assert (job.status, lost.reason, len(lost.attempts)) == ("completed", "failure", 1)
