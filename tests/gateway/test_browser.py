"""The dashboard as a person has it: in a browser, on a phone and on a desk, by day and by night."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.eventually import eventually
from tests.support.gateway import CONFIG, Api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
BROKEN = (
    '[handlers.broken]\ncall = "tests.support.nothing:here"\nrestart = { intensity = 1, period = "60s" }\n'
)
PICTURES = os.environ.get("TEST_PICTURES", "")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("gw")
    with Api(folder / "node", f"sqlite:///{folder}/store.db", CONFIG + BROKEN) as api:
        yield api


@pytest.fixture
def browser(api: Api, tmp_path: Path) -> Iterator[Browser]:
    """After each test: no error in the console, no other host was asked, no fault in the node's log."""
    with Browser(tmp_path / "profile", f"http://{api.address}") as browser:
        yield browser
        assert browser.complaints() == []
        assert browser.asked() <= {f"http://{api.address}"}
        assert "a fault in" not in api.daemon.logged()


def test_a_job_goes_from_waiting_to_done(api: Api, browser: Browser, tmp_path: Path) -> None:
    """The page of a job, and the list, show its states as they come, without a reload."""
    api.post("/handlers/file/pause")
    job = api.enqueue("file", {"path": str(tmp_path / "go")})
    browser.open(f"/ui/jobs/{job}")
    browser.script("window.same = true")
    browser.until("waiting", "#head")
    api.post("/handlers/file/resume")
    browser.until("running", "#head")
    (tmp_path / "go").touch()
    browser.until("completed", "#head")
    browser.until("seen", "#documents")
    assert browser.script("return window.same") is True
    browser.open("/")
    browser.script("window.same = true")
    other = api.enqueue("file", {"path": str(tmp_path / "later")})
    browser.until(other[-6:], "#running")
    (tmp_path / "later").touch()
    eventually(lambda: other[-6:] not in browser.text("#running"))
    assert browser.script("return window.same") is True


def test_retry_and_cancel_by_button(api: Api, browser: Browser) -> None:
    """A failed job runs again by its button, a waiting one is cancelled after a question."""
    job = api.enqueue("faces", {"face": "failure"})
    api.ended(job)
    browser.open(f"/ui/jobs/{job}")
    browser.until("failure", "#head")
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
    """A handler is paused with a reason that is shown, and resumed."""
    browser.open("/ui/handlers")
    browser.driver.find_element("css selector", "[data-post='/handlers/add/pause']").click()
    browser.driver.find_element("css selector", "input[name=reason]").send_keys("mending <b>it</b>")
    browser.click("Yes")
    browser.until("mending <b>it</b>")
    browser.driver.find_element("css selector", "[data-post='/handlers/add/resume']").click()
    eventually(lambda: "mending" not in browser.text())


def test_a_quarantined_pool(browser: Browser) -> None:
    """The first page says which pool is held back, and why."""
    browser.open("/")
    browser.until("Pool broken is quarantined", "#attention")
    assert "tests.support.nothing" in browser.text("#attention")


def test_markup_stays_text(api: Api, browser: Browser) -> None:
    """What a job was given and said is shown as it is and never runs."""
    job = api.enqueue("faces", {"face": MARKUP}, meta={MARKUP: MARKUP}, unique_key=MARKUP)
    assert MARKUP[:20] in api.ended(job)["stack"] + str(api.get(f"/jobs/{job}").json()["error"])
    for path in (f"/ui/jobs/{job}", "/ui/jobs?status=failure", "/"):
        browser.open(path)
        browser.until("onerror", "body" if path != "/" else "main")
        assert "owned" not in browser.driver.title
        assert browser.script("return document.querySelectorAll('main script, main img').length") == 0


def test_by_keyboard(browser: Browser) -> None:
    """The first stop of the keyboard leads past the navigation; everything that acts has a name."""
    browser.open("/ui/handlers")
    unnamed = browser.script(
        "return [...document.querySelectorAll('a, button, select, input')]"
        ".filter(e => e.offsetParent && !e.innerText.trim() && !e.ariaLabel && !e.labels?.length).length"
    )
    assert unnamed == 0
    browser.driver.find_element("css selector", "body").send_keys("\ue004")
    assert browser.script("return document.activeElement.innerText") == "Skip to content"


def test_a_session(tmp_path: Path) -> None:
    """Who has no session is asked for a token, sees the dashboard with one, and leaves again."""
    (tmp_path / "tokens").write_text("open sesame\n")
    gateway = f'token_file = "{tmp_path}/tokens"'
    with (
        Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", gateway=gateway) as api,
        Browser(tmp_path / "profile", f"http://{api.address}") as browser,
    ):
        browser.open("/ui/jobs")
        field = browser.driver.find_element("css selector", "input[name=token]")
        field.send_keys("wrong")
        browser.click("Log in")
        browser.until("no token", "#wrong")
        field.clear()
        field.send_keys("open sesame")
        browser.click("Log in")
        browser.until("Overview", "h1")
        assert browser.script("return document.cookie") == ""
        browser.until("live", "#pulse")
        browser.click("Log out")
        eventually(lambda: browser.driver.current_url.endswith("/login"))


def test_every_page_on_every_screen(api: Api, browser: Browser, tmp_path: Path) -> None:
    """No page is wider than a phone or a desk, by day or by night; pictures of them are kept."""
    request = api.post("/requests", {"workflow": "pair"}).json()["id"]
    failed = api.enqueue("faces", {"face": "error"})
    api.enqueue("file", {"path": str(tmp_path / "never"), "limit": 20})
    api.ended(failed)
    folder = Path(PICTURES or tmp_path / "pictures")
    pages = {
        "overview": "/", "jobs": "/ui/jobs", "job": f"/ui/jobs/{failed}", "requests": "/ui/requests",
        "request": f"/ui/requests/{request}", "handlers": "/ui/handlers", "schedules": "/ui/schedules",
        "login": "/login",
    }  # fmt: skip
    for width in (375, 1440):
        for dark in (False, True):
            browser.look(width, dark)
            for name, path in pages.items():
                browser.open(path)
                if name != "login":
                    browser.until("live", "#pulse")
                assert browser.overflow() <= 0, (name, width)
                browser.picture(folder / f"{name}-{width}-{'dark' if dark else 'light'}.png")
