"""The page does what its buttons and keys say, in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="the page's tests need selenium: pip install selenium")
pytest.importorskip("starlette", reason="the page's tests need the extra 'server'")
pytest.importorskip("uvicorn", reason="the page's tests need the extra 'server'")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.serving.page.browser import CHROMIUM, DRIVER, Page, opened_page
from tests.serving.page.fake_server import HTML, PAGE, FakeServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="the page's tests need Chromium: apt-get install chromium chromium-driver",
    ),
]

QUESTION = "What is my dog called?"
REPLY = "Your dog is called Biscuit"


@pytest.fixture(scope="module")
def browser() -> Iterator[tuple[Page, FakeServer]]:
    server = FakeServer(layers=(1, 3, 5), rank=4, delay=0.01)
    with opened_page(server) as page:
        yield page, server


@pytest.fixture
def server(browser: tuple[Page, FakeServer]) -> FakeServer:
    """The server with one memory, anna, of three turns. The second turn has HTML in its text."""
    found = browser[1]
    found.key, found.delay = None, 0.01
    found.memories.clear()
    found.seen.clear()
    found.fill(found.make("anna"), 3)
    return found


@pytest.fixture
def page(browser: tuple[Page, FakeServer], server: FakeServer) -> Iterator[Page]:
    """The page, freshly opened. Its console must stay empty."""
    found = browser[0]
    found.scheme("light")
    found.open()
    found.complaints()
    yield found
    assert found.complaints() == []


def ask(page: Page, text: str = QUESTION) -> None:
    page.type(text + Keys.ENTER)
    page.wait_until_idle()


def turns(page: Page, number: int) -> None:
    page.wait(lambda: page.text("facts").startswith(f"{number} turn"), f"the memory has {number} turns")
    page.wait(lambda: len(page.texts("#turns li")) == number, f"{number} turns are listed")


def test_enter_sends_the_whole_chat_with_the_memory(page: Page, server: FakeServer) -> None:
    ask(page, "I have a dog.")
    ask(page)
    sent = server.seen[-1]
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["memory"] == {"name": "anna", "mode": "write"}
    assert sent["stream"] is True
    assert sent["model"] == "SmolLM2-135M-Instruct"
    assert REPLY in page.texts(".message.assistant .said")[-1]
    assert "written into anna" in page.texts(".message.assistant .meta")[-1]
    assert REPLY in page.text("spoken")


def test_a_reply_and_the_memory_are_shown_as_they_grow(page: Page, server: FakeServer) -> None:
    server.delay = 0.1
    pixels = "return document.querySelector('#heat-grid canvas').toDataURL()"
    before = page.script(pixels)
    page.type(QUESTION + Keys.ENTER)
    page.wait(lambda: "Thank you" in "".join(page.texts(".message.assistant .said")), "the reply begins")
    assert "canal" not in "".join(page.texts(".message.assistant .said"))
    assert page.script(pixels) != before
    assert page.text("facts").startswith("3 turns")
    page.wait_until_idle()
    turns(page, 4)
    assert "".join(page.texts("#gate-tokens span")).startswith(QUESTION)
    assert "canal." in page.texts("#gate-tokens span")[-1]
    assert "4 turns" in str(page.find("drift-chart").get_attribute("aria-label"))


def test_shift_and_enter_begins_a_line(page: Page, server: FakeServer) -> None:
    page.type("one" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "two")
    assert page.value("question") == "one\ntwo"
    assert not server.seen
    page.type(Keys.ENTER)
    page.wait_until_idle()
    assert server.seen[-1]["messages"][-1]["content"] == "one\ntwo"


def test_escape_stops_a_reply_and_keeps_its_beginning(page: Page, server: FakeServer) -> None:
    page.type("long" + Keys.ENTER)
    page.wait(lambda: "mind" in "".join(page.texts(".message.assistant .said")), "the reply begins")
    page.type(Keys.ESCAPE)
    page.wait_until_idle()
    said = page.texts(".message.assistant .said")[-1]
    assert page.texts(".message.assistant .meta")[-1] == "stopped"
    assert len(said.split()) < 600
    ask(page)
    assert server.seen[-1]["messages"][1] == {"role": "assistant", "content": said}


def test_all_is_reached_with_the_keyboard(page: Page) -> None:
    page.script("document.activeElement.blur()")
    page.driver.find_element(By.TAG_NAME, "body").send_keys("/")
    assert page.driver.switch_to.active_element.get_attribute("id") == "question"
    reached = set()
    for _ in range(40):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        active = page.driver.switch_to.active_element
        reached.add(active.get_attribute("id") or active.get_attribute("class"))
        if active.tag_name != "body":
            outline = active.value_of_css_property("outline-style")
            assert outline == "solid", f"{active.get_attribute('id')} has no visible focus"
    assert {"memory", "new-memory", "fork", "undo", "remember", "theme", "new-chat", "mode", "compare"} <= reached
    assert {"send", "heat-view", "tile"} <= reached


def test_new_chat_empties_the_chat_and_keeps_the_memory(page: Page, server: FakeServer) -> None:
    ask(page, "I have a dog.")
    page.find("new-chat").click()
    assert page.texts(".message") == []
    ask(page)
    assert len(server.seen[-1]["messages"]) == 1
    turns(page, 5)


def test_undo_takes_the_last_turn_out_of_memory_and_chat(page: Page, server: FakeServer) -> None:
    ask(page)
    turns(page, 4)
    page.find("undo").click()
    turns(page, 3)
    assert page.texts(".message") == []
    assert page.value("question") == QUESTION
    page.type(Keys.ENTER)
    page.wait_until_idle()
    assert len(server.seen[-1]["messages"]) == 1


def test_undo_of_a_memory_that_someone_else_changed_is_refused(page: Page, server: FakeServer) -> None:
    server.memories["anna"].revision += 1
    page.find("undo").click()
    page.wait(lambda: "changed by someone else" in page.text("error-text"), "the error is told")
    assert len(server.memories["anna"].turns) == 3
    assert all("412" in complaint for complaint in page.complaints())


def test_a_fork_goes_on_with_the_chat_and_leaves_the_first(page: Page, server: FakeServer) -> None:
    ask(page, "I have a dog.")
    turns(page, 4)
    page.find("fork").click()
    assert page.value("dialog-input") == "anna-fork"
    page.find("dialog-ok").click()
    page.wait(lambda: page.value("memory") == "anna-fork", "the copy is chosen")
    turns(page, 4)
    ask(page)
    assert server.seen[-1]["memory"]["name"] == "anna-fork"
    assert len(server.seen[-1]["messages"]) == 3
    turns(page, 5)
    assert len(server.memories["anna"].turns) == 4


def test_a_name_that_is_taken_or_not_a_name_is_refused(page: Page, server: FakeServer) -> None:
    page.find("new-memory").click()
    for name, problem in (("anna", "There is a memory"), ("a b", "letters"), ("..", "letters"), ("", "letters")):
        page.find("dialog-input").clear()
        page.find("dialog-input").send_keys(name + Keys.ENTER)
        assert problem in page.text("dialog-problem")
    page.find("dialog-input").send_keys(Keys.ESCAPE)
    assert not page.find("dialog").is_displayed()
    assert list(server.memories) == ["anna"]


def test_the_first_message_makes_a_memory(page: Page, server: FakeServer) -> None:
    server.memories.clear()
    page.driver.get(page.url)
    page.wait(lambda: "Make one" in page.text("heat-none"), "the page says that there is no memory")
    ask(page)
    turns(page, 1)
    assert page.value("memory") == "my-memory"


def test_the_name_of_a_memory_that_cannot_be_opened_is_taken(page: Page, server: FakeServer) -> None:
    server.memories.clear()
    server.hidden.add("my-memory")
    page.driver.get(page.url)
    page.wait(lambda: "Make one" in page.text("heat-none"), "the page says that there is no memory")
    ask(page)
    turns(page, 1)
    assert page.value("memory") == "my-memory-2"


def test_reset_delete_and_remember(page: Page, server: FakeServer) -> None:
    page.find("remember").click()
    page.find("dialog-area").send_keys("The key is under the mat.")
    page.find("dialog-ok").click()
    turns(page, 4)
    assert "remembered text" in page.texts("#turns li")[-1]
    for button, done in (("reset", "0 turns"), ("delete", "")):
        page.find("more").click()
        page.find(button).click()
        page.find("dialog-ok").click()
        page.wait(lambda done=done: page.text("facts").startswith(done), button)  # type: ignore[misc]
    page.wait(lambda: not server.memories, "the memory is deleted")


def test_side_by_side_leaves_memory_and_chat_as_they_are(page: Page, server: FakeServer) -> None:
    ask(page, "I have a dog.")
    turns(page, 4)
    revision = server.memories["anna"].revision
    page.type(QUESTION + Keys.CONTROL + Keys.ENTER)
    page.wait(lambda: len(page.texts(".column .meta")) == 3 and all(page.texts(".column .meta")), "three replies")
    page.wait_until_idle()
    on, read, off = page.texts(".column .said")
    assert REPLY in on
    assert REPLY in read
    assert "do not know" in off
    asked = [request["memory"] for request in server.seen[1:]]
    assert {"name": "anna", "mode": "read"} in asked
    assert {"name": "anna", "mode": "off"} in asked
    # The memory that is on is a copy, which is deleted.
    assert next(memory["name"] for memory in asked if memory["mode"] == "write").startswith("anna.compare-")
    assert list(server.memories) == ["anna"]
    assert server.memories["anna"].revision == revision
    ask(page)
    assert len(server.seen[-1]["messages"]) == 3


def test_modes_are_sent(page: Page, server: FakeServer) -> None:
    for mode in ("read", "off"):
        page.choose("mode", mode)
        ask(page)
        assert server.seen[-1]["memory"]["mode"] == mode
        assert "nothing written" in page.texts(".message.assistant .meta")[-1]
    turns(page, 3)


def test_html_in_a_reply_and_in_a_turn_is_text(page: Page) -> None:
    ask(page, "html")
    assert page.texts(".message.assistant .said")[-1] == HTML
    turns(page, 4)
    assert any(HTML in text for text in page.texts("#turns li"))
    assert HTML in "".join(page.texts("#gate-tokens span"))
    assert page.all("main img, main script") == []
    assert page.driver.title == "mlx_deltamem"


def test_no_source_turns_text_into_html() -> None:
    source = "".join((PAGE / name).read_text() for name in ("page.js", "index.html"))
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "onclick=", "style="):
        assert forbidden not in source
    assert "http://" not in source
    assert "https://" not in source


@pytest.mark.parametrize(("text", "told"), [("fail", "disk is full"), ("break", "Something went wrong")])
def test_errors_are_told_and_the_message_comes_back(page: Page, text: str, told: str) -> None:
    ask(page, text)
    assert told in page.text("error-text")
    assert page.find("error").is_displayed()
    assert page.value("question") == text
    assert page.texts(".message") == []
    assert all("507" in complaint for complaint in page.complaints())
    page.find("error-close").click()
    assert not page.find("error").is_displayed()


def test_the_key_is_asked_for_and_kept_in_this_session_only(page: Page, server: FakeServer) -> None:
    server.key = "secret"
    page.driver.get(page.url)
    page.wait(lambda: page.find("dialog-input").is_displayed(), "the key is asked for")
    assert page.find("dialog-input").get_attribute("type") == "password"
    page.find("dialog-input").send_keys("wrong" + Keys.ENTER)
    page.wait(lambda: "refused this key" in page.text("dialog-text"), "the wrong key is refused")
    page.find("dialog-input").send_keys("secret" + Keys.ENTER)
    page.wait(lambda: page.value("memory") == "anna", "the memory is shown")
    ask(page)
    assert REPLY in page.texts(".message.assistant .said")[-1]
    assert "secret" in page.script("return JSON.stringify(sessionStorage)")
    assert "secret" not in page.script("return JSON.stringify(localStorage)")
    assert all("401" in complaint for complaint in page.complaints())


@pytest.mark.parametrize("width", [320, 390, 799])
def test_a_narrow_page_has_one_column_and_does_not_scroll_sideways(page: Page, width: int) -> None:
    page.resize(width, 800)
    page.type(QUESTION + Keys.CONTROL + Keys.ENTER)
    page.wait_until_idle()
    ask(page, "x" * 300)
    turns(page, 4)
    assert page.script("return document.documentElement.scrollWidth") <= width
    chat, panel = page.find("chat").rect, page.find("panel").rect
    # The driver rounds sizes to whole pixels.
    assert panel["y"] >= chat["y"] + chat["height"] - 1


def test_a_wide_page_has_the_memory_beside_the_chat(page: Page) -> None:
    chat, panel = page.find("chat").rect, page.find("panel").rect
    assert panel["x"] >= chat["x"] + chat["width"] - 1
    assert page.script("return document.documentElement.scrollHeight") <= 900


def test_dark_by_the_system_and_by_the_switch(page: Page) -> None:
    def back() -> int:
        return sum(page.script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))

    assert back() > 600
    page.scheme("dark")
    assert back() < 150
    page.choose("theme", "light")
    assert back() > 600
    page.scheme("light")
    page.choose("theme", "dark")
    assert back() < 150
    page.driver.get(page.url)
    assert back() < 150


def test_a_map_is_shown_large_and_the_arrow_keys_change_the_layer(page: Page) -> None:
    assert page.texts("#heat-grid button span")[0].startswith("1")
    page.all("#heat-grid button")[0].click()
    page.wait(lambda: page.text("large-title") == "Layer 1", "the map is large")
    page.find("large-close").send_keys(Keys.ARROW_RIGHT)
    page.wait(lambda: page.text("large-title") == "Layer 3", "the next layer")
    page.find("large-close").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    page.wait(lambda: page.text("large-title") == "Layer 5", "the last layer")
    page.find("large-close").send_keys(Keys.ESCAPE)
    assert not page.find("large").is_displayed()


def test_export_and_import(page: Page, server: FakeServer, tmp_path: Path) -> None:
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.find("more").click()
    page.find("export").click()
    file = tmp_path / "anna.safetensors"
    page.wait(file.exists, "the file is downloaded")
    assert len(json.loads(file.read_bytes())) == 3
    copy = tmp_path / "from elsewhere.safetensors"
    copy.write_bytes(file.read_bytes())
    page.script("document.getElementById('import-file').hidden = false")
    page.find("import-file").send_keys(str(copy))
    page.wait(lambda: page.find("dialog-input").is_displayed(), "the name is asked for")
    assert page.value("dialog-input") == "from-elsewhere"
    page.find("dialog-ok").click()
    page.wait(lambda: page.value("memory") == "from-elsewhere", "the memory is chosen")
    turns(page, 3)
    assert list(server.memories) == ["anna", "from-elsewhere"]
