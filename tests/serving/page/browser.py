"""The page in headless Chromium, with the scripted server beside it."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.serving.page.fake_server import FakeServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


class Page:
    """The page in a browser.

    Attributes:
        driver: The browser.
        url: The page's address.
    """

    def __init__(self, driver: webdriver.Chrome, url: str):
        self.driver = driver
        self.url = url

    def open(self, width: int = 1280, height: int = 900, memory: str = "anna") -> None:
        """Open the page afresh, without anything that it stored, and wait until the memory is shown."""
        self.driver.get(self.url)
        self.driver.execute_script("localStorage.clear(); sessionStorage.clear()")
        self.resize(width, height)
        self.driver.get(self.url)
        self.wait(lambda: self.value("memory") == memory, "the memory is chosen")
        self.wait(lambda: self.text("live") == "live", "the events are listened to")
        self.wait(lambda: bool(self.all("#heat-grid canvas")), "the heat maps are shown")

    def resize(self, width: int, height: int) -> None:
        """Set the size of the view. A window cannot be narrower than 500 pixels, a view can."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, scheme: str) -> None:
        """Say that the system prefers `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def find(self, name: str) -> WebElement:
        """The element with an id."""
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        """The elements of a selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, name: str) -> str:
        """The text of the element with an id, also if it is hidden."""
        return str(self.script("return document.getElementById(arguments[0]).textContent", name))

    def texts(self, selector: str) -> list[str]:
        """The texts of the elements of a selector."""
        found: list[str] = self.script(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector
        )
        return found

    def value(self, name: str) -> str:
        """The value of the field with an id."""
        return str(self.script("return document.getElementById(arguments[0]).value", name))

    def script(self, text: str, *given: object) -> Any:
        """Run JavaScript and return its value."""
        return self.driver.execute_script(text, *given)

    def type(self, text: str) -> None:
        """Type into the message field."""
        self.find("question").send_keys(text)

    def choose(self, name: str, value: str) -> None:
        """Choose an option of a select."""
        self.script(
            "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('change'))",
            name,
            value,
        )

    def wait(self, true: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
        """Wait until something is true.

        Raises:
            AssertionError: It is not true after that time.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if true():
                    return
            except StaleElementReferenceException:
                pass
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds} s in vain until {what}")

    def wait_until_idle(self) -> None:
        """Wait until no reply is being generated."""
        self.wait(lambda: not self.find("stop").is_displayed(), "the reply is complete")

    def complaints(self) -> list[str]:
        """The errors and warnings of the browser's console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]


@contextmanager
def opened_page(server: FakeServer) -> Iterator[Page]:
    """The page of a scripted server, in a browser that is ended afterwards."""
    with served(server) as url:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield Page(driver, url)
        finally:
            driver.quit()


@contextmanager
def served(server: FakeServer) -> Iterator[str]:
    """The address of a scripted server on loopback, which runs in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(server.app(), log_level="warning", timeout_graceful_shutdown=1)
        runner = uvicorn.Server(config)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            runner.should_exit = True
            thread.join(10)
