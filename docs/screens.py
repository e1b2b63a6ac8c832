"""Takes the pictures of the dashboard: `docs/images/screens/*.png`, of a shop with the same jobs every time.

    python -m docs.screens

Takes two minutes and needs Chromium with its driver, as the tests of the dashboard do.
"""

from __future__ import annotations

import base64
import io
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from docs.generate import ROOT
from tests.support.browser import Browser
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.servers import free_port
from workerd import Client, JobSpec
from workerd.documents import Request

FOLDER = ROOT / "docs" / "images" / "screens"
WIDE, NARROW = 1440, 375
LOWEST, HIGHEST = 640, 1200
"""Pixels of a picture; what is below is cut off, and a list may grow while it is taken."""
END_OF_CONTENT = """return Math.max(
    ...[...document.querySelectorAll("main *")].map(element => element.getBoundingClientRect().bottom))"""
MARGIN = 24
COLOURS = 128
LOAD_S = 75.0
"""For how long jobs come in before the first picture: the charts show the last minutes."""

CONFIG = """
backoff = { first = "200ms" }
[pools.images]
workers = 2
[pools.bank]
workers = 3
[pools.shop]
workers = 2
[limits.bank]
concurrency = 3
group_concurrency = 1
rate = "300/1m"
[handlers]
thumbnail = { call = "jobs:thumbnail", pool = "images", max_attempts = 2 }
charge = { call = "jobs:charge", pool = "bank", limit = "bank", group = "{tenant}" }
convert = { call = "jobs:convert" }
export = { call = "jobs:export" }
report = { call = "jobs:report", workers = 2 }
reserve = { call = "jobs:reserve", pool = "shop" }
pay = { call = "jobs:pay", pool = "shop" }
pack = { call = "jobs:pack", pool = "shop" }
label = { call = "jobs:label", pool = "shop" }
ship = { call = "jobs:ship", pool = "shop" }
refuse = { call = "jobs:refuse", pool = "shop" }
check_stock = { call = "jobs:check_stock", cooler = "5s", pool = "shop" }
[workflows.order]
jobs = [
  { name = "reserve", handler = "reserve" },
  { name = "pay", handler = "pay", needs = ["reserve"] },
  { name = "pack", handler = "pack", needs = ["reserve"] },
  { name = "label", handler = "label", needs = ["pack"] },
  { name = "approve", signal = "approved", timeout = "7d", needs = ["pay"] },
  { name = "ship", handler = "ship", needs = ["approve", "label"] },
]
[workflows.refund]
steps = [{ name = "check", jobs = ["refuse"] }, { name = "pay", jobs = ["pay"] }]
[schedules.report-eu]
handler = "report"
cron = "0 7 * * *"
timezone = "Europe/Berlin"
vars = { month = "2026-11" }
[schedules.report-us]
handler = "report"
cron = "0 7 * * *"
timezone = "America/New_York"
vars = { month = "2026-11" }
"""


class Shop:
    """A daemon with jobs that come in as long as it is open."""

    def __init__(self, folder: Path) -> None:
        shutil.copy(Path(__file__).with_name("scene.py"), folder / "jobs.py")
        url = f"sqlite:///{folder}/store.db"
        self.address = f"http://127.0.0.1:{free_port()}"
        self.daemon = Daemon(
            folder / "node",
            url,
            f'[defaults]\npath = ["{folder}"]\n{CONFIG}',
            name="web1",
            gateway=self.address.removeprefix("http://"),
        )
        self.daemon.start()
        self.client = Client(self.daemon.path, name="shop")
        self._closed = threading.Event()
        self._random = random.Random(7)  # the same jobs every time
        self._orders = 4700
        self._load = threading.Thread(target=self._enqueue)
        self._load.start()

    def _enqueue(self) -> None:
        while not self._closed.wait(0.25):
            for _ in range(self._random.randrange(1, 6)):
                self._orders += 1
                kind = "gif" if self._orders % 97 == 0 else "png"
                self.client.enqueue("thumbnail", {"image": f"order-{self._orders}.{kind}", "width": 300})
            if self._random.random() < 0.8:
                tenant = self._random.choice(("blue", "green", "red"))
                self.client.enqueue("charge", {"order": self._orders, "tenant": tenant})

    def set_up(self) -> tuple[Request, str]:
        """What stands still: a running request and a job that failed."""
        for month in ("2026-10", "2026-11"):
            self.client.enqueue("report", {"month": month})
        self.client.enqueue_many([JobSpec(handler="convert", vars={"video": f"{n}.mp4"}) for n in range(3)])
        self.client.enqueue("export", {"table": "orders"})
        self.client.pause("export", reason="the warehouse is moving until noon", by="ann")
        self.client.enqueue_many([JobSpec(handler="export", vars={"table": f"t{n}"}) for n in range(4)])
        self.client.submit("refund", {"customer": "bob"})
        for customer in ("cy", "dan", "eve"):
            request = self.client.submit("order", {"customer": customer})
            eventually(lambda id=request.id: _waits(self.client.get_request(id)))
            if customer != "eve":
                self.client.signal(request.id, "approved", {"by": "ann"})
        failed = self.client.enqueue("charge", {"order": 41 * 113, "tenant": "blue"})
        return self.client.get_request(request.id), self.client.wait(failed.id).id

    def close(self) -> None:
        self._closed.set()
        self._load.join()
        self.client.close()
        self.daemon.end()


def _waits(request: Request) -> bool:
    """Whether only what comes after the approval is left."""
    return request.done == 4


@contextmanager
def shop() -> Iterator[Shop]:
    with tempfile.TemporaryDirectory(prefix="shop-") as folder:
        opened = Shop(Path(folder))
        try:
            yield opened
        finally:
            opened.close()


def take(shop: Shop, browser: Browser) -> None:
    """Every picture."""
    request, job = shop.set_up()
    time.sleep(LOAD_S)
    pages = {
        "overview": "/",
        "jobs": "/ui/jobs",
        "job": f"/ui/jobs/{job}",
        "request": f"/ui/requests/{request.id}",
        "errors": "/ui/errors",
        "handlers": "/ui/handlers",
        "limits": "/ui/limits",
        "schedules": "/ui/schedules",
    }
    for name, path in pages.items():
        save(browser, path, name, WIDE)
    save(browser, "/", "overview-narrow", NARROW)


def save(browser: Browser, path: str, name: str, width: int) -> None:
    """A picture of the page, from its top."""
    browser.set_screen(width, dark=False)
    browser.open(path)
    time.sleep(1)  # charts and live figures
    end = browser.script(END_OF_CONTENT)
    height = min(HIGHEST, max(LOWEST, int(end) + MARGIN))
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    answer = browser.driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
    )
    picture = Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


def main() -> int:
    with (
        shop() as opened,
        tempfile.TemporaryDirectory() as profile,
        Browser(Path(profile), opened.address) as browser,
    ):
        take(opened, browser)
    return 0


if __name__ == "__main__":
    sys.exit(main())
