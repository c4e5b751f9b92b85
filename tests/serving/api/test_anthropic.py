"""POST /v1/messages."""

import pytest

pytest.importorskip("starlette")

from mlx_deltamem.serving.exchange import RefusedError
from tests.serving.api.conftest import MODEL, events

PATH = "/v1/messages"
HELLO = {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}
TOOL = {"name": "add", "input_schema": {"type": "object"}}


def test_an_answer_has_anthropics_form(client, service):
    content = client.post(PATH, json={**HELLO, "system": "s", "stop_sequences": ["x"], "temperature": None}).json()
    assert content["type"] == "message" and content["role"] == "assistant" and content["stop_reason"] == "end_turn"
    assert content["content"] == [{"type": "text", "text": "Hello"}]
    assert content["usage"]["input_tokens"] == 4 and content["usage"]["cache_read_input_tokens"] == 6
    asked = service.asked[0]
    assert asked.messages[0] == {"role": "system", "content": "s"} and asked.stop == ("x",) and asked.max_tokens == 20


def test_a_stream(client, service):
    service.tokenizer.has_thinking = True
    service.script = ["<think>w</think>Hi", '<call>{"name": "add", "arguments": {"a": 1}}</call>']
    answer = client.post(PATH, json={**HELLO, "stream": True, "tools": [TOOL]})
    told = events(answer)
    assert [each["type"] for each in told] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop") * 3,
        "message_delta",
        "message_stop",
    ]
    kinds = [each["content_block"]["type"] for each in told if each["type"] == "content_block_start"]
    assert kinds == ["thinking", "text", "tool_use"]
    assert told[-2]["delta"]["stop_reason"] == "tool_use" and told[-2]["usage"]["output_tokens"] == 2
    assert "event: message_start\n" in answer.text
    whole = client.post(PATH, json={**HELLO, "tools": [TOOL]}).json()
    assert whole["content"][2]["input"] == {"a": 1} and whole["content"][0]["thinking"] == "w"


def test_a_stop_sequence_is_named(client, service):
    service.stop_text = "END"
    asked = {**HELLO, "stop_sequences": ["STOP", "END"]}
    content = client.post(PATH, json=asked).json()
    assert (content["stop_reason"], content["stop_sequence"]) == ("stop_sequence", "END")
    told = events(client.post(PATH, json={**asked, "stream": True}))
    assert told[0]["message"]["stop_sequence"] is None
    assert told[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    # A client answers calls only if these are the reason.
    service.script = ['<call>{"name": "add", "arguments": {"a": 1}}</call>']
    content = client.post(PATH, json={**asked, "tools": [TOOL]}).json()
    assert (content["stop_reason"], content["stop_sequence"]) == ("tool_use", None)


def test_blocks_become_messages(client, service):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "w", "signature": ""},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "2"}]},
                {"type": "text", "text": "and?"},
            ],
        },
        {"role": "assistant", "content": []},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1"}]},
    ]
    system = [{"type": "text", "text": "s"}]
    assert client.post(PATH, json={**HELLO, "messages": messages, "system": system}).status_code == 200
    told = service.asked[0].messages
    assert [each["role"] for each in told] == ["system", "user", "assistant", "tool", "user", "assistant", "tool"]
    assert told[2]["tool_calls"][0]["function"]["arguments"] == {"a": 1} and told[3]["content"] == "2"


def test_what_is_passed_on_keeps_its_nulls(client, service):
    given = {"city": "Oslo", "unit": None, "days": [None, {"from": None}]}
    use = {"type": "tool_use", "id": "t1", "name": "add", "input": given}
    messages = [*HELLO["messages"], {"role": "assistant", "content": [use]}]
    messages.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": None}]})
    schema = {"type": "object", "default": None, "properties": {"unit": {"enum": ["C", None]}}}
    body = {**HELLO, "messages": messages, "tools": [{**TOOL, "description": None, "input_schema": schema}]}
    options = {"enable_thinking": None, "depth": {"most": None}}
    assert client.post(PATH, json={**body, "chat_template_kwargs": options}).status_code == 200
    [asked] = service.asked
    assert asked.messages[1]["tool_calls"][0]["function"]["arguments"] == given
    # A field of the API that is null is absent.
    assert asked.tools[0]["function"] == {"name": "add", "parameters": schema}
    assert asked.messages[2]["content"] == "" and asked.template_options == options
    # The input of a tool without any is an empty object.
    use["input"] = None
    assert client.post(PATH, json={**body, "tools": None, "chat_template_kwargs": None}).status_code == 200
    assert service.asked[-1].messages[1]["tool_calls"][0]["function"]["arguments"] == {}
    assert service.asked[-1].tools is None and service.asked[-1].template_options == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": None},
        {"messages": "x"},
        {"messages": [3]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": [3]}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "y", "input": {}}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
        {"system": 3},
        {"system": [{"type": "image"}]},
        {"max_tokens": 0},
        {"stop_sequences": "x" * 5000},
        {"stop_sequences": [1]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{}]},
        {"tool_choice": "auto"},
        {"tool_choice": {"type": "some"}},
        {"model": "claude"},
    ],
)
def test_errors_have_anthropics_form(client, service, fields):
    answer = client.post(PATH, json={**HELLO, **fields})
    content = answer.json()
    assert answer.status_code in (400, 404) and content["type"] == "error"
    assert content["error"]["type"] in ("invalid_request_error", "not_found_error") and content["error"]["message"]
    assert not service.asked


def test_an_error_names_the_message_of_the_client(client):
    """The system prompt and the results of tools, which become messages too, do not count."""
    body = {"system": "Be brief.", "messages": [{"role": "user", "content": " "}], "max_tokens": 4}
    answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("messages[0] ")
    answer = client.post("/v1/responses", json={"instructions": "Be brief.", "input": body["messages"]})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("input[0] ")


def test_an_error_in_a_stream(client, service):
    service.script = ["a", RefusedError(503, "ending", "the server ends")]
    answer = client.post(PATH, json={**HELLO, "stream": True})
    assert events(answer)[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "the server ends"}}
    assert "event: error\n" in answer.text
