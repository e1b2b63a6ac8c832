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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
BROKEN = (
    '[handlers.broken]\ncall = "tests.support.nothing:here"\nrestart = { intensity = 1, period = "60s" }\n'
)
SCREENSHOTS = os.environ.get("TEST_PICTURES", "")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("gw")
    with Api(folder / "node", f"sqlite:///{folder}/store.db", CONFIG + BROKEN) as api:
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


def test_by_keyboard(browser: Browser) -> None:
    """The first tab stop skips the navigation; every control has a name."""
    browser.open("/ui/handlers")
    unnamed = browser.script(
        "return [...document.querySelectorAll('a, button, select, input')]"
        ".filter(e => e.offsetParent && !e.innerText.trim() && !e.ariaLabel && !e.labels?.length).length"
    )
    assert unnamed == 0
    browser.driver.find_element("css selector", "body").send_keys("\ue004")
    assert browser.script("return document.activeElement.innerText") == "Skip to content"


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
        "handlers": "/ui/handlers", "schedules": "/ui/schedules",
        "login": "/login",
    }  # fmt: skip
    for width in (375, 1440):
        for dark in (False, True):
            browser.set_screen(width, dark)
            for name, path in pages.items():
                browser.open(path)
                if name != "login":
                    browser.until("live", "#pulse")
                assert browser.overflow() <= 0, (name, width)
                browser.screenshot(folder / f"{name}-{width}-{'dark' if dark else 'light'}.png")
