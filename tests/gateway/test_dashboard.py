"""Pages on both engines, and their building blocks: escaped markup, charts, graphs."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from tests.support.gateway import Api
from workerd.config.model import WorkflowJob
from workerd.gateway.dashboard import components
from workerd.gateway.dashboard.charts import ChartLine, chart
from workerd.gateway.dashboard.components import el, join, path
from workerd.gateway.dashboard.graph import columns, draw

PRINTABLE = st.text(st.characters(blacklist_categories=["Cs", "Cc"]))


@given(PRINTABLE, PRINTABLE)
def test_text_stays_text(inside: str, attribute: str) -> None:
    """A parser reads the same text from an element that was put into it."""
    parsed = ET.fromstring(el("p", inside, el("b", inside), title=attribute, class_="x", hidden=False))
    assert (parsed.text or "") == inside
    assert (parsed[0].text or "") == inside
    assert parsed.attrib == {"title": attribute, "class": "x"}


def test_elements() -> None:
    """Void elements have no end tag, None and False are omitted, lists are concatenated."""
    assert el("input", required=True, value=None) == "<input required>"
    assert join("<", None, ["a", [1, 2.5]], el("br")) == "&lt;a12.5<br>"
    assert path("ui", "a/b", "ü?") == "/ui/a%2Fb/%C3%BC%3F"


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e9)), max_size=50))
def test_charts_are_well_formed(values: list[float | None]) -> None:
    """A chart of any values is well-formed and has a text alternative."""
    figure = ET.fromstring(
        chart("Rate", [ChartLine("good", "good", values)], components.number, "last 5 min")
    )
    picture = figure.find(".//svg")
    assert picture is not None
    assert "Rate, last 5 min" in picture.attrib["aria-label"]


def test_graphs() -> None:
    """Jobs stand to the right of the jobs they need; a cycle in a stored graph is left out."""
    jobs = [
        WorkflowJob(name="d", handler="h", needs=("b", "c")), WorkflowJob(name="a", handler="h"),
        WorkflowJob(name="b", handler="h", needs=("a",)), WorkflowJob(name="c", handler="h"),
        WorkflowJob(name="x", handler="h", needs=("y",)), WorkflowJob(name="y", handler="h", needs=("x",)),
    ]  # fmt: skip
    assert [[job.name for job in column] for column in columns(jobs)] == [["a", "c"], ["b"], ["d"]]
    drawn = draw(jobs, {})
    assert drawn is not None
    assert len(ET.fromstring(drawn).findall(".//rect")) == 4
    assert draw([], {}) is None
    assert draw([WorkflowJob(name=str(n), handler="h") for n in range(201)], {}) is None


def test_pages(api: Api) -> None:
    """Every page works on both engines, with a policy that runs no data as code."""
    markup = "<script>alert(1)</script>"
    job = api.enqueue("behave", {"kind": "failure", "x": markup}, meta={"m": markup})
    api.ended(job)
    request = api.post("/requests", {"workflow": "pair", "params": {"m": markup}}).json()["id"]
    pages = [
        "/", "/ui/jobs", "/ui/jobs?handler=noop&status=scheduled", "/ui/jobs?since=2020-01-01T00%3A00",
        f"/ui/jobs/{job}", "/ui/requests", "/ui/requests?workflow=pair&status=completed",
        f"/ui/requests/{request}",
        "/ui/handlers", "/ui/schedules", "/login",
    ]  # fmt: skip
    for page in pages:
        answer = api.get(page)
        assert answer.status_code == 200, (page, answer.text[-2000:])
        assert answer.headers["content-type"].startswith("text/html")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert markup not in answer.text
        assert 'style="' not in answer.text
    for page, status in (("/ui/jobs?status=x", 422), ("/ui/jobs?after=x", 422), ("/ui/nothing", 404)):
        assert api.get(page).status_code == status
