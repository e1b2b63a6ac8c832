"""The dashboard in a browser: live updates, buttons, sessions, and every page on small and large screens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.eventually import eventually
from tests.support.gateway import CONFIG, Api
from tests.support.path_proxy import PathProxy

pytestmark = pytest.mark.slow

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
BROKEN = (
    '[handlers.broken]\ncall = "tests.support.nothing:here"\nrestart = { intensity = 1, period = "60s" }\n'
)
ORDER = '[handlers.order]\ncall = "tests.support.form_handlers:order"\nmax_attempts = 1\n'
SCREENSHOTS = os.environ.get("TEST_PICTURES", "")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("gw")
    with Api(folder / "node", f"sqlite:///{folder}/store.db", CONFIG + BROKEN + ORDER) as api:
        yield api


@pytest.fixture
def browser(api: Api, tmp_path: Path) -> Iterator[Browser]:
    """After each test: no console error, no request to another host, no crashed route."""
    with Browser(tmp_path / "profile", f"http://{api.address}") as browser:
        yield browser
        assert browser.console_errors() == []
        assert browser.requested_hosts() <= {f"http://{api.address}"}
        assert "route.crashed" not in api.daemon.logged()


def test_a_job_goes_from_waiting_to_done(api: Api, browser: Browser, tmp_path: Path) -> None:
    """The page of a job and the overview follow its states without a reload."""
    api.post("/handlers/file/pause")
    job = api.enqueue("file", {"path": str(tmp_path / "go")})
    browser.open(f"/ui/jobs/{job}")
    browser.script("window.same = true")
    browser.until("waiting", "#head")
    api.post("/handlers/file/resume")
    browser.until("running", "#head")
    (tmp_path / "go").touch()
    browser.until("completed", "#head")
    browser.until("seen", "#data")
    assert browser.script("return window.same") is True
    browser.open("/")
    browser.script("window.same = true")
    other = api.enqueue("file", {"path": str(tmp_path / "later")})
    browser.until(other[-6:], "#running")
    (tmp_path / "later").touch()
    eventually(lambda: other[-6:] not in browser.text("#running"))
    assert browser.script("return window.same") is True


def test_retry_and_cancel_by_button(api: Api, browser: Browser) -> None:
    """A failed job is retried by its button, a waiting one cancelled after confirmation."""
    job = api.enqueue("behave", {"kind": "failure"})
    api.ended(job)
    browser.open(f"/ui/jobs/{job}")
    browser.until("failed", "#head")
    browser.click("Retry")
    eventually(lambda: len(api.get(f"/jobs/{job}").json()["attempts"]) == 2)
    browser.until("2", "#attempts tbody tr:nth-child(2)")
    waiting = api.enqueue("noop", delay="1h")
    browser.open(f"/ui/jobs/{waiting}")
    browser.click("Cancel")
    browser.click("No")
    assert api.get(f"/jobs/{waiting}").json()["status"] == "scheduled"
    browser.click("Cancel")
    browser.click("Yes")
    browser.until("cancelled", "#head")


def test_pause_by_button(api: Api, browser: Browser) -> None:
    """A handler is paused with a reason, which is shown, and resumed."""
    browser.open("/ui/handlers")
    browser.driver.find_element("css selector", "[data-post='/handlers/add/pause']").click()
    browser.driver.find_element("css selector", "input[name=reason]").send_keys("mending <b>it</b>")
    browser.click("Yes")
    browser.until("mending <b>it</b>")
    browser.driver.find_element("css selector", "[data-post='/handlers/add/resume']").click()
    eventually(lambda: "mending" not in browser.text())


def test_a_quarantined_pool(browser: Browser) -> None:
    """The overview shows which pool is quarantined, and why."""
    browser.open("/")
    browser.until("Pool broken is quarantined", "#attention")
    assert "tests.support.nothing" in browser.text("#attention")


def test_markup_stays_text(api: Api, browser: Browser) -> None:
    """The data of a job is shown as text and never runs."""
    job = api.enqueue("behave", {"kind": MARKUP}, meta={MARKUP: MARKUP}, unique_key=MARKUP)
    assert MARKUP[:20] in api.ended(job)["stack"] + str(api.get(f"/jobs/{job}").json()["error"])
    for path in (f"/ui/jobs/{job}", "/ui/jobs?status=failure", "/"):
        browser.open(path)
        browser.until("onerror", "body" if path != "/" else "main")
        assert "owned" not in browser.driver.title
        assert browser.script("return document.querySelectorAll('main script, main img').length") == 0


def test_by_keyboard(api: Api, browser: Browser) -> None:
    """The first tab stop skips the navigation; every control has a name; boxes and dialogs need no mouse."""
    job = api.enqueue("order", {"item": "tea"}, delay="1d", group="keys")
    pages = ("/ui/handlers", "/ui/jobs?group=keys", f"/ui/jobs/{job}", f"/ui/jobs/{job}/edit",
             "/ui/enqueue?handler=order", "/ui/new-schedule")  # fmt: skip
    for page in pages:
        browser.open(page)
        unnamed = browser.script(
            "return [...document.querySelectorAll('a, button, select, input, textarea')].filter(e =>"
            " e.offsetParent && !e.innerText.trim() && !e.ariaLabel && !e.labels?.length).length"
        )
        assert unnamed == 0, page
        browser.css("body").send_keys("\ue004")
        assert browser.script("return document.activeElement.innerText") == "Skip to content"
    browser.open("/ui/jobs?group=keys")
    browser.script("document.querySelector('#list input.tick').focus()")
    browser.press(" ")
    browser.until("1 ticked", "#ticked")
    browser.script("document.querySelector('button[data-ticked=cancel]').focus()")
    browser.press("\ue007")
    browser.until("Cancel ticked: 1 job?", "#question")
    browser.press("\ue00c")  # Escape: no
    eventually(lambda: not browser.script("return document.getElementById('confirm').open"))
    assert api.get(f"/jobs/{job}").json()["status"] == "scheduled"
    browser.script("document.querySelector('button[data-ticked=cancel]').focus()")
    browser.press("\ue007")
    browser.until("Cancel ticked: 1 job?", "#question")
    browser.press("\ue007")  # the focus is on Yes
    browser.until("1 of 1 job: done.", "#toast")


def test_a_session(tmp_path: Path) -> None:
    """Without a session there is the login form, with one the dashboard, until it is ended."""
    (tmp_path / "tokens").write_text("open-sesame\n")
    gateway = f'token_file = "{tmp_path}/tokens"'
    with (
        Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", gateway=gateway) as api,
        Browser(tmp_path / "profile", f"http://{api.address}") as browser,
    ):
        browser.open("/ui/jobs")
        field = browser.driver.find_element("css selector", "input[name=token]")
        field.send_keys("wrong")
        browser.click("Log in")
        browser.until("Invalid token", "#login-error")
        field.clear()
        field.send_keys("open-sesame")
        browser.click("Log in")
        browser.until("Overview", "h1")
        assert browser.script("return document.cookie") == ""
        browser.until("live", "#pulse")
        browser.click("Log out")
        eventually(lambda: browser.driver.current_url.endswith("/login"))


def test_lists_are_short_on_a_phone(api: Api, browser: Browser) -> None:
    """A job takes few lines of the list, with its state; a failed one shows the beginning of its error."""
    for _ in range(20):
        api.ended(api.enqueue("behave", {"kind": "failure"}))
    browser.set_screen(375, dark=False)
    browser.open("/ui/jobs?handler=behave")
    heights = browser.script(
        "return [...document.querySelectorAll('#list tbody tr')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(heights) >= 20
    assert max(heights) < 100
    assert "failed" in browser.text("#list tbody tr:first-child")
    assert browser.overflow() <= 0


def test_below_a_path(tmp_path: Path) -> None:
    """Behind a proxy that strips a path all works below it: login, links, updates, buttons, logout."""
    (tmp_path / "tokens").write_text("open-sesame\n")
    gateway = f'token_file = "{tmp_path}/tokens"'
    with (
        Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", gateway=gateway) as api,
        PathProxy(api.address, "/tools/jobs") as proxy,
        Browser(tmp_path / "profile", f"http://{proxy.address}/tools/jobs") as browser,
    ):
        browser.open("/ui/jobs")
        browser.driver.find_element("css selector", "input[name=token]").send_keys("open-sesame")
        browser.click("Log in")
        browser.until("Overview", "h1")
        browser.until("live", "#pulse")
        browser.driver.find_element("link text", "Handlers").click()
        browser.until("live", "#pulse")
        button = browser.driver.find_element("css selector", "[data-post='/tools/jobs/handlers/add/pause']")
        button.click()
        browser.click("Yes")
        browser.until("paused", "#list")
        assert browser.driver.current_url == f"http://{proxy.address}/tools/jobs/ui/handlers"
        browser.click("Log out")
        eventually(lambda: browser.driver.current_url.endswith("/tools/jobs/login"))
        assert browser.console_errors() == []


def test_ticked_jobs_stay_ticked_and_are_cancelled(api: Api, browser: Browser) -> None:
    """Rows move when a job comes in; what was ticked is what is cancelled."""
    first, second, third = (api.enqueue("noop", delay="1d", group="ticks") for _ in range(3))
    browser.open("/ui/jobs?group=ticks")
    browser.until("live", "#pulse")
    assert not browser.is_enabled("Cancel ticked")
    browser.css(f"input.tick[value='{first}']").click()
    browser.css(f"input.tick[value='{third}']").click()
    browser.until("2 ticked", "#ticked")
    newest = api.enqueue("noop", delay="1d", group="ticks")
    browser.until(newest[-6:], "#list tbody tr:first-child")
    assert browser.ticked() == {first, third}
    browser.click("Cancel ticked")
    browser.until("Cancel ticked: 2 jobs?", "#question")
    browser.click("Yes")
    browser.until("2 of 2 jobs: done.", "#toast")
    found = {job: api.get(f"/jobs/{job}").json()["status"] for job in (first, second, third, newest)}
    assert found == {first: "cancelled", second: "scheduled", third: "cancelled", newest: "scheduled"}
    browser.css("#tick-all").click()
    browser.until("4 ticked", "#ticked")
    browser.css("#tick-all").click()
    browser.until("none ticked", "#ticked")


def test_all_that_match_are_cancelled_after_a_count(api: Api, browser: Browser) -> None:
    """More than a page; without a filter there is no such button."""
    jobs = [{"handler": "noop", "delay": "1d", "group": "crowd"} for _ in range(60)]
    api.post("/jobs/bulk", {"jobs": jobs})
    browser.open("/ui/jobs")
    assert "all that match" not in browser.text()
    browser.open("/ui/jobs?group=crowd&status=scheduled")
    browser.click("Cancel all that match")
    browser.until("60 jobs match. Cancel all that match?", "#question")
    browser.click("No")
    browser.click("Cancel all that match")
    browser.click("Yes")
    browser.until("60 of 60 jobs: done.", "#toast")
    left = api.post("/jobs/cancel", {"filter": {"group": "crowd"}, "dry_run": True}).json()
    assert left == {"matched": 0, "done": 0}
    act = api.get("/audit").json()["audit"][0]
    assert (act["via"], len(act["detail"]["ids"])) == ("ui", 60)


def test_a_job_is_enqueued_by_a_form_of_its_signature(api: Api, browser: Browser) -> None:
    """A field for each parameter, by its type; what is left empty takes its default."""
    eventually(lambda: "item: str" in api.daemon.cli("handlers").stdout)
    browser.open("/ui/jobs")
    browser.driver.find_element("link text", "Enqueue a job").click()
    browser.script("document.querySelector('select[name=handler]').value = 'order'")
    browser.click("Choose")
    browser.until("Arguments of order", "main")
    browser.click("Enqueue")
    assert browser.driver.current_url.endswith("/ui/enqueue?handler=order"), "item is required"
    browser.fill("vars.item", "tea")
    browser.fill("vars.count", "two")
    browser.click("Enqueue")
    browser.until("vars.count: expected JSON", "#toast")
    browser.fill("vars.count", "2")
    browser.fill("vars.tags", '["hot"]')
    browser.fill("vars.card", "4711-0815")
    browser.script("document.querySelector('select[name=\\'vars.gift\\']').value = 'true'")
    browser.fill("group", "forms")
    browser.click("Enqueue")
    browser.until("completed", "#head")
    job = api.get(f"/jobs/{browser.driver.current_url.rpartition('/')[2]}").json()
    assert job["payload"] == {
        "item": "tea", "count": 2, "size": "M", "gift": True, "tags": ["hot"], "paid": 9,
    }  # fmt: skip
    assert (job["group"], job["vars"]["card"]) == ("forms", "[redacted]")


def test_a_job_is_edited_and_a_failed_one_retried_with_other_vars(api: Api, browser: Browser) -> None:
    """Only what is changed is sent; a redacted value stays as it is, an emptied one goes."""
    vars_ = {"item": "coffee", "count": 3, "card": "4711-0815"}
    failed = api.enqueue("order", vars_)
    api.ended(failed)
    browser.open(f"/ui/jobs/{failed}")
    browser.driver.find_element("link text", "Edit and retry").click()
    assert browser.value("vars.card") == ""
    assert browser.value("vars.count") == "3"
    browser.fill("vars.item", "tea")
    browser.fill("vars.count", "")
    browser.click("Retry with these")
    browser.until("completed", "#head")
    result = api.get(f"/jobs/{failed}").json()["payload"]
    assert (result["item"], result["count"], result["paid"]) == ("tea", 1, 9)
    waiting = api.enqueue("order", {"item": "tea", "plan": "gold"}, delay="2h", group="old")
    browser.open(f"/ui/jobs/{waiting}/edit")
    browser.fill("group", "new")
    browser.fill("priority", "7")
    browser.click("Save")
    browser.until("new", "#details")
    job = api.get(f"/jobs/{waiting}").json()
    assert (job["group"], job["priority"], job["status"]) == ("new", 7, "scheduled")
    changed = api.get(f"/audit?target={waiting}").json()["audit"][0]
    assert (changed["via"], changed["detail"]) == ("ui", {"priority": 7, "group": "new"})


def test_the_search_box_leads_to_what_is_named(api: Api, browser: Browser) -> None:
    """An id, a fingerprint, a handler, a key of meta; what is not there is said."""
    job = api.enqueue("behave", {"kind": "failure"}, meta={"order": "4711"})
    request = api.post("/requests", {"workflow": "held"}).json()["id"]
    fingerprint = api.ended(job)["fingerprint"]
    browser.open("/")
    for text, end in (
        (job, f"/ui/jobs/{job}"), (request, f"/ui/requests/{request}"),
        (fingerprint, f"/ui/errors/{fingerprint}"),
        ("behave", "/ui/jobs?handler=behave"), ("order=4711", "/ui/jobs?meta=order%3D4711"),
    ):  # fmt: skip
        browser.css("input[name=q]").send_keys(text + "\ue007")
        eventually(lambda end=end: browser.driver.current_url.endswith(end))
    browser.until(job[-6:], "#list")
    browser.css("input[name=q]").send_keys("nothing <b>like it\ue007")
    browser.until("Nothing found for 'nothing <b>like it'", "main")
    browser.console_errors()  # the page itself is a 404
    api.post(f"/requests/{request}/cancel")


def test_redacted_values_are_revealed_in_a_dialog(api: Api, browser: Browser) -> None:
    """After a question; the audit has it, and closing the dialog takes them from the page."""
    job = api.enqueue("order", {"item": "tea", "card": "4711-0815"})
    api.ended(job)
    browser.open(f"/ui/jobs/{job}")
    browser.until("[redacted]", "#data")
    browser.click("Reveal")
    browser.click("Yes")
    browser.until("4711-0815", "#values-text")
    assert "4711-0815" not in browser.text("main")
    browser.click("Close")
    eventually(lambda: "4711-0815" not in browser.script("return document.documentElement.innerHTML"))
    act = api.get(f"/audit?target={job}").json()["audit"][0]
    assert (act["action"], act["via"]) == ("reveal", "ui")
    plain = api.enqueue("behave", {"kind": "text", "text": "x" * 30_000})
    browser.open(f"/ui/jobs/{plain}")
    browser.click("Show whole values")
    eventually(lambda: len(browser.text("#values-text")) > 30_000)
    assert "Reveal" not in browser.text("#data")


def test_times_are_in_the_reader_s_zone(api: Api, browser: Browser) -> None:
    """With UTC as the title; a filter for a time is asked in the reader's zone, and sent as UTC."""
    browser.set_zone("Asia/Kolkata")
    job = api.enqueue("noop", run_at="2099-01-31T12:00:00Z")
    browser.open(f"/ui/jobs/{job}")
    due = browser.script(
        "return [...document.querySelectorAll('#details time')].map(e => [e.innerText, e.title])"
    )
    assert any(
        "5:30:00" in text and "in " in text and title == "2099-01-31 12:00:00 UTC" for text, title in due
    ), due
    browser.open("/ui/jobs?since=2026-01-01T00:00:00Z")
    assert browser.value("since").startswith("2026-01-01T05:30")
    browser.click("Apply")
    eventually(lambda: "since=2026-01-01T00%3A00%3A00Z" in browser.driver.current_url)
    browser.until(job[-6:], "#list")


