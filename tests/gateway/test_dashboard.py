"""Pages on both engines, and their building blocks: escaped markup, charts, graphs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support import storing
from tests.support.eventually import eventually
from tests.support.gateway import Api, EventStream
from workerd.config.model import StoreConfig
from workerd.config.workflow_config import WorkflowJob
from workerd.gateway.dashboard import components
from workerd.gateway.dashboard.charts import ChartLine, chart
from workerd.gateway.dashboard.components import el, join, path
from workerd.gateway.dashboard.graph import columns, draw
from workerd.job import Status, id_text
from workerd.job_filter import JobFilter
from workerd.store.engines import open_store

PRINTABLE = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Cn"]))


def test_progress_is_apart_from_its_note() -> None:
    """A figure, a space, a text; each of them may be missing."""
    assert components.progress(None, None) is None
    assert str(components.progress(None, "<b>")) == '<span class="sub">&lt;b&gt;</span>'
    shown = str(components.progress(0.5, "page 1"))
    assert shown.endswith('</progress> 50\u00a0% <span class="sub">page 1</span>')


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


def test_charts_make_nothing_up() -> None:
    """Each value holds for its interval, and what was not measured is a gap."""
    figure = ET.fromstring(chart("Rate", [ChartLine("x", "one", [4.0, None, 2.0])], components.number, "now"))
    line = figure.find(".//path[@class='line one']")
    assert line is not None
    assert line.attrib["d"] == "M0.0 4.0 L100.0 4.0 M200.0 37.0 L300.0 37.0"


def test_graphs() -> None:
    """Jobs stand to the right of the jobs they need; a cycle in a stored graph is left out."""
    jobs = [
        WorkflowJob(name="d", handler="h", needs=("b", "c")), WorkflowJob(name="a", handler="h"),
        WorkflowJob(name="b", handler="h", needs=("a",)), WorkflowJob(name="c", handler="h"),
        WorkflowJob(name="x", handler="h", needs=("y",)), WorkflowJob(name="y", handler="h", needs=("x",)),
    ]  # fmt: skip
    assert [[job.name for job in column] for column in columns(jobs)] == [["a", "c"], ["b"], ["d"]]
    last = WorkflowJob(name="last", handler="h", step=9)
    assert [job.name for job in columns([*jobs, last])[-1]] == ["last"]
    drawn = draw(jobs, {})
    assert drawn is not None
    assert len(ET.fromstring(drawn).findall(".//rect")) == 4
    assert draw([], {}) is None
    assert draw([WorkflowJob(name=str(n), handler="h") for n in range(201)], {}) is None


def test_pages(api: Api) -> None:
    """Every page works on both engines, with a policy that runs no data as code."""
    markup = "<script>alert(1)</script>"
    job = api.enqueue("behave", {"kind": "failure", "x": markup}, meta={"m": markup})
    ended = api.ended(job)
    fingerprint, reason = ended["fingerprint"], ended["reason"]
    request = api.post("/requests", {"workflow": "pair", "params": {"m": markup}}).json()["id"]
    pages = [
        "/", "/ui/jobs", "/ui/jobs?handler=noop&status=scheduled", "/ui/jobs?since=2020-01-01T00%3A00",
        f"/ui/jobs?error={fingerprint}&reason={reason}", "/ui/jobs?group=g&meta=m%3D1%2Cn%3D2",
        "/ui/jobs?until=2020-01-01T00%3A00%3A00Z", f"/ui/jobs?request={request}",
        f"/ui/jobs/{job}", "/ui/requests", "/ui/requests?workflow=pair&status=completed",
        f"/ui/requests/{request}",
        "/ui/errors", "/ui/errors?all=true&handler=behave", f"/ui/errors/{fingerprint}",
        "/ui/handlers", "/ui/schedules", "/ui/schedules/cool", "/login",
        "/ui/new-schedule?cron=0%207%20*%20*%20*&timezone=Europe%2FBerlin", "/ui/new-schedule?cron=never",
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
    assert job in api.get(f"/ui/jobs?error={fingerprint}&reason={reason}&handler=behave").text
    assert job not in api.get(f"/ui/jobs?error={fingerprint}&reason={reason}&group=other").text
    assert f"/ui/jobs?error={fingerprint}" in api.get(f"/ui/errors/{fingerprint}").text
    for page, status in (
        ("/ui/jobs?status=x", 422),
        ("/ui/jobs?error=x", 422),
        ("/ui/jobs?reason=x", 422),
        ("/ui/jobs?meta=x", 422),
        ("/ui/jobs?after=x", 422),
        ("/ui/jobs?until=x", 422),
        ("/ui/jobs?request=x", 422),
        ("/ui/errors/x", 422),
        ("/ui/nothing", 404),
    ):
        assert api.get(page).status_code == status


def test_the_list_of_jobs_has_every_filter(api: Api) -> None:
    """As HTTP and the command line have; those that are set stand in the form."""
    asked = api.post("/requests", {"workflow": "pair"}).json()["id"]
    ended = api.get(f"/requests/{asked}?wait=30s").json()
    members = [job["id"] for job in ended["jobs"]]
    page = api.get(f"/ui/jobs?request={asked}").text
    assert all(job in page for job in members)
    assert f'value="{asked}"' in page
    for other in (f"request={api.enqueue('noop')}", f"request={asked}&until=2020-01-01T00%3A00"):
        assert not any(job in api.get(f"/ui/jobs?{other}").text for job in members)
    assert members[0] in api.get("/ui/jobs?until=2999-01-01T00%3A00").text
    for name in JobFilter._fields:
        assert f'name="{name}"' in page


def test_below_a_path_of_a_proxy(api: Api) -> None:
    """All links of a page, and of its updates, lead below the prefix that the proxy names."""
    job = api.enqueue("noop")
    api.ended(job)
    headers = {"X-Forwarded-Prefix": "/tools/workerd/"}
    link = re.compile(r'(?:href|src|action|data-post|data-to)="(/[^"]*)')
    for page in (
        "/",
        "/ui/jobs",
        f"/ui/jobs/{job}",
        "/ui/handlers",
        "/ui/schedules",
        "/login",
        "/ui/nothing",
    ):
        answer = api.get(page, headers=headers)
        links = link.findall(answer.text)
        assert len(links) > 3, page
        assert all(one.startswith("/tools/workerd/") for one in links), links
        # Jobs of other tests may end between the two.
        eventually(
            lambda page=page: (
                len(link.findall(api.get(page, headers=headers).text))
                == len(link.findall(api.get(page).text))
            )
        )
        assert 'data-prefix="/tools/workerd"' in answer.text
    assert api.get("/ui", headers=headers).headers["location"] == "/tools/workerd/"
    stream = EventStream(api, "/ui/jobs", **headers)
    eventually(lambda: f'href="/tools/workerd/ui/jobs/{job}"' in stream.parts.get("list", ""))
    for wrong in ("//evil.example", "/a/../b", '/"><b>', "evil", "/" + "x" * 300):
        assert 'href="/ui/jobs"' in api.get("/", headers={"X-Forwarded-Prefix": wrong}).text, wrong


def test_the_page_of_a_waiting_job(api: Api) -> None:
    """It says why the job waits, as `GET /jobs/{id}/why` does."""
    api.post("/handlers/add/pause", {"reason": "mending"})
    job = api.enqueue("add", {"a": 1, "b": 2}, expires="1h")
    answer = api.get(f"/jobs/{job}/why").json()
    assert "expires at" in answer["why"][-1]
    assert "<dt>Expires</dt>" in api.get(f"/ui/jobs/{job}").text
    assert (answer["id"], answer["status"], answer["job"]["id"]) == (job, "new", job)
    assert "paused" in answer["why"][0]
    assert "mending" in answer["why"][0]
    assert "Why it waits" in api.get(f"/ui/jobs/{job}").text
    assert "mending" in api.get(f"/ui/jobs/{job}").text
    api.post("/handlers/add/resume")
    api.ended(job)
    assert "ended as completed" in api.get(f"/jobs/{job}/why").json()["why"][0]
    assert "Why it waits" not in api.get(f"/ui/jobs/{job}").text
    assert api.get("/jobs/01900000-0000-7000-8000-000000000000/why").status_code == 404
    assert api.get("/jobs/nothing/why").status_code == 404


def test_waits_of_workflows_are_no_handler_that_is_missing(api: Api) -> None:
    """Their reserved name is listed with what waits, and no node is expected to have it."""
    graph = {"name": "order", "jobs": [{"name": "approve", "signal": "approved"}]}
    request = api.post("/requests", graph).json()["id"]
    text = api.get("/ui/handlers").text
    assert "Waiting steps of workflows; no pool claims them." in text
    assert "not loaded by any node" not in text
    api.post(f"/requests/{request}/signals/approved", {})


def test_the_page_of_a_running_job(api: Api, tmp_path: Path) -> None:
    """It says for how long it runs, when its deadline is, and how much memory it has."""

    def fact(page: str, name: str) -> str:
        found = re.search(rf"<dt>{name}</dt><dd>([^<]*)</dd>", page)
        return found[1] if found else ""

    for deadline, words in (("1h", r"in (1 h|59 min).*"), (None, "none")):
        path = tmp_path / f"go-{deadline}"
        job = api.enqueue("file", {"path": str(path)}, deadline=deadline)
        eventually(lambda job=job: api.get(f"/jobs/{job}").json()["status"] == "inprogress")
        eventually(lambda job=job: fact(api.get(f"/ui/jobs/{job}").text, "Memory now"))
        page = api.get(f"/ui/jobs/{job}").text
        assert re.fullmatch(r"[\d.]+ (ms|s|µs)", fact(page, "Running for")), fact(page, "Running for")
        assert re.fullmatch(words, fact(page, "Deadline")), fact(page, "Deadline")
        assert re.fullmatch(r"[\d.]+ MiB", fact(page, "Memory now")), fact(page, "Memory now")
        path.touch()
        api.ended(job)
        assert "Running for" not in api.get(f"/ui/jobs/{job}").text


def test_the_page_of_a_job_with_many_attempts_is_small(api: Api) -> None:
    """It has as many of the newest stacks as it has room for, and says where the others are."""
    store = open_store(StoreConfig(url=api.daemon.url))
    job = id_text(storing.enqueue(store, "of-no-node"))
    for n in range(30):
        status = Status.FAILURE if n == 29 else Status.RETRY
        storing.finish(store, "of-no-node", status, error=f"error <{n}>", stack=f"stack <{n}>" * 6000)
    store.close()
    page = api.get(f"/ui/jobs/{job}").text
    assert len(page) < 1 << 20
    assert "stack &lt;29&gt;" in page
    assert "error &lt;28&gt;" in page
    assert "stack &lt;10&gt;" not in page
    assert page.count("<tr") > 30
    assert f'href="/jobs/{job}"' in page
    assert len(api.get(f"/jobs/{job}").json()["attempts"]) == 30


def test_the_form_of_a_schedule_shows_its_next_times(api: Api) -> None:
    """Five of them, or what is wrong; the page of one that was set has them too, and a way to remove it."""
    form = "/ui/new-schedule?cron=0+7+*+*+*&timezone=Europe%2FBerlin"
    assert api.get(form).text.count("<li>") == 5
    assert "expected a cron expression" in api.get("/ui/new-schedule?cron=never").text
    body = {"handler": "add", "cron": "0 7 * * *", "vars": {"a": 1}}
    assert api.http.put("/schedules/daily", json=body).status_code == 201
    page = api.get("/ui/schedules/daily").text
    assert page.count("<li>") == 5
    assert 'data-method="DELETE"' in page
    assert "/ui/new-schedule?name=daily&amp;handler=add" in page
    assert api.http.delete("/schedules/daily").status_code == 204
    assert api.get("/ui/schedules/daily").status_code == 404
