"""POST /v1/chat/completions."""

import asyncio

import pytest

pytest.importorskip("starlette")

from mlx_deltamem.serving.api.app import make_app
from mlx_deltamem.serving.exchange import Mode, RefusedError
from tests.serving.api.conftest import MODEL, SETTINGS, asgi, events

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def _ask(client, **fields):
    return client.post(CHAT, json={"messages": HELLO, **fields})


def test_an_answer_has_openais_form(client):
    answer = _ask(client, model=MODEL)
    content = answer.json()
    assert answer.status_code == 200
    assert content["object"] == "chat.completion" and content["model"] == MODEL
    choice = content["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert content["usage"]["prompt_tokens"] == 10 and content["usage"]["total_tokens"] == 12
    assert content["usage"]["prompt_tokens_details"] == {"cached_tokens": 6}
    memory = {"name": None, "revision": 7, "written": True, "saved": False, "turn": "turn1"}
    assert content["usage"]["memory"] == memory
    assert answer.headers["X-Deltamem-Written"] == "true" and "X-Deltamem-Memory" not in answer.headers


def test_a_stream_begins_with_the_role_and_ends_with_done(client):
    answer = _ask(client, stream=True, memory={"name": "anna"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["X-Deltamem-Memory"] == "anna"
    assert answer.text.endswith("data: [DONE]\n\n")
    chunks = events(answer)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert chunks[-1]["usage"]["memory"]["name"] == "anna"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_counts_tokens_in_a_last_chunk_without_choices(client):
    chunks = events(_ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 2
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_null_is_absent(client, service):
    names = "model stream temperature top_p top_k min_p seed stop n max_tokens logprobs tools tool_choice user memory"
    names += (
        " max_completion_tokens stream_options logit_bias response_format chat_template_kwargs metadata top_logprobs"
    )
    assert _ask(client, **dict.fromkeys(names.split())).status_code == 200
    assert service.asked[0].max_tokens == 512 and service.asked[0].sampling.seed is None


def test_null_stays_in_what_is_passed_on(client, service):
    schema = {"type": "object", "default": None, "properties": {"unit": {"default": None}}}
    options = {"style": None}
    function = {"name": "add", "description": None, "parameters": schema}
    assert _ask(client, tools=[{"type": "function", "function": function}], chat_template_kwargs=options).is_success
    [asked] = service.asked
    assert asked.tools[0]["function"] == {"name": "add", "parameters": schema}
    assert asked.template_options == options


def test_fields_reach_the_engine(client, service):
    _ask(
        client,
        temperature=1,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        seed=-1,
        stop="x",
        max_tokens=5,
        max_completion_tokens=7.0,
        logit_bias={"3": -1},
        presence_penalty=0.5,
        chat_template_kwargs={"enable_thinking": True},
        tools=[TOOL],
    )
    asked = service.asked[0]
    assert asked.sampling.temperature == 1.0 and asked.sampling.top_k == 40 and asked.sampling.seed == 2**64 - 1
    assert asked.sampling.logit_bias == {3: -1.0} and asked.sampling.presence_penalty == 0.5
    assert asked.stop == ("x",) and asked.max_tokens == 7
    assert asked.template_options == {"enable_thinking": True} and asked.tools == (TOOL,)


def test_more_likeliest_tokens_than_there_are_is_no_limit(client, service):
    assert _ask(client, top_k=10_000_000).status_code == 200
    assert service.asked[0].sampling.top_k == 0


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_only_read_the_memory(client, service, stream):
    answer = _ask(client, n=3, seed=5, stream=stream, memory={"name": "anna"})
    if stream:
        ends = {each["choices"][0]["index"] for each in events(answer) if each["choices"][0]["finish_reason"]}
        assert ends == {0, 1, 2}
    else:
        assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2]
        assert answer.json()["usage"]["completion_tokens"] == 6
    assert {asked.mode for asked in service.asked} == {Mode.READ}
    assert {asked.sampling.seed for asked in service.asked} == {5, 6, 7}
    assert service.closed == 3


def test_log_probabilities(client):
    content = _ask(client, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert (
        content[0]["token"] == "Hel" and content[0]["bytes"] == [72, 101, 108] and len(content[0]["top_logprobs"]) == 2
    )
    chunks = events(_ask(client, logprobs=True, stream=True))
    told = [each["choices"][0]["logprobs"] for each in chunks]
    assert [token["token"] for logprobs in told if logprobs for token in logprobs["content"]] == ["Hel", "lo"]


def test_tool_calls_are_found(client, service):
    service.script = ["I will", " <ca", 'll>{"name": "add", "arg', 'uments": {"a": 1}}</call>']
    choice = _ask(client, tools=[TOOL]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "I will "
    call = choice["message"]["tool_calls"][0]
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'} and call["type"] == "function" and call["id"]
    chunks = events(_ask(client, tools=[TOOL], stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta["tool_calls"][0]["index"] for delta in deltas if "tool_calls" in delta] == [0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("text", ["<call>no json</call>", '<call>{"name": 5}</call>', "<call>[[[</call> end"])
def test_a_call_that_cannot_be_read_is_text(client, service, text):
    service.script = [text]
    choice = _ask(client, tools=[TOOL]).json()["choices"][0]
    assert choice["message"]["content"] == text and choice["finish_reason"] == "stop"


def test_without_tools_there_are_no_calls(client, service):
    service.script = ['<call>{"name": "add", "arguments": {}}</call>']
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        message = _ask(client, **fields).json()["choices"][0]["message"]
        assert "tool_calls" not in message and message["content"] == service.script[0]
        assert service.asked[-1].tools is None


def test_thoughts_are_apart_from_the_text(client, service):
    service.tokenizer.has_thinking = True
    service.script = ["<think>well", "</think>Yes", " <"]
    message = _ask(client, chat_template_kwargs={"enable_thinking": True}).json()["choices"][0]["message"]
    assert message["reasoning"] == "well" and message["content"] == "Yes <"


def test_an_error_before_the_first_token_has_its_status(client, service):
    service.script = [RefusedError(409, "memory_busy", "another process holds it")]
    for stream in (False, True):
        answer = _ask(client, stream=stream)
        assert answer.status_code == 409
        assert answer.json()["error"] == {
            "message": "another process holds it",
            "type": "invalid_request_error",
            "param": None,
            "code": "memory_busy",
        }


def test_an_error_in_a_stream_is_an_event(client, service):
    service.script = ["Hel", RefusedError(507, "disk_full", "the disk is full")]
    answer = _ask(client, stream=True)
    assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")
    assert events(answer)[-1]["error"]["code"] == "disk_full"


@pytest.mark.parametrize("stream", [False, True])
def test_an_unforeseen_error_tells_and_logs_no_message(client, service, caplog, stream):
    service.script = [RuntimeError("the secret message")]
    answer = _ask(client, stream=stream)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text + caplog.text and "RuntimeError" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choices", [1, 2])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"])
def test_a_client_that_leaves_ends_its_replies(service, stream, choices, path):
    service.endless = True

    async def leave():
        body = {"messages": HELLO, "prompt": "x", "input": "x", "stream": stream, "n": choices}
        received, sent, task = asgi(make_app(service, SETTINGS), path, body)
        while len(service.asked) < (choices if "completions" in path else 1) or (stream and not sent):
            await asyncio.sleep(0)
        assert service.closed == 0
        received.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(task, 5)
        assert service.closed == len(service.asked)

    asyncio.run(leave())


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_has_a_time_limit(service, stream):
    service.endless = True
    service.script = []

    async def wait():
        settings = type(SETTINGS)(allowed_hosts=("testserver",), timeout=0.05)
        _, sent, task = asgi(make_app(service, settings), CHAT, {"messages": HELLO, "stream": stream})
        await asyncio.wait_for(task, 5)
        assert sent[0]["status"] == 504 and service.closed == 1

    asyncio.run(wait())


def test_a_stream_that_waits_gets_comments(service):
    service.endless = True
    service.script = []

    async def wait():
        settings = type(SETTINGS)(allowed_hosts=("testserver",), timeout=0.1, keepalive=0.02)
        _, sent, task = asgi(make_app(service, settings), CHAT, {"messages": HELLO, "stream": True})
        await asyncio.wait_for(task, 5)
        bodies = [message.get("body", b"") for message in sent]
        assert sent[0]["status"] == 200 and b": keepalive\n\n" in bodies and b'"timeout"' in b"".join(bodies)

    asyncio.run(wait())


def test_a_program_task_is_not_remembered(client, service):
    client.post(CHAT, json={"messages": [*HELLO, {"role": "user", "content": "### Task:\nMake a title"}]})
    _ask(client)
    assert [asked.mode for asked in service.asked] == [Mode.READ, Mode.WRITE]


def test_messages_without_content_are_empty(client, service):
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "user", "content": "Why?"},
    ]
    assert client.post(CHAT, json={"messages": messages, "temperature": 1e-8}).status_code == 200
    asked = service.asked[-1]
    assert [message["content"] for message in asked.messages] == ["hello", "", "Why?"]
    assert asked.sampling.temperature == 0


def test_a_reply_can_expect_the_state_that_the_client_has_seen(client, service):
    body = {"messages": [{"role": "user", "content": "hi"}]}
    answer = client.post(CHAT, json=body, headers={"X-Deltamem-Memory": "anna", "If-Match": '"anna@1", "anna@2"'})
    assert answer.status_code == 200 and answer.headers["ETag"] == '"anna@5"'
    assert service.asked[-1].match == ["1", "2"]
    # The ETag of another memory, and no ETag.
    for tag, status in (('"bob@1"', 412), ("anna@1", 400)):
        headers = {"X-Deltamem-Memory": "anna", "If-Match": tag}
        assert client.post(CHAT, json=body, headers=headers).status_code == status
    assert client.post(CHAT, json=body, headers={"If-Match": '"anna@1"'}).status_code == 200
    assert service.asked[-1].match is None
