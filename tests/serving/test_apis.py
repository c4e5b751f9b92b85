"""The APIs over an engine with a tiny model: what they write, and the numbers of tokens that they tell."""

import json

import pytest

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from mlx_deltamem.serving.api.app import make_app
from mlx_deltamem.serving.api.settings import Settings
from mlx_deltamem.sessions.text.segments import start_length
from tests.serving.conftest import chat_of, every_history
from tests.sessions.test_session import new_chat

SYSTEM = {"role": "system", "content": "You are a helpful assistant who says little."}
QUESTION = "What is my name?"
CHAT, RESPONSES, ANTHROPIC = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def client_of(server) -> TestClient:
    return TestClient(make_app(server.service, Settings(allowed_hosts=("testserver",), max_tokens=8)))


def turns_of(server, name: str) -> list[list[str]]:
    return [[message["content"] for message in turn.messages] for turn in chat_of(server, name).turns]


def test_a_chat_with_a_null_in_the_input_of_a_tool_is_known_in_the_other_api(running):
    server = running()
    client = client_of(server)
    given = {"city": "Oslo", "unit": None}
    call = {"id": "t1", "type": "function", "function": {"name": "w", "arguments": json.dumps(given)}}
    messages = [user("Weather?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "t1", "content": "5"})
    answer = client.post(CHAT, json={"messages": messages, "memory": {"name": "anna"}}).json()
    use = {"type": "tool_use", "id": "t1", "name": "w", "input": given}
    messages = [
        user("Weather?"),
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "5"}]},
        assistant(answer["choices"][0]["message"]["content"]),
        user("Thanks."),
    ]
    answer = client.post(ANTHROPIC, json={"max_tokens": 3, "messages": messages, "memory": {"name": "anna"}})
    assert answer.status_code == 200
    assert turns_of(server, "anna") == [["Weather?"], ["5"], ["Thanks."]]


@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_on_from_a_response_that_only_read_is_not_written(running, stream):
    server = running()
    client = client_of(server)
    server.ask("My word is jade.", memory="anna")
    before = chat_of(server, "anna").memory
    body = {"input": "A private remark.", "max_output_tokens": 4}
    previous = client.post(RESPONSES, json=body, headers={"X-Deltamem-Memory": "anna:ro"}).json()["id"]
    for text in ("And now?", "And then?"):
        # The turn is gone if the copy that it was in is dropped. The whole chat is then read again.
        server.memories.get("anna").readers._readers.clear()
        body = {"input": text, "max_output_tokens": 4, "previous_response_id": previous, "stream": stream}
        answer = client.post(RESPONSES, json=body)
        assert answer.status_code == 200
        told = answer.text.split("data: ")[-1] if stream else answer.text
        content = json.loads(told)["response"] if stream else json.loads(told)
        assert content["usage"]["memory"]["written"] is False and content["usage"]["memory"]["name"] == "anna"
        previous = content["id"]
    assert turns_of(server, "anna") == [["My word is jade."]]
    assert all((chat_of(server, "anna").memory[layer] == state).all() for layer, state in before.items())


def test_what_goes_on_from_a_response_without_memory_uses_none(running):
    server = running()
    client = client_of(server)
    previous = client.post(RESPONSES, json={"input": "Hi.", "memory": {"mode": "off"}}).json()["id"]
    content = client.post(RESPONSES, json={"input": "And?", "previous_response_id": previous}).json()
    assert content["usage"]["memory"]["written"] is False
    # It went on in the same chat.
    assert content["usage"]["memory"]["revision"] == 2
    assert not any(state.any() for memory in server.memories.private() for state in memory.chat.memory.values())


