"""POST /v1/completions."""

import pytest

pytest.importorskip("starlette")

from mlx_deltamem.serving.exchange import Mode
from tests.serving.api.conftest import events

PATH = "/v1/completions"


def test_a_text_is_continued_and_the_memory_is_only_read(client, service):
    content = client.post(PATH, json={"prompt": "Say", "stop": None, "suffix": None, "memory": {"name": "anna"}}).json()
    assert content["object"] == "text_completion"
    assert content["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}]
    assert service.asked[0].text == "Say" and service.asked[0].mode is Mode.READ and not service.asked[0].messages


def test_markers_stay_in_the_text(client, service):
    service.script = ["<call>x</call>", "<think>"]
    assert client.post(PATH, json={"prompt": "x"}).json()["choices"][0]["text"] == "<call>x</call><think>"


def test_several_texts_and_replies(client, service):
    content = client.post(PATH, json={"prompt": ["a", "b"], "n": 2, "echo": True}).json()
    assert [choice["text"] for choice in content["choices"]] == ["aHello", "aHello", "bHello", "bHello"]
    assert content["usage"]["prompt_tokens"] == 20 and content["usage"]["completion_tokens"] == 8


def test_a_stream(client):
    answer = client.post(
        PATH, json={"prompt": "a", "stream": True, "echo": True, "stream_options": {"include_usage": True}}
    )
    chunks = events(answer)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == "aHello"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and chunks[-1]["usage"]["completion_tokens"] == 2
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_completion_may_be_empty(client, service, name):
    body = {"prompt": ["Say", "x"], name: 0}
    for echo, expected in ((False, ["", ""]), (True, ["Say", "x"])):
        content = client.post(PATH, json={**body, "echo": echo}).json()
        assert [choice["text"] for choice in content["choices"]] == expected
        assert {choice["finish_reason"] for choice in content["choices"]} == {"length"}
        assert (content["usage"]["prompt_tokens"], content["usage"]["completion_tokens"]) == (20, 0)
        chunks = events(client.post(PATH, json={**body, "echo": echo, "stream": True}))
        texts = [
            "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"][0]["index"] == index)
            for index in (0, 1)
        ]
        assert texts == expected and chunks[-1]["choices"][0]["finish_reason"] == "length"
    # The engine always chooses one token.
    assert {asked.max_tokens for asked in service.asked} == {1} and {asked.mode for asked in service.asked} == {
        Mode.READ
    }
    assert service.closed == len(service.asked)


def test_log_probabilities(client):
    logprobs = client.post(PATH, json={"prompt": "a", "logprobs": 1}).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["Hel", "lo"] and logprobs["text_offset"] == [0, 3]
    assert logprobs["top_logprobs"] == [{"Hel": -0.5}, {"lo": -0.5}]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": ["a", ""]},
        {"prompt": []},
        {"prompt": None},
        {"prompt": [1, 2]},
        {"prompt": ["a", 2]},
        {"prompt": {}},
        {"prompt": ["a"] * 33},
        {"suffix": "x"},
        {"best_of": 2},
        {"echo": True, "logprobs": 1},
        {"logprobs": 21},
        {"logprobs": "1"},
    ],
)
def test_wrong_fields_are_refused(client, service, fields):
    answer = client.post(PATH, json={"prompt": "x", **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"]
    assert not service.asked