def test_what_a_role_may_not_do_is_not_shown(tmp_path: Path) -> None:
    """A viewer has no tick boxes, forms, buttons nor reveal, and is refused their pages."""
    (tmp_path / "tokens").write_text("vic viewer vic-secret\nann operator op-secret\n")
    gateway = f'token_file = "{tmp_path}/tokens"'
    with (
        Api(
            tmp_path / "node", f"sqlite:///{tmp_path}/store.db", CONFIG + ORDER, gateway=gateway,
            Authorization="Bearer op-secret",
        ) as api,
        Browser(tmp_path / "profile", f"http://{api.address}") as browser,
    ):  # fmt: skip
        job = api.enqueue("order", {"item": "tea", "card": "4711-0815"})
        api.ended(job)
        browser.open("/login")
        browser.css("input[name=token]").send_keys("vic-secret")
        browser.click("Log in")
        browser.until("vic · viewer", ".session")
        for path in ("/ui/jobs?handler=order", f"/ui/jobs/{job}", "/ui/handlers", "/ui/errors"):
            browser.open(path)
            buttons = browser.script(
                "return [...document.querySelectorAll('main button')].map(e => e.innerText)"
            )
            assert set(buttons) <= {"Apply"}, path
            assert browser.script("return document.querySelectorAll('main input[type=checkbox]').length") == 0
            assert "Edit" not in browser.text()
            assert "Enqueue" not in browser.text()
        for path in ("/ui/enqueue", f"/ui/jobs/{job}/edit"):
            browser.open(path)
            browser.until("Expected a token with the role operator", "main")


