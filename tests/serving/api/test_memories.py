"""The endpoints of memories, models, operations and the page."""

import zlib

import pytest

pytest.importorskip("starlette")

from mlx_deltamem.serving.api import page
from mlx_deltamem.serving.api.app import ENDPOINTS
from mlx_deltamem.serving.exchange import RefusedError
from mlx_deltamem.serving.service import Health
from tests.serving.api.conftest import MODEL, events

ANNA = "/v1/memories/anna"


def test_list_make_and_get(client):
    assert [memory["name"] for memory in client.get("/v1/memories").json()["data"]] == ["anna", "bob"]
    answer = client.post("/v1/memories", json={"name": "carl", "history": 100, "write": "user"})
    assert answer.status_code == 201 and answer.headers["ETag"] == '"carl@0"'
    content = client.get("/v1/memories/carl").json()
    assert content["id"] == "carl" and content["object"] == "memory" and content["history"] == 100
    assert client.post("/v1/memories", json={"name": "carl"}).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": None},
        {"name": 3},
        {"name": ".."},
        {"name": "a/b"},
        {"name": "x", "history": 0},
        {"name": ".hid"},
        {"name": "x", "history": True},
        {"name": "x", "history": "some"},
        {"name": "x", "history": []},
        {"name": "x", "write": "never"},
        {"name": "x", "write": 3},
    ],
)
def test_a_wrong_memory_is_refused(client, body):
    assert client.post("/v1/memories", json=body).status_code == 400


@pytest.mark.parametrize("name", ["nobody", ".hid", "a%2Fb", "%2e%2e", "x" * 65, "a%00", "%F0%9F%98%80", "%ff"])
@pytest.mark.parametrize(
    ("method", "rest"),
    [("GET", ""), ("GET", "/turns"), ("GET", "/export"), ("GET", "/heatmap.png"), ("GET", "/events"), ("DELETE", "")],
)
def test_an_unknown_memory_is_not_found(client, name, method, rest):
    answer = client.request(method, f"/v1/memories/{name}{rest}")
    assert answer.status_code == 404 and answer.json()["error"]["message"]


def test_changes(client, service):
    assert client.patch(ANNA, json={"history": "none"}).json()["history"] == "none"
    assert client.patch(ANNA, json={"history": 100.0}).json()["history"] == 100
    assert client.post(f"{ANNA}/undo").json()["turns"] == 1
    assert client.post(f"{ANNA}/reset").json()["turns"] == 0
    assert client.post(f"{ANNA}/remember", json={"text": "a fact"}).json()["turns"] == 3
    assert service.remembered == (({"role": "user", "content": "a fact"},), "all")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert client.post(f"{ANNA}/remember", json={"messages": messages, "write": "user"}).status_code == 200
    assert service.remembered == (tuple(messages), "user")
    answer = client.post(f"{ANNA}/fork", json={"name": "copy"})
    assert answer.status_code == 201 and answer.json()["name"] == "copy"
    assert client.delete(ANNA).json() == {"id": "anna", "object": "memory.deleted", "deleted": True}
    assert client.get(ANNA).status_code == 404


@pytest.mark.parametrize(
    "body",
    [{}, {"text": ""}, {"text": 3}, {"text": "a", "messages": []}, {"messages": []}, {"text": "a", "write": "after"}],
)
def test_a_wrong_text_is_refused(client, body):
    assert client.post(f"{ANNA}/remember", json=body).status_code == 400


def test_a_change_can_name_the_state_that_was_seen(client):
    tag = client.get(ANNA).headers["ETag"]
    assert client.post(f"{ANNA}/undo", headers={"If-Match": '"anna@9"'}).status_code == 412
    assert client.post(f"{ANNA}/undo", headers={"If-Match": f"W/{tag}"}).status_code == 412
    assert client.post(f"{ANNA}/undo", headers={"If-Match": '"bob@1"'}).status_code == 412
    assert client.post(f"{ANNA}/undo", headers={"If-Match": "anna@1"}).status_code == 400
    assert client.post(f"{ANNA}/undo", headers={"If-Match": ""}).status_code == 400
    assert client.post(f"{ANNA}/undo", headers={"If-Match": "   "}).status_code == 400
    assert client.post(f"{ANNA}/undo", headers={"If-Match": f'"anna@9", {tag}'}).status_code == 200
    assert client.delete(ANNA, headers={"If-Match": tag}).status_code == 412
    assert client.put(f"{ANNA}/import", content=b"x", headers={"If-Match": tag}).status_code == 412
    assert client.post(f"{ANNA}/reset", headers={"If-Match": "*"}).status_code == 200


