"""Take pictures of the server's page: `python -m tools.measure.page_shots --output FOLDER`.

The page is shown in headless Chromium beside a scripted server. The pictures are to be looked at: `light`, `dark`,
`streaming`, `compare`, `narrow`, `narrow-memory`, `error`, `dialog`, `large`, `empty` and `small-states`, each `.png`.
Needs Debian's packages chromium and chromium-driver, and selenium, starlette and uvicorn.
"""

import argparse
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from mlx_deltamem.cli.command import command
from tests.serving.page.browser import Page, opened_page
from tests.serving.page.fake_server import FakeServer


@command
def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    server = FakeServer()
    server.fill(server.make("anna"), 9)
    with opened_page(server) as page:
        _chat_shots(page, folder)
        _state_shots(page, folder)
        print("\n".join(page.complaints()) or "no complaints in the console")
    small = FakeServer(layers=tuple(range(30)), rank=8)
    with opened_page(small) as page:
        page.driver.get(page.url)
        page.resize(1280, 900)
        page.wait(lambda: "Make one" in page.text("heat-none"), "the page says that there is no memory")
        _shot(page, folder, "empty")
        small.fill(small.make("anna"), 40)
        page.open()
        _shot(page, folder, "small-states")


def _chat_shots(page: Page, folder: Path) -> None:
    page.scheme("light")
    page.open()
    page.type("My dog is called Biscuit, and I live in Ghent near the canal." + Keys.ENTER)
    page.wait(lambda: len(page.texts("#gate-tokens span")) > 20, "tokens are shown")
    _shot(page, folder, "streaming")
    page.wait_until_idle()
    page.find("new-chat").click()
    page.type("What is my dog called?" + Keys.ENTER)
    page.wait_until_idle()
    page.wait(lambda: len(page.texts("#turns li")) == 11, "the turns are shown")
    _shot(page, folder, "light")
    page.scheme("dark")
    _shot(page, folder, "dark")
    page.type("What is my dog called?" + Keys.CONTROL + Keys.ENTER)
    page.wait_until_idle()
    _shot(page, folder, "compare")
    page.scheme("light")
    page.resize(390, 844)
    _shot(page, folder, "narrow")
    page.script("document.getElementById('panel').scrollIntoView()")
    _shot(page, folder, "narrow-memory")


def _state_shots(page: Page, folder: Path) -> None:
    page.open()
    page.type("fail" + Keys.ENTER)
    page.wait(lambda: page.find("error").is_displayed(), "the error is shown")
    _shot(page, folder, "error")
    page.find("fork").click()
    _shot(page, folder, "dialog")
    page.find("dialog-cancel").click()
    page.all("#heat-grid button")[3].click()
    _shot(page, folder, "large")


def _shot(page: Page, folder: Path, name: str) -> None:
    # A picture is taken after the next two frames: the charts are drawn before a frame.
    page.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    page.driver.save_screenshot(str(folder / f"{name}.png"))


if __name__ == "__main__":
    main()