def test_every_page_on_every_screen(api: Api, browser: Browser, tmp_path: Path) -> None:
    """No page is wider than a phone or a desktop screen, light or dark; screenshots are kept."""
    request = api.post("/requests", {"workflow": "pair"}).json()["id"]
    failed = api.enqueue("behave", {"kind": "error"})
    api.enqueue("file", {"path": str(tmp_path / "never"), "limit": 20})
    fingerprint = api.ended(failed)["fingerprint"]
    folder = Path(SCREENSHOTS or tmp_path / "screenshots")
    pages = {
        "overview": "/", "jobs": "/ui/jobs", "job": f"/ui/jobs/{failed}", "requests": "/ui/requests",
        "request": f"/ui/requests/{request}", "errors": "/ui/errors", "error": f"/ui/errors/{fingerprint}",
        "handlers": "/ui/handlers", "schedules": "/ui/schedules", "schedule": "/ui/schedules/tick",
        "new-schedule": "/ui/new-schedule", "limits": "/ui/limits", "audit": "/ui/audit",
        "enqueue": "/ui/enqueue?handler=order", "edit": f"/ui/jobs/{failed}/edit",
        "filtered": "/ui/jobs?handler=behave&status=failure", "missing": "/ui/search?q=nothing",
        "login": "/login",
    }  # fmt: skip
    for width in (375, 1440):
        for dark in (False, True):
            browser.set_screen(width, dark)
            for name, path in pages.items():
                browser.open(path)
                if name not in ("login", "missing"):
                    browser.until("live", "#pulse")
                assert browser.overflow() <= 0, (name, width)
                browser.screenshot(folder / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    browser.console_errors()  # the page of a search that finds nothing is a 404
