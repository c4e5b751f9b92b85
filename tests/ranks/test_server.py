"""The server on several ranks: rank 0 alone speaks HTTP, and a memory is that of one process."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession, load
from tests.ranks.launched import Rank, Ranks, assert_one_line_names
from tests.ranks.spread_checks import assert_same_memory
from tests.serving.test_server import KILLERS

pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.ranks, pytest.mark.slow]
_LONG = 100_000
# Two replies at once are computed in other sums than two in turn; their numbers, and so their likeliest tokens, hardly
# differ.
_TOKENS = 6


class Server:
    """A server on several ranks, on a free port."""

    def __init__(self, options: list[object], folder: Path, count: int = 2):
        self.ranks = Ranks(count, "mlx_deltamem", "server", *options, "--memories", folder, "--port", 0)
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

    def end(self) -> list[Rank]:
        self.ranks.processes[0].send_signal(signal.SIGTERM)
        return self.ranks.wait(timeout=60)


@pytest.fixture(scope="module")
def whole(options):
    """The model of one process, with its tokenizer."""
    return load(options[1], adapter=options[3])


def assert_ended_well(ranks: list[Rank]) -> None:
    assert [(each.code, each.err) for each in ranks] == [(0, "")] * len(ranks)
    assert [each.out for each in ranks[1:]] == [""] * (len(ranks) - 1)


def said(chat: ChatSession, conversation: str, text: str) -> str:
    """The text of a reply, as the server sends it."""
    chat.conversation = conversation
    return "".join(response.text for response in chat.stream(text, _TOKENS))


def test_a_memory_goes_from_one_process_to_ranks_and_back(options, whole, tmp_path):
    folder = tmp_path / "memories"
    folder.mkdir()
    anna, ben = ChatSession(*whole), ChatSession(*whole)
    said(anna, "0", "My word is jade.")
    anna.save(folder / "anna.safetensors")
    server = Server(options, folder)
    for number, text in enumerate(("Hello there.", "What is it?"), 1):
        assert server.say(text, "anna") == said(anna, str(number), text)
    # Two memories in one batch.
    with ThreadPoolExecutor() as pool:
        replies = list(pool.map(server.say, ("And now?", "My word is opal."), ("anna", "ben")))
    assert replies == [said(anna, "3", "And now?"), said(ben, "0", "My word is opal.")]
    seeded = {"temperature": 1.0, "seed": 7}
    assert len({server.say("Say something.", "anna:ro", **seeded) for _ in range(2)}) == 1
    assert_ended_well(server.end())
    for name, chat in (("anna", anna), ("ben", ben)):
        saved = ChatSession.load(*whole, folder / f"{name}.safetensors")
        assert [turn.reply for turn in saved.turns] == [turn.reply for turn in chat.turns]
        assert_same_memory(chat.memory, saved.memory)


def test_memories_are_worked_on_in_all_ranks(options, whole, tmp_path):
    folder = tmp_path / "memories"
    server, chat = Server(options, folder), ChatSession(*whole)

    def does(method: str, path: str, body: object = None, status: int = 200) -> object:
        found, answer = server.ask(method, f"/v1/memories{path}", body)
        assert found == status, answer
        return answer

    note = [{"role": "user", "content": "Anna has a dog. " * 200}]
    with ThreadPoolExecutor() as pool:
        # It is read in several parts, between which other replies go on.
        remembering = pool.submit(does, "POST", "/anna/remember", {"messages": note})
        server.say("Hello.", "carl")
        remembering.result()
    chat.remember(note)
    assert server.say("What has she?", "anna") == said(chat, "0", "What has she?")
    does("POST", "/anna/fork", {"name": "ben"}, 201)
    does("POST", "/ben/undo")
    assert [len(does("GET", f"/{name}/turns")["turns"]) for name in ("anna", "ben")] == [2, 1]
    content = does("GET", "/anna/export")
    does("PUT", "/dora/import", content)
    does("PUT", "/dora/import", b"no session", 422)
    does("POST", "/ben/reset")
    does("DELETE", "/carl", status=204)
    does("GET", "/carl", status=404)
    assert does("GET", "/dora/heatmap.json")["layers"] == does("GET", "/anna/heatmap.json")["layers"]
    assert [each["name"] for each in does("GET", "")["memories"]] == ["anna", "ben", "dora"]
    for body in KILLERS:
        server.ask("POST", "/v1/completions", {"max_tokens": 2, **body})
    assert server.say("And now?", "dora") == said(chat, "1", "And now?")
    assert_ended_well(server.end())
    assert_same_memory(chat.memory, ChatSession.load(*whole, folder / "dora.safetensors").memory)


def test_a_client_that_leaves_a_seeded_stream_does_not_hang_the_ranks(options, whole, tmp_path):
    server = Server(options, tmp_path / "memories")
    answer = server.chat("Hello.", "anna", max_tokens=_LONG, stream=True, seed=3, temperature=1.0)
    events = server.request("GET", "/v1/memories/anna/events")
    assert answer.readline().startswith(b"data: ")
    for left in (answer, events):
        left.close()
    # It waits for the end of the turn before it.
    server.say("What did I say?", "anna")
    assert server.ask("GET", "/health")[0] == 200
    assert_ended_well(server.end())
    first, _second = ChatSession.load(*whole, tmp_path / "memories" / "anna.safetensors").turns
    assert 0 < len(first.reply_ids) < _LONG


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


def test_a_port_that_is_taken_is_refused_in_all_ranks(options, tmp_path):
    server = Server(options, tmp_path / "one")
    ranks = Ranks(2, "mlx_deltamem", "server", *options, "--memories", tmp_path / "two", "--port", server.port)
    first, second = ranks.wait()
    assert (first.code, second.code, second.out + second.err) == (2, 2, "")
    assert first.err.splitlines()[-1].startswith(f"error: cannot listen on 127.0.0.1:{server.port}")
    assert_ended_well(server.end())
