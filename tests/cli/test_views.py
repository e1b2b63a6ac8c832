"""The graph of a request."""

from __future__ import annotations

from typing import Any

from workerd import documents
from workerd.cli.views import draw_graph
from workerd.config.workflow_config import WorkflowJob
from workerd.redaction import NOTHING
from workerd.store.columns import JobRow
from workerd.workflow import Graph, of_cycle


def job(name: str, status: str, **more: Any) -> dict[str, Any]:
    """The document of a job; missing values are empty."""
    empty = dict.fromkeys(JobRow.__struct_fields__)
    row = JobRow(
        **{
            **empty, "id": bytes(16), "attempt": 1, "handler": name, "priority": 0, "status": status,
            "failures": 0, "crashes": 0, "losses": 0, "name": name, **more,
        }
    )  # fmt: skip
    return documents.job(row, NOTHING)


ID = "00000000-0000-0000-0000-000000000000"

STEPS = Graph(
    name="delete_user",
    steps=("retrieve", "delete"),
    jobs=(
        WorkflowJob(name="get", handler="get"),
        WorkflowJob(name="one", handler="one", needs=("get",), step=1),
        WorkflowJob(name="two", handler="two", needs=("get",), step=1),
    ),
)


def test_steps_are_drawn_one_below_the_other_with_state_time_and_error() -> None:
    """Jobs that have not started are shown too."""
    lines = draw_graph(
        STEPS,
        [
            job("get", "completed", run_us=12_300),
            job("one", "failure", run_us=500, attempt=2, error="no \x1b[31msuch user"),
        ],
    )
    assert lines == [
        "step 0: retrieve",
        f"  ✓ get completed   12.3 ms {ID}",
        "↓ step 1: delete",
        f"  ✗ one failure      0.5 ms {ID} attempt 2",
        r"      no \x1b[31msuch user",
        "    two not started",
    ]


def test_a_graph_names_what_each_job_needs_and_shows_what_it_spawned() -> None:
    """A job stands below the last of those that it needs."""
    graph = Graph(
        name="fan",
        jobs=(
            WorkflowJob(name="a", handler="h"),
            WorkflowJob(name="b", handler="h", needs=("a",)),
            WorkflowJob(name="c", handler="h", needs=("a", "b")),
        ),
    )
    lines = draw_graph(graph, [job("a", "completed"), job("a/x", "inprogress"), job("by hand", "new")])
    assert lines == [
        "level 0",
        f"  ✓ a       completed           {ID}",
        f"    ▶ a/x   inprogress          {ID}",
        "↓ level 1",
        "    b       not started ← a",
        "↓ level 2",
        "    c       not started ← a, b",
        f"  · by hand new                 {ID}",
    ]


def test_then_and_finally_stand_below_all_others() -> None:
    """After a retry by hand also the `finally` of before; of a batch its jobs come first."""
    final = (WorkflowJob(name="clean", handler="h"),)
    graph = Graph(name="w", jobs=(), members=True, then=(WorkflowJob(name="tell", handler="h"),), final=final)
    rows = [job("clean", "completed"), job("m1", "completed"), job("m2", "new"), job("m2/x", "new")]
    lines = draw_graph(of_cycle(graph, 1), rows)
    assert [" ".join(one.replace(ID, "").split()) for one in lines] == [
        "jobs",
        "✓ m1 completed",
        "· m2 new",
        "· m2/x new",
        "↓ then",
        "tell not started",
        "↓ finally, before it was reopened",
        "✓ clean completed",
        "↓ finally",
        "clean#2 not started",
    ]


def test_a_request_whose_steps_cannot_be_read_shows_its_jobs() -> None:
    """Jobs inserted by hand are shown too."""
    assert draw_graph(None, [job("x", "retry")]) == [f"  ? x retry               {ID}"]
