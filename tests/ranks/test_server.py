"""The server on several ranks: rank 0 alone speaks HTTP, and a memory is that of one process."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession, load
from tests.ranks.conftest import model_options
from tests.ranks.launched import Rank, Ranks, assert_one_line_names
from tests.ranks.spread_checks import assert_same_memory
from tests.serving.test_server import KILLERS

pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.ranks, pytest.mark.slow]
_LONG = 100_000
_TOKENS = 6


class Server:
    """A server on several ranks, on a free port."""

    def __init__(self, options: list[object], folder: Path, count: int = 2):
        self.ranks = Ranks(count, "mlx_deltamem", "server", *options, "--memories", folder, "--port", 0, "--grace", 0)
        self.port = int(self.ranks.read_until("(Ctrl-C").split(":")[2].split()[0])

    def request(self, method: str, path: str, body: object = None, memory: str | None = None) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, content, {} if memory is None else {"X-Deltamem-Memory": memory})
        return connection.getresponse()

    def ask(self, method: str, path: str, body: object = None, memory: str | None = None) -> tuple[int, object]:
        answer = self.request(method, path, body, memory)
        found = answer.read()
        return answer.status, json.loads(found) if found[:1] in (b"{", b"[") else found

    def chat(self, text: str, memory: str, **fields: object) -> HTTPResponse:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": _TOKENS, **fields}
        return self.request("POST", "/v1/chat/completions", body, memory)

    def say(self, text: str, memory: str, **fields: object) -> str:
        answer = self.chat(text, memory, **fields)
        found = json.loads(answer.read())
        assert answer.status == 200, found
        return found["choices"][0]["message"]["content"] or ""

    def kill(self) -> None:
        """End it without a word, if it has not ended."""
        for process in self.ranks.processes:
            process.process.kill()


@pytest.fixture(scope="module", params=["tensors", "layers"])
def options(request, options, tmp_path_factory) -> list[object]:
    """A model and an adapter, and how the ranks split the model. mlx-lm has no pipeline for llama."""
    if request.param == "tensors":
        return options
    return [*model_options(tmp_path_factory.mktemp("qwen2"), "qwen2"), "--pipeline"]


@pytest.fixture(scope="module")
def whole(options):
    """The model of one process, with its tokenizer."""
    return load(options[1], adapter=options[3])


@pytest.fixture(scope="module")
def folder(options, tmp_path_factory) -> Path:
    """The folder of the memories of `server`."""
    return tmp_path_factory.mktemp("memories")


@pytest.fixture(scope="module")
def server(options, folder) -> Iterator[Server]:
    """A server on two ranks for several tests."""
    server = Server(options, folder)
    yield server
    server.kill()


def assert_ended_well(ranks: list[Rank]) -> None:
    assert [(each.code, each.err) for each in ranks] == [(0, "")] * len(ranks)
    assert [each.out for each in ranks[1:]] == [""] * (len(ranks) - 1)


def said(chat: ChatSession, conversation: str, text: str) -> str:
    """The text of a reply, as the server sends it."""
    chat.conversation = conversation
    return "".join(response.text for response in chat.stream(text, _TOKENS))


def assert_saved(whole, file: Path, chat: ChatSession) -> None:
    """One process continues a memory that two ranks have saved."""
    saved = ChatSession.load(*whole, file)
    assert [turn.reply for turn in saved.turns] == [turn.reply for turn in chat.turns]
    assert_same_memory(chat.memory, saved.memory)


def test_a_memory_goes_from_one_process_to_ranks_and_back(server, folder, whole):
    anna, ben = ChatSession(*whole), ChatSession(*whole)
    said(anna, "0", "My word is jade.")
    anna.save(folder / "anna.safetensors")
    for number, text in enumerate(("Hello there.", "What is it?"), 1):
        assert server.say(text, "anna") == said(anna, str(number), text)
    # Two memories in one batch.
    with ThreadPoolExecutor() as pool:
        replies = list(pool.map(server.say, ("And now?", "My word is opal."), ("anna", "ben")))
    assert replies == [said(anna, "3", "And now?"), said(ben, "0", "My word is opal.")]
    seeded = {"temperature": 1.0, "seed": 7}
    assert len({server.say("Say something.", "anna:ro", **seeded) for _ in range(2)}) == 1
    for name, chat in (("anna", anna), ("ben", ben)):
        assert_saved(whole, folder / f"{name}.safetensors", chat)


def test_memories_are_worked_on_in_all_ranks(server, folder, whole):
    def does(method: str, path: str, body: object = None, status: int = 200) -> object:
        found, answer = server.ask(method, f"/v1/memories{path}", body)
        assert found == status, answer
        return answer

    chat, note = ChatSession(*whole), [{"role": "user", "content": "Anna has a dog. " * 70}]
    with ThreadPoolExecutor() as pool:
        # It is read in several parts, between which other replies go on.
        remembering = pool.submit(does, "POST", "/dora/remember", {"messages": note})
        server.say("Hello.", "emil")
        remembering.result()
    chat.remember(note)
    assert server.say("What has she?", "dora") == said(chat, "0", "What has she?")
    does("POST", "/dora/fork", {"name": "fritz"}, 201)
    does("POST", "/fritz/undo")
    assert [len(does("GET", f"/{name}/turns")["data"]) for name in ("dora", "fritz")] == [2, 1]
    does("PUT", "/gustav/import", does("GET", "/dora/export"))
    does("PUT", "/gustav/import", b"no session", 422)
    does("POST", "/fritz/reset")
    does("DELETE", "/emil")
    does("GET", "/emil", status=404)
    assert does("GET", "/gustav/heatmap.json")["layers"] == does("GET", "/dora/heatmap.json")["layers"]
    assert {"dora", "fritz", "gustav"} <= {each["id"] for each in does("GET", "")["data"]}
    assert server.say("And now?", "gustav") == said(chat, "1", "And now?")
    assert_saved(whole, folder / "gustav.safetensors", chat)


def test_bad_requests_do_not_part_the_ranks(server):
    for body in KILLERS:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        # The model replies without end.
        assert server.ask("POST", path, {**body, "max_tokens": 2})[0] in (200, 400)
    assert server.ask("GET", "/health")[0] == 200
    server.say("Hello.", "hugo")


def test_a_client_that_leaves_a_seeded_stream_does_not_hang_the_ranks(server, folder, whole):
    answer = server.chat("Hello.", "ida", max_tokens=_LONG, stream=True, seed=3, temperature=1.0)
    events = server.request("GET", "/v1/memories/ida/events")
    assert answer.readline().startswith(b"data: ")
    for left in (answer, events):
        left.close()
    # It waits for the end of the turn before it.
    server.say("What did I say?", "ida")
    first, _second = ChatSession.load(*whole, folder / "ida.safetensors").turns
    assert 0 < len(first.reply_ids) < _LONG


def test_a_port_that_is_taken_is_refused_in_all_ranks(server, options, tmp_path):
    ranks = Ranks(2, "mlx_deltamem", "server", *options, "--memories", tmp_path, "--port", server.port)
    first, second = ranks.wait()
    assert (first.code, second.code, second.out + second.err) == (2, 2, "")
    assert first.err.splitlines()[-1].startswith(f"error: cannot listen on 127.0.0.1:{server.port}")


def test_the_end_is_that_of_all_ranks(server, folder):
    answer = server.chat("Hello.", "karl", max_tokens=_LONG, stream=True)
    assert answer.readline().startswith(b"data: ")
    # SIGTERM for all, as a supervisor of services sends it, or mlx.launch: rank 0 ends the reply, and saves.
    for process in server.ranks.processes:
        process.send_signal(signal.SIGTERM)
    assert_ended_well(server.ranks.wait(timeout=60))
    assert (folder / "karl.safetensors").exists()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_server(options, whole, tmp_path, killed):
    server = Server(options, tmp_path / "memories")
    server.say("My word is jade.", "anna")
    answer = server.chat("Hello.", "ben", max_tokens=_LONG, stream=True)
    assert answer.readline().startswith(b"data: ")
    server.ranks.processes[killed].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    ended = server.ranks.wait()
    assert time.monotonic() - begun < 30
    assert_one_line_names(killed, [ended[1 - killed]])
    # What was acknowledged is there, and nothing else.
    files = [file.name for file in (tmp_path / "memories").glob("*.safetensors")]
    assert files == ["anna.safetensors"]
    assert ChatSession.load(*whole, tmp_path / "memories" / "anna.safetensors").turns
