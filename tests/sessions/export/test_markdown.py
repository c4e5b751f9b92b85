"""Chats in Markdown: every text comes back as it was, and wrong files are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.sessions.export.markdown import from_markdown, to_markdown

PIECES = ["## User", "## Assistant ", "\\## System", "\\", "#", "# Title", "\n", "\r\n", "\r", " ", "text", "", "🦊"]
PIECES += ["## Remembered: user", "## Remembered too: tool", "\u2028", "\x0b", "\x85"]
texts = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
titles = st.sampled_from(["", "Chat", "# a", "## User"])


def said(*texts: str, reply: str) -> dict:
    return {"messages": [{"role": "user", "content": text} for text in texts], "reply": reply, "remembered": False}


def remembered(*messages: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in messages], "remembered": True}


TURNS = st.one_of(
    st.builds(lambda many, reply: said(*many, reply=reply), st.lists(texts, min_size=1, max_size=2), texts),
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), texts), min_size=1, max_size=3).map(
        lambda messages: remembered(*messages)
    ),
)


@given(st.lists(TURNS, min_size=1, max_size=4), st.none() | texts, titles)
def test_every_text_comes_back(turns, system, title):
    content = {"title": title, "system": system, "turns": [{"tool_calls": [], "conversation": ""} | t for t in turns]}
    found = from_markdown(to_markdown(content))
    assert (found["title"], found["system"], found["turns"]) == (title, system, turns)


def test_how_it_looks():
    content = {"title": "Dogs", "system": "Be brief.", "turns": [remembered(("user", "Figs.")), said("Hi", reply="Ho")]}
    content["turns"] = [{"tool_calls": [], "conversation": ""} | turn for turn in content["turns"]]
    assert to_markdown(content) == (
        "# Dogs\n\n## System\n\nBe brief.\n\n## Remembered: user\n\nFigs.\n\n## User\n\nHi\n\n## Assistant\n\nHo\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "## User\nHi\n## Assistant\nHo",
        "\ufeff## User\r\n\r\nHi\r\n\r\n## Assistant\r\n\r\nHo\r\n",
        "Some words before.\n\n## User  \n\nHi\n\n## Assistant\n\nHo\n",
    ],
)
def test_what_people_write_is_read(text):
    assert from_markdown(text.removeprefix("\ufeff"))["turns"] == [said("Hi", reply="Ho")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no heading such as `## User`"),
        ("# Title\n\ntext", "has no heading"),
        ("## User\n\nHi\n", "ends without `## Assistant`"),
        ("## Assistant\n\nHi\n", "without `## User` before it"),
        ("## User\n\na\n\n## Assistant\n\nb\n\n## System\n\nc\n", "`## System` after another text"),
        ("## Remembered too: user\n\na\n", "without `## Remembered` before it"),
        ("## User\n\na\n\n## Remembered: user\n\nb\n", "between a message and its reply"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        from_markdown(text)


def test_what_markdown_cannot_hold():
    turn = {"tool_calls": [], "conversation": ""} | said("Hi", reply="Ho")
    for more in ({"tool_calls": [{}]}, {"messages": [{"role": "tool", "content": "x"}]}):
        with pytest.raises(ValueError, match=r"Markdown has texts only; export it to a .json file"):
            to_markdown({"title": "", "system": None, "turns": [turn | more]})
    with pytest.raises(ValueError, match="several conversations"):
        to_markdown({"title": "", "system": None, "turns": [turn, turn | {"conversation": "b"}]})
