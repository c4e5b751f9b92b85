"""POST /v1/responses, and the responses that are kept."""

import pytest

pytest.importorskip("starlette")

from mlx_deltamem.serving.api.kept import KeptResponse, KeptResponses
from mlx_deltamem.serving.api.response_input import output_messages
from mlx_deltamem.serving.exchange import Mode, RefusedError
from mlx_deltamem.sessions.text.messages import Message
from tests.serving.api.conftest import events

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}


def test_an_answer_has_openais_form(client, service):
    answer = client.post(PATH, json={"input": "hi", "instructions": "be brief", "max_output_tokens": 9, "store": None})
    content = answer.json()
    assert content["object"] == "response" and content["status"] == "completed" and content["error"] is None
    assert content["output"][0]["role"] == "assistant"
    assert content["output"][0]["content"][0] == {
        "type": "output_text",
        "text": "Hello",
        "annotations": [],
        "logprobs": [],
    }
    assert content["usage"]["input_tokens_details"] == {"cached_tokens": 6}
    asked = service.asked[0]
    assert [message["role"] for message in asked.messages] == ["system", "user"] and asked.max_tokens == 9
    assert client.get(f"{PATH}/{content['id']}").json() == content
    assert client.delete(f"{PATH}/{content['id']}").json()["deleted"] is True
    assert client.get(f"{PATH}/{content['id']}").status_code == 404


