"""Bad requests: each gets an error in the right form, and the next request is served."""

import json

import pytest

pytest.importorskip("starlette")

from mlx_deltamem.sessions.session import TAKEN_NAMES

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]

FIELDS = [
    {"stop": [1]},
    {"stop": 5},
    {"stop": [""]},
    {"stop": ["a"] * 17},
    {"stop": {}},
    {"stream": "yes"},
    {"stream": 1},
    {"temperature": "hot"},
    {"temperature": -1},
    {"temperature": True},
    {"temperature": 10**400},
    {"top_p": 2},
    {"top_p": 10**4000},
    {"top_k": -1},
    {"top_k": 1.5},
    {"top_k": 10**30},
    {"min_p": []},
    {"seed": 2**64},
    {"seed": -(2**63) - 1},
    {"seed": "1"},
    {"n": 0},
    {"n": 9},
    {"n": 1e308},
    {"max_tokens": 0},
    {"max_tokens": -2},
    {"max_completion_tokens": "many"},
    {"max_completion_tokens": 2**64},
    {"logprobs": 3},
    {"top_logprobs": 21},
    {"logit_bias": []},
    {"logit_bias": {"x": 1}},
    {"logit_bias": {"256": 1}},
    {"logit_bias": {"-1": 1}},
    {"logit_bias": {"1": "a"}},
    {"logit_bias": {"1": 1e30}},
    {"repetition_penalty": -1},
    {"repetition_penalty": 1e-30},
    {"presence_penalty": 1e30},
    {"frequency_penalty": {}},
    {"repetition_context_size": 2**40},
    {"xtc_threshold": 0.9},
    {"response_format": {"type": "json_object"}},
    {"response_format": "text"},
    {"tools": {}},
    {"tools": [1]},
    {"tools": [{"type": "web_search"}]},
    {"tools": [{"type": "function", "function": {}}]},
    {"tools": [{"type": "function", "function": {"name": "x", "parameters": 3}}]},
    {"tool_choice": "maybe"},
    {"tool_choice": 3},
    {"stream_options": []},
    {"stream_options": {"include_usage": 3}},
    {"chat_template_kwargs": []},
    {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
    {"chat_template_kwargs": {"tokenize": False}},
    {"chat_template_kwargs": {"a b": 1}},
    *({"chat_template_kwargs": {name: "x"}} for name in sorted(TAKEN_NAMES)),
    {"memory": "anna"},
    {"memory": {"name": ".."}},
    {"memory": {"name": "a/b"}},
    {"memory": {"name": "a\u0000"}},
    {"memory": {"name": "x" * 65}},
    {"memory": {"name": 3}},
    {"memory": {"mode": "append"}},
    {"model": 3},
    {"messages": None},
    {"messages": []},
    {"messages": "hello"},
    {"messages": {}},
    {"messages": [3]},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [{"role": "wizard", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: json.dumps(fields)[:40])
def test_a_wrong_field_is_named(client, service, fields):
    answer = client.post(CHAT, json={"messages": HELLO, **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400 and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["param"].startswith(next(iter(fields)))
    assert not service.asked
    assert client.post(CHAT, json={"messages": HELLO}).status_code == 200


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b'{"messages": NaN}',
    b'{"temperature": Infinity}',
    b'{"temperature": 1e999}',
    b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"messages": 1, "messages": 2}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"\\udfff": 1}',
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    b'{"a": [' + b"1," * 1_100_000 + b"1]}",
]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/memories"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
def test_a_wrong_body_is_refused(client, service, path, body):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert not service.asked


def test_an_unknown_model_is_not_found(client):
    for model in ("gpt-4", "org/tiny@", "org/tiny@../x", "org/tiny@a:b", "@anna", "/etc/passwd"):
        answer = client.post(CHAT, json={"messages": HELLO, "model": model})
        assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == "model"


def test_unknown_paths_and_methods_have_the_same_form(client):
    for method, path, status in [
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", CHAT, 405),
        ("PUT", "/v1/memories/anna", 405),
        ("POST", "/health", 405),
    ]:
        answer = client.request(method, path)
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"
    assert set(client.put("/v1/memories/anna").headers["Allow"].split(", ")) >= {"GET", "PATCH", "DELETE"}
    assert client.get("/v1/messages").json()["type"] == "error"
