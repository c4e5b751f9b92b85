"""The server as a process: HTTP from end to end, signals and kills."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.server import _name_of, setup_arg_parser
from tests.conftest import REPO, adapter, backbone
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import loaded, new_chat, same_memory

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow

# With the matrix products of the tests, so that the numbers are the same.
LAUNCH = "import tools.openblas; from mlx_deltamem.server import main; main()"
SERVER = (sys.executable, "-c", LAUNCH)


class Server:
    """A running server on a free port."""

    def __init__(self, folder: Path, *options: str, before: str = ""):
        places = ("--model", backbone(), "--adapter", adapter("qwen3_tsw_qo"), "--memories", str(folder))
        command = [sys.executable, "-c", before + LAUNCH, *places, "--port", "0", *options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        line = self.process.stdout.readline()
        assert "Serving on http://127.0.0.1:" in line, self.process.stderr.read()
        self.port = int(line.split(":")[2].split()[0])

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict]:
        connection = self.connect()
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, content, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = answer.read()
        connection.close()
        return answer.status, json.loads(found) if found[:1] == b"{" else {"text": found}

    def say(self, text: str, memory: str, tokens: int = 6, **fields: object) -> tuple[int, dict]:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, **fields}
        return self.ask("POST", "/v1/chat/completions", body, X_Deltamem_Memory=memory)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    started = Server(tmp_path / "memories")
    yield started
    if started.process.poll() is None:
        started.end()


def test_a_memory_over_http_is_that_of_a_chat(server, tmp_path):
    chat = new_chat(system=None)
    for index, text in enumerate(("My word is jade.", "Hello there.", "What is it?")):
        chat.conversation = str(index)
        status, answer = server.say(text, "anna")
        assert status == 200
        shown = "".join(response.text for response in chat.stream(text, 6))
        assert (answer["choices"][0]["message"]["content"] or "") == shown
    assert server.end() == 0
    saved = ChatSession.load(*loaded(), tmp_path / "memories" / "anna.safetensors")
    assert same_memory(saved, chat, TOLERANCE_AGAIN)


def test_no_acknowledged_turn_is_lost_by_a_kill(tmp_path):
    acknowledged = 0
    for _ in range(4):
        server = Server(tmp_path / "memories")
        counts = []

        def talk(server: Server = server, counts: list[int] = counts) -> None:
            while True:
                try:
                    status, answer = server.say("Hello there.", "anna", 3)
                except (OSError, ValueError, AssertionError):
                    return
                if status == 200:
                    counts.append(answer["usage"]["memory"]["revision"])

        talking = threading.Thread(target=talk)
        talking.start()
        while len(counts) < 2:
            assert talking.is_alive()
            time.sleep(0.01)
        server.end(signal.SIGKILL)
        talking.join()
        if counts:
            acknowledged = counts[-1]
        saved = ChatSession.load(*loaded(), tmp_path / "memories" / "anna.safetensors")
        # A turn may have been saved, and its answer not sent.
        assert acknowledged <= len(saved.turns) <= acknowledged + 1
        acknowledged = len(saved.turns)
    assert acknowledged >= 8


def test_sigterm_under_load_saves_and_ends_with_0(server, tmp_path):
    statuses = []

    def talk(index: int) -> None:
        statuses.append(server.say("Hello there.", f"m{index}", 40)[0])

    talking = [threading.Thread(target=talk, args=(index,)) for index in range(6)]
    for each in talking:
        each.start()
    time.sleep(0.3)
    assert server.end() == 0
    for each in talking:
        each.join()
    for path in (tmp_path / "memories").glob("*.safetensors"):
        assert ChatSession.load(*loaded(), path).turns


KILLERS = (
    {"prompt": ["a", "b"]},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": "a", "stop": [1]},
    {"prompt": "a", "stop": 5},
    {"prompt": "a", "top_k": 10_000_000},
    {"prompt": "a", "seed": -1},
    {"prompt": "a", "seed": 2**70},
    {"prompt": "a", "n": 2},
    {"prompt": "a", "stream": None, "temperature": None},
    {"prompt": "a", "logit_bias": {"999999999": 1}},
    {"prompt": "a", "logit_bias": {"-5": 1}},
    {"prompt": "a", "max_tokens": 10**12},
    {"prompt": "word " * 100_000},
    {"messages": []},
    {"messages": [{"role": "user", "content": "\ud800"}]},
    {"messages": [{"role": "robot", "content": "a"}]},
    {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
    {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]},
    {"messages": [{"role": "user", "content": "a"}], "temperature": 1e308},
)


def test_no_request_ends_the_server_for_others(server):
    for body in KILLERS:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        status, answer = server.ask("POST", path, {"max_tokens": 3, **body})
        assert status in (200, 400, 422), (body, status, answer)
        if status != 200:
            assert set(answer["error"]) == {"message", "type", "param", "code"}
        status, answer = server.say("Hello.", "anna", 2)
        assert status == 200, (body, answer)


def test_a_client_that_leaves_a_stream_ends_its_reply(server):
    for _ in range(3):
        connection = server.connect()
        body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 4000, "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"X-Deltamem-Memory": "anna"})
        assert connection.getresponse().read(200)
        connection.close()
    status, _ = server.say("And you?", "anna", 2)
    assert status == 200
    end = time.monotonic() + 20
    while server.ask("GET", "/health")[1]["active"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_other_machines_need_a_key(tmp_path):
    command = [*SERVER, "--host", "0.0.0.0", "--model", backbone()]
    command += ["--adapter", adapter("qwen3_tsw_qo"), "--memories", str(tmp_path / "memories")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=REPO)
    assert ended.returncode == 2
    assert "there is no key" in ended.stderr
    (tmp_path / "key").write_text("secret-key\n")
    server = Server(tmp_path / "memories", "--api-key-file", str(tmp_path / "key"))
    assert server.say("Hello.", "anna")[0] == 401
    status, _ = server.ask(
        "POST",
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2},
        Authorization="Bearer secret-key",
    )
    assert status == 200
    assert server.ask("GET", "/health")[0] == 200
    assert server.ask("GET", "/v1/models", Host="evil.example", Authorization="Bearer secret-key")[0] in (400, 403, 421)
    assert server.end(signal.SIGINT) == 0


def test_a_port_that_is_taken(server, tmp_path):
    command = [*SERVER, "--port", str(server.port), "--model", backbone()]
    command += ["--adapter", adapter("qwen3_tsw_qo"), "--memories", str(tmp_path / "others")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=REPO)
    assert ended.returncode == 2
    assert "cannot listen on 127.0.0.1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sigterm_saves_turns_that_wait_for_their_file(tmp_path):
    server = Server(tmp_path / "memories", "--durability", "3600")
    status, answer = server.say("Hello there.", "anna")
    assert status == 200
    assert answer["usage"]["memory"]["written"] and not answer["usage"]["memory"]["saved"]
    file = tmp_path / "memories" / "anna.safetensors"
    assert not file.exists()
    assert server.end() == 0
    assert len(ChatSession.load(*loaded(), file).turns) == 1


def test_a_kill_loses_only_turns_that_were_not_saved(tmp_path):
    server = Server(tmp_path / "memories", "--durability", "0.2")
    for text in ("Hello there.", "And you?"):
        server.say(text, "anna")
    end = time.monotonic() + 30
    while not server.ask("GET", "/v1/memories/anna")[1]["saved"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    server.end(signal.SIGKILL)
    assert len(ChatSession.load(*loaded(), tmp_path / "memories" / "anna.safetensors").turns) == 2


def test_a_full_disk_at_the_end_is_told(tmp_path):
    folder = tmp_path / "memories"
    server = Server(folder, "--durability", "3600")
    assert server.say("Hello there.", "anna")[0] == 200
    # Where a folder has the name of the file, nothing can be saved.
    (folder / "anna.safetensors").mkdir()
    server.process.send_signal(signal.SIGTERM)
    _, errors = server.process.communicate(timeout=30)
    assert server.process.returncode == 2
    assert "1 memories could not be saved at the end" in errors
    assert "Traceback" not in errors


def test_a_stalled_server_answers_and_ends(tmp_path):
    stalls = "import threading\nfrom mlx_deltamem.sessions.batch.reply_batch import ReplyBatch\n"
    stalls += "ReplyBatch.step = lambda batch: threading.Event().wait()\n"
    server = Server(tmp_path / "memories", "--exit-on-stall", "1", before=stalls)
    answers = []
    asking = [
        threading.Thread(target=lambda name=name: answers.append(server.say("Hello there.", name)))
        for name in ("anna", "anna", "ben")
    ]
    for each in asking:
        each.start()
    for each in asking:
        each.join(60)
    assert [status for status, _ in answers] == [503] * 3
    assert {answer["error"]["code"] for _, answer in answers} <= {"stalled", "ending"}
    assert server.process.wait(30) == 1
    assert "has stalled" in server.process.stderr.read()
    server.end()


def test_a_server_whose_engine_has_failed_answers_and_ends(tmp_path):
    """As one of several ranks in which something has failed alone."""
    found = "from mlx_deltamem.sessions.batch.reply_batch import ReplyBatch\n"
    fails = "def fail(batch):\n    raise SystemExit('broken')\nReplyBatch.step = fail\n"
    server = Server(tmp_path / "memories", before=found + fails)
    status, answer = server.say("Hello there.", "anna")
    assert (status, answer["error"]["code"]) == (503, "ending")
    assert server.process.wait(30) == 1
    errors = server.process.stderr.read()
    assert errors.endswith("RuntimeError: broken\n") and "ASGI" not in errors
    server.end()


@pytest.mark.parametrize("given", ["never", "0", "-1", "nan", ""])
def test_a_wrong_durability_is_refused(given):
    ended = subprocess.run(
        [*SERVER, f"--durability={given}"], capture_output=True, text=True, timeout=60, check=False, cwd=REPO
    )
    assert ended.returncode == 2
    assert "expected 'turn' or seconds, a number from 0.1 to 86,400" in ended.stderr


def test_a_pattern_that_is_no_regular_expression_is_refused(capsys):
    with pytest.raises(SystemExit):
        setup_arg_parser().parse_args(["--read-only-pattern", "*Task"])
    assert "'*Task' is no regular expression" in capsys.readouterr().err


def test_the_name_of_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _name_of("org/repo") == "repo"
    assert _name_of(".") == tmp_path.name
    assert _name_of("/") == "model"


def test_memories_may_take_more_than_2_gib():
    places = ["--model", "m", "--adapter", "a"]
    assert setup_arg_parser().parse_args([*places, "--memory-bytes", str(64 << 30)]).memory_bytes == 64 << 30


def test_new_requests_are_refused_while_the_last_replies_end(tmp_path):
    server = Server(tmp_path / "memories", "--grace", "3")
    connection = server.connect()
    banned = dict.fromkeys(map(str, loaded()[1].eos_token_ids), -100)
    body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": -1, "stream": True, "logit_bias": banned}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"X-Deltamem-Memory": "anna"})
    stream = connection.getresponse()
    assert stream.read(100)
    # It waits for the turn under way, and is refused when that is cut.
    waiting: list[tuple[int, dict]] = []
    other = threading.Thread(target=lambda: waiting.append(server.say("And you?", "anna")))
    other.start()
    while server.ask("GET", "/health")[1]["waiting"] == 0:
        time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    while server.ask("GET", "/health")[1]["status"] != "ending":
        time.sleep(0.05)
    refused = server.connect()
    refused.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": False}))
    answer = refused.getresponse()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert json.loads(answer.read())["error"]["code"] == "ending"
    refused.close()
    end = stream.read().decode()
    assert end.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in end
    other.join()
    assert waiting[0][0] == 503
    assert server.process.wait(30) == 0
    assert len(ChatSession.load(*loaded(), tmp_path / "memories" / "anna.safetensors").turns) == 1
    server.end()


def test_clients_that_watch_a_memory_do_not_hold_up_the_end(tmp_path):
    server = Server(tmp_path / "memories")
    assert server.say("Hello there.", "anna")[0] == 200
    watching = server.connect()
    watching.request("GET", "/v1/memories/anna/events")
    stream = watching.getresponse()
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    # The stream ends as a stream does, and not in the middle.
    assert stream.read() is not None
    _, errors = server.process.communicate(timeout=30)
    assert (server.process.returncode, errors) == (0, "")
    # The connections that are open when the server ends get 5 seconds.
    assert time.monotonic() - begun < 4
