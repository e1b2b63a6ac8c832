"""How long after deadline + grace is everything gone that a job started, and when does the next job start?

    python -m benchmarks.deadline
    python -m benchmarks.deadline --times 50

Four jobs that never end: a loop, C code that holds the GIL, one that swallows every exception, one whose
grandchild left its process group and session. Each is the only job of a pool with one
worker, with the next job waiting behind it. The end of every process is seen through its pidfd.
"""

from __future__ import annotations

import argparse
import os
import select
import time
from collections.abc import Iterator

from benchmarks.harness import HANDLERS, Figure, Node, Server, config, main, parser, spread
from tests.support.eventually import eventually

DEADLINE, GRACE = 0.2, 0.1
CASES = {"loop": "loop", "GIL-holding C": "c_code", "swallow": "swallow", "grandchild": "grandchild"}


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Case by case, one job after the other."""
    times = options.times or (12 if options.quick else 50)
    with Server("mariadb") as server:
        for name, call in CASES.items():
            # A loop ends at the soft deadline; without grace the hard one comes with it.
            grace = 0.0 if call == "loop" else GRACE
            limits = f'deadline = "{DEADLINE}s"\ngrace = "{grace}s"\nmax_attempts = 1\npool = "one"'
            text = config(
                {
                    "bad": f'call = "{HANDLERS}:{call}"\n{limits}',
                    "next": f'call = "{HANDLERS}:trace"\npool = "one"',
                }
            )
            with Node(server.url(), text) as node:
                once(node, grace)
                pairs = [once(node, grace) for _ in range(times)]
            settings = server.settings | {"deadline": DEADLINE, "grace": grace, "times": times}
            for part, values in (
                ("gone", [gone for gone, _ in pairs]),
                ("next job", [after for _, after in pairs]),
            ):
                yield Figure(
                    "deadline", f"{name}: {part}", "ms", parts=spread(values), settings=settings,
                    goal="p99 20", better="less",
                )  # fmt: skip


def once(node: Node, grace: float) -> tuple[float, float]:
    """Milliseconds past the hard deadline until all is gone, and from then until the next job began."""
    mark, following = node.path / "bad", node.path / "next"
    for path in (mark, following):
        path.unlink(missing_ok=True)
    node.client.enqueue("bad", {"path": str(mark)})
    eventually(lambda: mark.exists() and mark.read_text().endswith("\n"), within=20)
    words = list(map(int, mark.read_text().split()))
    hard = words[0] / 1e9 + DEADLINE + grace
    fds = [os.pidfd_open(pid) for pid in words[1:]]
    # Behind it in the same pool: it can only begin when the pool has a worker again.
    node.client.enqueue("next", {"path": str(following)})
    gone = all_gone(fds)
    eventually(lambda: following.exists() and following.read_text().endswith("\n"), within=20, every=0.001)
    began = int(following.read_text().split()[2]) / 1e9
    node.wait_for("bad")
    return (gone - hard) * 1000, max(0.0, began - gone) * 1000


def all_gone(fds: list[int]) -> float:
    """The monotonic second in which the last of these processes ended."""
    for fd in fds:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(20_000), "a process outlived its deadline by 20 s"
        os.close(fd)
    return time.monotonic()


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--times", type=int, default=0, help="of each case")
    return made


if __name__ == "__main__":
    raise SystemExit(main(arguments(), measure))