def test_a_response_is_continued(client, service):
    first = client.post(PATH, json={"input": "hi", "memory": {"name": "anna"}}).json()["id"]
    for _ in range(2):
        assert client.post(PATH, json={"input": "more", "previous_response_id": first}).status_code == 200
        assert service.asked[-1].continues == "turn1" and service.asked[-1].memory == "anna"
        assert [message["content"] for message in service.asked[-1].messages] == ["more"]
    answer = client.post(PATH, json={"input": "x", "previous_response_id": first, "memory": {"name": "bob"}})
    assert answer.status_code == 400
    answer = client.post(PATH, json={"input": "x", "previous_response_id": "resp_none"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "previous_response_not_found"
    unstored = client.post(PATH, json={"input": "hi", "store": False}).json()["id"]
    assert client.get(f"{PATH}/{unstored}").status_code == 404


def test_a_stream(client, service):
    service.script = ["Hi ", '<call>{"name": "add", "arguments": {"a": 1}}</call>']
    answer = client.post(PATH, json={"input": "hi", "stream": True, "tools": [TOOL]})
    told = events(answer)
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    assert [each["type"].removeprefix("response.") for each in told] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "output_item.added"),
        *("function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert "event: response.created\n" in answer.text
    assert [item["type"] for item in told[-1]["response"]["output"]] == ["message", "function_call"]
    assert service.asked[0].tools[0]["function"]["name"] == "add"
    assert client.get(f"{PATH}/{told[-1]['response']['id']}").json() == told[-1]["response"]


def test_tokens_of_thoughts_are_counted(client, service):
    service.tokenizer.has_thinking = True
    service.script = ["<think>well", "</think>Yes"]
    answer = client.post(PATH, json={"input": "hi", "chat_template_kwargs": {"enable_thinking": True}}).json()
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message"]
    # Here each character is a token.
    assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": 4}


def test_a_reply_that_is_cut_or_empty(client, service):
    service.script, service.finish_reason = [], "length"
    content = client.post(PATH, json={"input": "hi"}).json()
    assert content["status"] == "incomplete" and content["incomplete_details"] == {"reason": "max_output_tokens"}
    assert content["output"][0]["content"][0]["text"] == ""


def test_an_error_in_a_stream(client, service):
    service.script = ["a", RefusedError(507, "disk_full", "full")]
    last = events(client.post(PATH, json={"input": "hi", "stream": True}))[-1]
    assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "disk_full"
    service.script = [RefusedError(507, "disk_full", "full")]
    assert client.post(PATH, json={"input": "hi", "stream": True}).status_code == 507


def test_items_become_messages(client, service):
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "add", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ]
    assert client.post(PATH, json={"input": items}).status_code == 200
    messages = service.asked[0].messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool"]
    assert [call["function"]["arguments"] for call in messages[2]["tool_calls"]] == [{"a": 1}, {}]
    assert messages[3] == {"role": "tool", "content": "2", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    "fields",
    [
        {"input": None},
        {"input": ""},
        {"input": []},
        {"input": 3},
        {"input": [3]},
        {"input": [{}]},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"type": 3}]},
        {"input": [{"role": "user"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        {"input": [{"type": "function_call"}]},
        {"input": [{"type": "function_call", "name": "x", "arguments": "["}]},
        {"input": [{"type": "message", "role": "user", "content": "x"}, {"type": "function_call_output", "output": 3}]},
        {"instructions": 3},
        {"previous_response_id": 3},
        {"max_output_tokens": 0},
        {"background": True},
        {"metadata": []},
        {"text": {"format": {"type": "json_schema"}}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function"}]},
        {"store": "x"},
    ],
)
def test_wrong_fields_are_refused(client, service, fields):
    answer = client.post(PATH, json={"input": "x", **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"]
    assert not service.asked


def test_the_oldest_are_dropped():
    kept = KeptResponses(2)
    for name in "ab":
        kept.keep(name, KeptResponse(b"x", name, None, Mode.WRITE))
    assert kept.find("a")
    kept.keep("c", KeptResponse(b"x", "c", None, Mode.WRITE))
    assert kept.find("b") is None and kept.find("a") and kept.find("c")
    kept.keep("d", KeptResponse(bytes(65 << 20), "d", None, Mode.WRITE))
    assert not any(map(kept.find, "abcd"))


def test_a_turn_that_is_gone_is_read_again_with_its_chat(client, service):
    service.script = ["Hel", "lo"]
    first = client.post(PATH, json={"input": "hi", "instructions": "be brief"}).json()["id"]
    # Every turn is gone, whichever is continued.
    service.lost |= {f"turn{number}" for number in range(9)}
    answer = client.post(PATH, json={"input": "more", "previous_response_id": first, "instructions": "be long"})
    assert answer.status_code == 200
    again = service.asked[-1]
    assert again.continues is None
    assert [(message["role"], message["content"]) for message in again.messages] == [
        ("user", "hi"),
        ("assistant", "Hello"),
        ("system", "be long"),
        ("user", "more"),
    ]
    stream = client.post(
        PATH, json={"input": "and?", "previous_response_id": answer.json()["id"], "stream": True, "store": False}
    )
    assert events(stream)[-1]["type"] == "response.completed"
    assert [message["content"] for message in service.asked[-1].messages] == ["hi", "Hello", "more", "Hello", "and?"]


@pytest.mark.parametrize(
    ("mode", "name"), [("read", "anna"), ("read", None), ("off", None), ("off", "anna"), ("write", "anna")]
)
@pytest.mark.parametrize("lost", [False, True])
def test_what_goes_on_from_a_response_does_not_write_more_than_it_did(client, service, mode, name, lost):
    memory = {"mode": mode} if name is None else {"name": name, "mode": mode}
    previous = client.post(PATH, json={"input": "hi", "memory": memory}).json()["id"]
    used = None if mode == "off" else name
    for said in ("and?", "and now?"):
        if lost:
            service.lost |= {f"turn{number}" for number in range(9)}
        # It names no memory, and so no mode.
        answer = client.post(PATH, json={"input": said, "previous_response_id": previous})
        assert answer.status_code == 200
        previous = answer.json()["id"]
        assert (service.asked[-1].mode, service.asked[-1].memory) == (Mode(mode), used)
        assert (service.asked[-1].continues is None) == lost
    if used:
        body = {"input": "x", "previous_response_id": previous, "memory": {"name": used, "mode": "write"}}
        assert client.post(PATH, json=body).status_code == 200
        assert service.asked[-1].mode is Mode(mode)


def test_a_narrower_mode_holds_for_what_goes_on_from_there(client, service):
    previous = client.post(PATH, json={"input": "hi", "memory": {"name": "anna"}}).json()["id"]
    modes = []
    for given in ({"mode": "write"}, {"mode": "read"}, None, {"mode": "write"}, {"mode": "off"}, None):
        body = {"input": "x", "previous_response_id": previous, **({"memory": given} if given else {})}
        previous = client.post(PATH, json=body).json()["id"]
        modes.append((service.asked[-1].mode.value, service.asked[-1].memory))
    assert modes == [("write", "anna"), *[("read", "anna")] * 3, *[("off", None)] * 2]


def test_metadata_and_schemas_keep_their_nulls(client, service):
    given = {"a": None, "b": "c"}
    tool = {**TOOL, "parameters": {"type": "object", "default": None, "properties": {"x": None}}}
    content = client.post(PATH, json={"input": "hi", "metadata": given, "tools": [tool], "tool_choice": None}).json()
    assert (content["metadata"], content["tools"], content["tool_choice"]) == (given, [tool], "auto")
    assert service.asked[0].tools[0]["function"]["parameters"] == tool["parameters"]


def test_chats_count_as_bytes_of_the_replies_that_are_kept():
    kept = KeptResponses(9)
    long: Message = {"role": "user", "content": "x" * (40 << 20)}
    kept.keep("a", KeptResponse(b"x", "a", None, Mode.WRITE, (long,)))
    assert kept.find("a")
    kept.keep("b", KeptResponse(b"x", "b", None, Mode.WRITE, (long,)))
    assert kept.find("a") is None and kept.find("b")


def test_a_continued_memory_can_be_expected_as_it_was_seen(client, service):
    first = client.post(PATH, json={"input": "hi", "memory": {"name": "anna"}})
    tag = first.headers["ETag"]
    body = {"input": "more", "previous_response_id": first.json()["id"]}
    assert client.post(PATH, json=body, headers={"If-Match": tag}).status_code == 200
    assert service.asked[-1].match == ["5"]
    assert client.post(PATH, json=body, headers={"If-Match": '"bob@1"'}).status_code == 412


def test_the_messages_of_a_reply():
    text = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]}
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
    thought = {"type": "reasoning", "summary": [], "content": []}
    assert output_messages([thought]) == ()
    [message] = output_messages([thought, text, call])
    assert message["content"] == "Hi." and message["tool_calls"][0]["function"]["arguments"] == {"a": 1}
