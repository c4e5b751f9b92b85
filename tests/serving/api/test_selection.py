"""Which memory a request uses."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from mlx_deltamem.serving.api.app import make_app
from mlx_deltamem.serving.api.selection import done_headers, is_name, stable_name
from mlx_deltamem.serving.api.settings import MEMORY_FIELDS
from mlx_deltamem.serving.exchange import Done, Mode
from tests.serving.api.conftest import MODEL, SETTINGS

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def chosen(service):
    """Ask, and return the memory, mode and chat that reach the engine."""

    def ask(body=None, headers=None, **settings):
        client = TestClient(make_app(service, replace(SETTINGS, **settings)))
        answer = client.post("/v1/chat/completions", json={"messages": HELLO, **(body or {})}, headers=headers)
        assert answer.status_code == 200, answer.text
        asked = service.asked[-1]
        return asked.memory, asked.mode, asked.chat

    return ask


def test_without_a_name_the_memory_is_private(chosen):
    body = {"user": "u", "prompt_cache_key": "p", "conversation": "c", "metadata": {"memory": "m"}}
    assert chosen(body) == (None, Mode.WRITE, None)


def test_a_header_comes_first(chosen):
    body = {"memory": {"name": "bob"}, "model": f"{MODEL}@carl"}
    assert chosen(body, {"X-Deltamem-Memory": "anna"}) == ("anna", Mode.WRITE, None)
    assert chosen(body, {"X-Deltamem-Memory": "anna:ro"}) == ("anna", Mode.READ, None)
    assert chosen(body, {"X-Deltamem-Memory": ""}) == ("bob", Mode.WRITE, None)


def test_then_the_field_memory(chosen):
    body = {"memory": {"name": "bob", "mode": "read"}, "model": f"{MODEL}@carl:ro"}
    assert chosen(body) == ("bob", Mode.READ, None)
    # The mode is the narrowest of all, whatever names the memory.
    assert chosen({**body, "memory": {"name": "bob"}}) == ("bob", Mode.READ, None)
    assert chosen({"model": f"{MODEL}@carl:ro"}, {"X-Session-ID": "s"}) == ("s", Mode.READ, "s")
    assert chosen({"model": f"{MODEL}@carl"}, {"X-Deltamem-Memory": ":ro"}) == ("carl", Mode.READ, None)
    assert chosen({"memory": {"mode": "off"}}) == (None, Mode.OFF, None)
    assert chosen({"memory": {"mode": "read"}}, {"X-Deltamem-Memory": "anna"}) == ("anna", Mode.READ, None)
    assert chosen({"memory": {"mode": "write"}}, {"X-Deltamem-Memory": "anna:ro"}) == ("anna", Mode.READ, None)


def test_then_the_models_name(chosen):
    assert chosen({"model": f"{MODEL}@carl"}) == ("carl", Mode.WRITE, None)
    assert chosen({"model": f"{MODEL}@carl:ro", "user": "u"}, memory_from=("user",)) == ("carl", Mode.READ, None)
    assert chosen({"model": "default_model@carl"}) == ("carl", Mode.WRITE, None)
    for name, memory in (("org/repo", None), ("org/repo@carl", "carl")):
        assert chosen({"model": name}, given_model="org/repo") == (memory, Mode.WRITE, None)


def test_then_the_fields_that_the_server_was_told_of(chosen):
    body = {"user": "u", "prompt_cache_key": "p", "conversation": {"id": "c"}, "metadata": {"memory": "m"}}
    assert chosen(body, memory_from=("user",)) == ("u", Mode.WRITE, None)
    assert chosen(body, memory_from=("metadata.memory",)) == ("m", Mode.WRITE, None)
    assert chosen(body, memory_from=("prompt_cache_key",)) == ("p", Mode.WRITE, "p")
    assert chosen(body, memory_from=MEMORY_FIELDS) == ("c", Mode.WRITE, "c")
    assert chosen({}, memory_from=MEMORY_FIELDS) == (None, Mode.WRITE, None)


def test_ids_of_other_programs_get_stable_names(chosen):
    memory, _, chat = chosen({}, {"X-OpenClaw-Session-Key": "agent:main:main"})
    assert memory == chat == stable_name("agent:main:main") and re.fullmatch("h-[0-9a-f]{32}", memory)
    assert chosen({}, {"X-Session-ID": "abc:ro"}) == ("abc", Mode.READ, "abc")
    assert chosen({}, {"X-Session-ID": "../../etc"})[0].startswith("h-")
    assert chosen({}, {"X-OpenWebUI-Chat-Id": "é\x7f".encode()})[0].startswith("h-")
    assert chosen({}, {"X-Deltamem-Memory": "anna", "X-OpenWebUI-Chat-Id": "c1"}) == ("anna", Mode.WRITE, "c1")
    assert chosen({}, {"X-Other": "a"}, memory_headers=("X-Other",)) == ("a", Mode.WRITE, "a")


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/chat/completions", "messages"), ("/v1/messages", "messages"), ("/v1/responses", "input")],
)
def test_a_task_of_a_program_is_not_part_of_the_chat(client, service, path, field):
    """With the id of the chat, its message would count as an edit of the chat's first one."""
    headers = {"X-Deltamem-Memory": "anna", "X-OpenWebUI-Chat-Id": "c1"}
    sources = "### Task:\nRespond to the user query using the provided context.\n<context>\nA.\n</context>\n\nhello"
    for text in ("### Task:\nWrite a title.", "hello", sources):
        body = {field: [{"role": "user", "content": text}]}
        assert client.post(path, json=body, headers=headers).status_code == 200
    found = [(asked.memory, asked.mode, asked.chat, asked.goes_on) for asked in service.asked]
    # A question of the user that comes with sources is part of the chat.
    assert found == [("anna", Mode.READ, None, False), *[("anna", Mode.WRITE, "c1", True)] * 2]


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a b", "x" * 65, "a:b", "é", "a%2fb", ":ro"])
def test_a_name_that_is_none_is_refused(client, name):
    answer = client.post(
        "/v1/chat/completions", json={"messages": HELLO}, headers={"X-Deltamem-Memory": name.encode("latin-1")}
    )
    assert (answer.status_code == 400) == (name != ":ro")


def test_names():
    assert all(map(is_name, ["a", "a.b", "a.", "-", "_", "x" * 64]))
    assert not any(map(is_name, ["", ".", "..", "...", ".a", "..a", "a\n", "x" * 65, "ä", "a/b", "a\\b", "a\0"]))


def test_the_answer_says_which(client):
    answer = client.post("/v1/completions", json={"prompt": "x", "memory": {"name": "anna"}})
    assert answer.headers["X-Deltamem-Memory"] == "anna" and answer.headers["X-Deltamem-Revision"] == "7"
    assert answer.headers["X-Deltamem-Written"] == "false"
    assert answer.json()["usage"]["memory"]["name"] == "anna"


def test_a_note_of_the_engine_is_a_header_without_line_breaks():
    headers = done_headers(Done("stop", 1, 1, 1, "t", None, 0, False, "né\r\nX: y"))
    assert headers["X-Deltamem-Note"] == "n\\xe9\\r\\nX: y"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_a_note_is_in_the_headers_of_every_answer(client, service, path, body, stream):
    assert "X-Deltamem-Note" not in client.post(path, json={**body, "stream": stream}).headers
    service.note = "only the last words are seen"
    answer = client.post(path, json={**body, "stream": stream})
    assert answer.headers["X-Deltamem-Note"] == service.note
    assert f'"note":"{service.note}"' in answer.text
