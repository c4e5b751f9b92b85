"""The checks before an endpoint: host, origin, key and size."""

import asyncio
from dataclasses import replace

import pytest

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from mlx_deltamem.serving.api.app import make_app
from tests.serving.api.conftest import SETTINGS, asgi


def _client(service, **changes):
    return TestClient(make_app(service, replace(SETTINGS, **changes)))


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "[::1", "127.0.0.1@evil", "testserver.:80"]
)
def test_another_host_is_refused(client, host):
    answer = client.get("/health", headers={"Host": host})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "testserver:1"])
def test_a_port_and_capitals_do_not_matter(client, host):
    assert client.get("/health", headers={"Host": host}).status_code == 200


def test_an_ipv6_host_and_all_hosts(service):
    assert _client(service, allowed_hosts=("[::1]",)).get("/health", headers={"Host": "[::1]:80"}).status_code == 200
    assert _client(service, allowed_hosts=("*",)).get("/health", headers={"Host": "any"}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "file://"])
def test_a_page_of_another_site_is_refused(client, origin):
    answer = client.post("/v1/memories/anna/reset", headers={"Origin": origin})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "origin_not_allowed"
    assert client.post("/v1/memories/anna/reset", headers={"Origin": "http://testserver:8080"}).status_code == 200


def test_where_all_hosts_are_allowed_a_page_must_come_from_the_same_one(service):
    client = _client(service, allowed_hosts=("*",))
    for origin, status in (("https://evil.example", 403), ("null", 403), ("http://mac.local:8080", 200)):
        answer = client.post("/v1/memories/anna/reset", headers={"Origin": origin, "Host": "mac.local:8080"})
        assert answer.status_code == status, origin


def test_no_answer_allows_other_sites(client):
    answer = client.options("/v1/models")
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_a_key_is_needed(service):
    client = _client(service, api_key="sécret")
    key = "sécret".encode()
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": b"Basic " + key}, {"x-api-key": "secret"}):
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for headers in ({"Authorization": b"Bearer " + key}, {"authorization": b"bearer  " + key}, {"x-api-key": key}):
        assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.get("/health").status_code == 200
    assert client.post("/v1/messages").json()["error"]["type"] == "authentication_error"


def test_a_body_that_is_too_large_is_refused(service):
    client = _client(service, max_body=1000, max_import=2000)
    answer = client.post("/v1/chat/completions", content=b"x" * 1001)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    # Without a Content-Length header.
    answer = client.post("/v1/chat/completions", content=iter([b"x" * 600, b"x" * 600]))
    assert answer.status_code == 413
    assert client.put("/v1/memories/new/import", content=b"x" * 1500).status_code == 200
    assert client.put("/v1/memories/new/import", content=b"x" * 2500).status_code == 413


@pytest.mark.parametrize("length", [b"-1", b"x", b"9" * 5000, "²".encode("latin-1")])
def test_a_wrong_length_is_refused(service, length):
    async def ask():
        _, sent, task = asgi(
            make_app(service, SETTINGS), "/v1/models", method="GET", headers=[(b"content-length", length)]
        )
        await task
        return sent[0]["status"]

    assert asyncio.run(ask()) == 400


def test_a_body_that_does_not_arrive_is_refused(service):
    async def ask():
        app = make_app(service, replace(SETTINGS, body_timeout=0.05))
        received, sent, task = asgi(app, "/v1/chat/completions")
        received.get_nowait()
        await asyncio.wait_for(task, 5)
        return sent[0]["status"]

    assert asyncio.run(ask()) == 408


def test_a_client_that_leaves_while_it_sends(service):
    async def ask():
        received, _, task = asgi(make_app(service, SETTINGS), "/v1/chat/completions")
        received.get_nowait()
        received.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(task, 5)

    asyncio.run(ask())
    assert not service.asked
