"""A chat in a notebook."""

import base64
import re
import struct

from mlx_deltamem import ChatSession, load
from tests.conftest import adapter, backbone

EVIL = '<img src=x onerror="alert(1)"> & more'


def test_a_chat_shows_its_messages_and_its_memory():
    model, tokenizer = load(backbone(), adapter=adapter())
    chat = ChatSession(model, tokenizer, system=EVIL, history="none")
    empty = chat._repr_html_()
    chat.title = EVIL
    chat.send("Hello", 3)
    page = chat._repr_html_()
    assert page.count("<img") == 1 and "&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &amp; more" in page
    assert "turns 1, history none, written all" in page and "<b>user:</b> Hello" in page
    assert "768 bytes: a tile for each state of layers 0 to 2" in page
    pictures = [base64.b64decode(re.search(r"base64,([^\"]+)", html)[1]) for html in (empty, page)]
    assert pictures[0] != pictures[1]
    for picture in pictures:
        assert picture.startswith(b"\x89PNG")
        # Three tiles of 64 pixels in two columns, with gaps of 4.
        assert struct.unpack(">II", picture[16:24]) == (140, 140)


def test_only_the_last_messages_are_shown():
    model, tokenizer = load(backbone(), adapter=adapter())
    chat = ChatSession(model, tokenizer, history="none")
    for number in range(12):
        chat.send(f"message {number:02}", 1)
    page = chat._repr_html_()
    assert "4 messages before these" in page
    assert "message 01" not in page and "message 02" in page and "message 11" in page
