"""Headless Chromium for tests of the dashboard."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.eventually import eventually

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """A browser with its own profile; records console errors and the requested hosts."""

    def __init__(self, profile: Path, base: str) -> None:
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.driver.set_page_load_timeout(30)
        self._base = base
        self.set_screen(1440, dark=False)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.driver.quit()

    def set_screen(self, width: int, dark: bool) -> None:
        """Emulate a screen of this width in pixels, with a light or dark colour scheme."""
        self._width = width
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

    def until(self, text: str, selector: str = "main", within: float = 30.0) -> None:
        """Wait until the text is visible."""
        eventually(lambda: text in self.text(selector), within=within, state=lambda: self.text())

    def click(self, label: str) -> None:
        """Click the button with this label, as soon as one can be seen."""
        xpath = f"//button[normalize-space()='{label}']"
        seen = eventually(
            lambda: [one for one in self.driver.find_elements(By.XPATH, xpath) if one.is_displayed()],
            state=self.text,
        )
        seen[0].click()

    def css(self, selector: str) -> WebElement:
        """The element of this CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def is_enabled(self, label: str) -> bool:
        """Whether the button with this label can be pressed."""
        return self.driver.find_element(By.XPATH, f"//button[normalize-space()='{label}']").is_enabled()

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        self.driver.switch_to.active_element.send_keys(key)

    def fill(self, name: str, text: str) -> None:
        """Replace what the field of this name has."""
        field = self.css(f"[name='{name}']")
        field.clear()
        field.send_keys(text)

    def value(self, name: str) -> str:
        """What the field of this name has."""
        return str(self.css(f"[name='{name}']").get_property("value"))

    def ticked(self) -> set[str]:
        """The values of the ticked boxes of a list."""
        script = "return [...document.querySelectorAll('#list input:checked')].map(e => e.value)"
        return set(self.script(script))

    def set_zone(self, name: str) -> None:
        """Emulate a reader in this time zone."""
        self.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": name})

    def screenshot(self, path: Path) -> None:
        answer = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        # Not less than `window.innerWidth`, which grows with the page on a phone.
        return int(self.script("return document.documentElement.scrollWidth")) - self._width

    def console_errors(self) -> list[str]:
        """The console errors since the last call."""
        return [one["message"] for one in self.driver.get_log("browser") if one["level"] == "SEVERE"]

    def requested_hosts(self) -> set[str]:
        """The origins of all requests since the last call."""
        origins = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                origins.add("/".join(url.split("/")[:3]))
        return {url for url in origins if url.startswith("http")}