def test_files(client, service):
    answer = client.get(f"{ANNA}/export")
    assert answer.content == b"file" and 'filename="anna.safetensors"' in answer.headers["Content-Disposition"]
    assert client.put("/v1/memories/new/import", content=b"\x00\xff").json()["name"] == "new"
    assert service.content == b"\x00\xff"
    assert client.put("/v1/memories/new/import", content=b"").status_code == 400
    assert client.put("/v1/memories/../import", content=b"x").status_code in (404, 405)


def test_views(client):
    assert client.get(f"{ANNA}/turns").json()["data"][0]["changed"] == {"3": 0.5}
    assert client.get(f"{ANNA}/heatmap.json").json()["layers"][0]["values"][1] == [0.5, 1.0]
    assert client.get(f"{ANNA}/drift.json").json() == {"turns": [], "borders": []}
    assert events(client.get(f"{ANNA}/events")) == [{"type": "turn", "id": "t1"}]
    assert client.head(f"{ANNA}/events").status_code == 200


def test_the_image_is_a_png(client):
    content = client.get(f"{ANNA}/heatmap.png").content
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(content[16:20]) == int.from_bytes(content[20:24]) == 72
    begin = content.index(b"IDAT") + 4
    pixels = zlib.decompress(content[begin : begin + int.from_bytes(content[begin - 8 : begin - 4])])
    # A line has the number of its filter and three bytes for each pixel. Pixel (5, 40) is in the tile of -1: blue.
    assert len(pixels) == 72 * (1 + 72 * 3)
    assert tuple(pixels[5 * 217 + 1 + 40 * 3 :][:3]) == (33, 102, 172)


def test_models(client):
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == [MODEL, f"{MODEL}@anna", f"{MODEL}@anna:ro", f"{MODEL}@bob", f"{MODEL}@bob:ro"]
    for name in names:
        assert client.get(f"/v1/models/{name}").json()["id"] == name
    assert client.get(f"/v1/models/{MODEL.replace('/', '%2F')}").status_code == 200
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_health(client, service):
    assert client.get("/health").json()["status"] == "ok"
    service.alive = Health(100.0, 1, 0, True)
    assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (503, "stalled")
    service.alive = Health(0.0, 1, 0, False)
    assert client.get("/health").json()["status"] == "ending"
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_busy_server_says_when_to_ask_again(client, service):
    service.script = [RefusedError(429, "queue_full", "the queue is full")]
    answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
    assert answer.status_code == 429 and answer.headers["Retry-After"]
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_the_page_allows_nothing_from_elsewhere(client, tmp_path, monkeypatch):
    for name in ("index.html", "page.js", "page.css", "secret.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(page, "_FOLDER", tmp_path)
    for path, name in (("/", "index.html"), ("/page.js", "page.js"), ("/page.css", "page.css")):
        answer = client.get(path)
        assert answer.text == name and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert client.get("/secret.txt").status_code == 404
    (tmp_path / "page.js").unlink()
    assert client.get("/page.js").status_code == 404


def test_the_document_names_every_path(client):
    document = client.get("/openapi.json").json()
    told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    served = {(method, path.replace("{name:path}", "{id}")) for method, path, _ in ENDPOINTS}
    hidden = {("GET", "/"), ("GET", "/page.js"), ("GET", "/page.css"), ("POST", "/chat/completions")}
    assert told == served - hidden


def test_the_document_links_what_is_made_to_what_is_done_with_it(client):
    """Each link gives the only parameter of the path of its operation, from a field that the answer has."""
    paths = client.get("/openapi.json").json()["paths"]
    operations = {each["operationId"]: (path, each) for path, methods in paths.items() for each in methods.values()}
    made = {
        "/v1/memories": client.post("/v1/memories", json={"name": "linked"}),
        "/v1/memories/{name}/fork": client.post("/v1/memories/linked/fork", json={"name": "forked"}),
        "/v1/responses": client.post("/v1/responses", json={"input": "Hello.", "max_output_tokens": 2}),
    }
    for path, answer in made.items():
        links = paths[path]["post"]["responses"][str(answer.status_code)]["links"]
        assert links
        for link in links.values():
            target, operation = operations[link["operationId"]]
            [(name, expression)] = link["parameters"].items()
            assert [each["name"] for each in operation["parameters"] if each["in"] == "path"] == [name]
            assert f"{{{name}}}" in target
            assert expression == f"$response.body#/{name}" and answer.json()[name]
    linked = {link["operationId"] for path in made for each in [paths[path]["post"]] for link in _links_of(each)}
    assert linked == {
        name for name, (path, _) in operations.items() if "{name}" in path or path == "/v1/responses/{id}"
    }


def _links_of(operation: dict) -> list[dict]:
    return [link for answer in operation["responses"].values() for link in answer.get("links", {}).values()]
