"""Random bodies, paths and headers: an answer is never an error of the server, and errors have the right form."""

import json
from urllib.parse import quote

import pytest

pytest.importorskip("starlette")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from mlx_deltamem.serving.api.app import make_app
from mlx_deltamem.serving.api.schemas import SCHEMAS
from tests.serving.api.conftest import MODEL, SETTINGS, Service

PATHS = {
    "/v1/chat/completions": "ChatRequest",
    "/v1/completions": "CompletionRequest",
    "/v1/responses": "ResponseRequest",
    "/v1/messages": "AnthropicRequest",
    "/v1/memories": "NewMemory",
    "/v1/memories/anna/remember": "Remember",
    "/v1/memories/anna/fork": "Fork",
}
NAMES = sorted({name for schema in SCHEMAS.values() for name in schema.get("properties", {})} | {"text", "messages"})
WORDS = [
    "user",
    "assistant",
    "tool",
    "text",
    "function",
    "message",
    "tool_use",
    "none",
    "auto",
    MODEL,
    f"{MODEL}@a",
    "a",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.sampled_from([2**63, 2**64, -(2**63), 10**400, 1e308, 5e-324, 0.5])
    | st.sampled_from(WORDS)
    | st.text(st.characters(exclude_categories=()), max_size=3)
)
KEYS = st.sampled_from([*NAMES, "role", "content", "type", "name", "function", "arguments", "id", "parameters", "mode"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(WORDS), "content": VALUES}, optional={"tool_calls": VALUES}),
    max_size=3,
)
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
FILLED = st.builds(lambda body, messages: {**body, "messages": messages, "prompt": "x", "input": "x"}, BODIES, MESSAGES)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from(sorted(PATHS)), body=BODIES | FILLED | VALUES, name=st.binary(max_size=6))
def test_no_body_is_an_error_of_the_server(path, body, name):
    service = Service()
    headers = {"X-Session-ID": name.translate(None, b"\r\n\0"), "If-Match": name.translate(None, b"\r\n\0")}
    answer = TestClient(make_app(service, SETTINGS)).post(path, content=json.dumps(body), headers=headers)
    assert answer.status_code in (200, 201, 400, 404, 409, 412), answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]
    elif not answer.headers["content-type"].startswith("text/event-stream"):
        answer.json()


@pytest.mark.slow
@settings(max_examples=40)
@given(name=st.text(max_size=5), rest=st.sampled_from(["", "/undo", "/turns", "/import", "/x", "/heatmap.png"]))
def test_no_path_is_an_error_of_the_server(name, rest):
    client = TestClient(make_app(Service(), SETTINGS))
    for prefix in ("/v1/memories/", "/v1/models/", "/v1/responses/"):
        for method in ("GET", "POST", "DELETE", "PUT", "PATCH"):
            answer = client.request(method, prefix + quote(name, safe="") + rest)
            assert answer.status_code < 500
