"""Chromium without a screen, on the dashboard: what a person sees and does."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.support.eventually import eventually

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """A browser with a profile of its own; remembers what went wrong in its console and whom it asked."""

    def __init__(self, profile: Path, base: str) -> None:
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.driver.set_page_load_timeout(30)
        self._base = base
        self.look(1440, dark=False)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.driver.quit()

    def look(self, width: int, dark: bool) -> None:
        """As a screen of this width, light or dark."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, path: str) -> None:
        self.driver.get(self._base + path)

    def script(self, text: str) -> Any:
        return self.driver.execute_script(text)

    def text(self, selector: str = "main") -> str:
        return str(self.script(f"return document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def until(self, words: str, selector: str = "main", within: float = 30.0) -> None:
        """Wait until these words are seen."""
        eventually(lambda: words in self.text(selector), within=within, state=lambda: self.text())

    def click(self, words: str) -> None:
        """Press the button that says this."""
        self.driver.find_element(By.XPATH, f"//button[normalize-space()='{words}']").click()

    def picture(self, path: Path) -> None:
        answer = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def overflow(self) -> int:
        """Pixels that the page is wider than the screen."""
        return int(self.script("return document.documentElement.scrollWidth - window.innerWidth"))

    def complaints(self) -> list[str]:
        """What the console has said as an error since it was last asked."""
        return [one["message"] for one in self.driver.get_log("browser") if one["level"] == "SEVERE"]

    def asked(self) -> set[str]:
        """The beginnings of all addresses that the browser asked since it was last asked."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                found.add("/".join(url.split("/")[:3]))
        return {url for url in found if url.startswith("http")}