def test_a_title_of_a_shared_memory_is_no_edit_of_the_chat(running):
    server = running(replay_limit=3)
    client = client_of(server)
    headers = {"X-Deltamem-Memory": "anna", "X-OpenWebUI-Chat-Id": "c1"}
    assert client.post(CHAT, json={"messages": [user("My word is jade.")]}, headers=headers).status_code == 200
    server.ask("Hello.", memory="anna", chat="c2")
    body = {"messages": [user("### Task:\nWrite a title for: My word is jade.")]}
    answer = client.post(CHAT, json=body, headers=headers)
    assert answer.status_code == 200 and answer.json()["usage"]["memory"]["written"] is False
    # An edit of the message is too deep.
    assert client.post(CHAT, json={"messages": [user("My word is oak.")]}, headers=headers).status_code == 409


def usage_of(client: TestClient, path: str, stream: bool, reply: str, **options: object) -> tuple[int, int]:
    """The numbers of tokens of the prompt, and of those that were known, for a second message to the memory `anna`."""
    body: dict = {"max_tokens": 3, "memory": {"name": "anna"}, "stream": stream, **options}
    said = [user("My name is Anna."), assistant(reply), user(QUESTION)]
    if path == RESPONSES:
        body |= {"instructions": SYSTEM["content"], "input": said}
    elif path == ANTHROPIC:
        body |= {"system": SYSTEM["content"], "messages": said}
    else:
        body |= {"messages": [SYSTEM, *said]}
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    told = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")] if stream else [answer.text]
    content = next(each for each in map(json.loads, reversed(told)) if each.get("type") != "message_stop")
    usage = content["response"]["usage"] if stream and path == RESPONSES else content["usage"]
    if path == ANTHROPIC:
        known = usage["cache_read_input_tokens"]
        return usage["input_tokens"] + known, known
    names = ("input_tokens", "output_tokens") if path == RESPONSES else ("prompt_tokens", "completion_tokens")
    assert usage["total_tokens"] == usage[names[0]] + usage[names[1]]
    return usage[names[0]], usage[f"{names[0]}_details"]["cached_tokens"]


def read_by(client: TestClient) -> int:
    """The number of tokens that the server has read before replies, from its figures."""
    [line] = [
        line for line in client.get("/metrics").text.split("\n") if line.startswith("deltamem_prompt_tokens_total")
    ]
    return int(float(line.split()[1]))


@every_history
def test_the_tokens_of_the_prompt_are_the_text_that_is_seen(running, history, tmp_path):
    chat = new_chat(history=history, system=SYSTEM["content"])
    chat.send("My name is Anna.", 8)
    chat.send(QUESTION, 3)
    first, second = chat.turns
    start, opening = start_length(first.opening), len(second.opening.ids)
    known = first.length if history == "full" else 0
    seen = first.length if history == "full" else start + (0 if history == "none" else history)
    kinds = [(path, stream, {}) for path in (CHAT, RESPONSES, ANTHROPIC) for stream in (False, True)]
    for number, (path, stream, options) in enumerate([*kinds, (CHAT, False, {"n": 2})]):
        server = running(tmp_path / str(number), history=history)
        client = client_of(server)
        reply, done = server.ask("My name is Anna.", memory="anna", system=SYSTEM["content"])
        assert (done.prompt_tokens, done.read_tokens) == (len(first.opening.ids),) * 2
        before = read_by(client)
        assert usage_of(client, path, stream, reply, **options) == (seen + opening, known), (path, stream)
        assert read_by(client) - before == (seen + opening - known) * options.get("n", 1)


@every_history
def test_all_tokens_that_ran_are_counted_where_exchanges_are_new(running, history):
    server = running(history=history)
    said = ("My word is jade.", "Nice.", "Hello.", "Hi.", "What is it?")
    _, done = server.ask(*said, memory="anna", system=SYSTEM["content"])
    turns = chat_of(server, "anna").turns
    start = start_length(turns[0].opening)
    texts = [turns[0].length - start, turns[0].length + turns[1].length - start]
    seen = [start + (text if history == "full" else 0 if history == "none" else min(history, text)) for text in texts]
    assert done.prompt_tokens == seen[1] + len(turns[2].opening.ids)
    ran = turns[0].length + turns[1].length + len(turns[2].opening.ids)
    # With the whole text kept, nothing of it runs twice.
    assert done.read_tokens == ran + (0 if history == "full" else sum(seen))
