"""Compare recall through the server with that of `ChatSession`: `python -m tools.measure.server_recall --questions 50`.

Conversations of `mlx_deltamem.speech` are held twice: through the HTTP API, with the whole chat in each request as
clients send it, and in a `ChatSession`. The text is dropped in both (history `none`). Then each question is asked, and
read only. The server runs in this process, so that the model is loaded once.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import mlx.nn as nn
import uvicorn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import POSITIVE
from mlx_deltamem.serving.api.app import make_app
from mlx_deltamem.serving.api.settings import Settings
from mlx_deltamem.serving.engine import Engine
from mlx_deltamem.serving.local import LocalService
from mlx_deltamem.serving.memories import Memories
from mlx_deltamem.speech import Conversation, SpeechSettings, make_conversation
from tools import smollm2
from tools.demo import ADAPTER

_REPLY, _ANSWER = 12, 24
_SETTINGS = SpeechSettings(facts=(1, 2), ordinary=(0, 1), gap=(0, 0), absent=(0, 0), updates=0, deletions=0)
Message = dict[str, str]


def main() -> None:
    """Hold the conversations, and print the recall of both."""
    parser = Parser(prog="python -m tools.measure.server_recall", description=__doc__)
    parser.add_argument("--questions", type=POSITIVE, default=50, help="Number of questions (default: 50).")
    args = parser.parse_args()
    model, tokenizer = load(smollm2.build(), ADAPTER)
    asked = same = 0
    right = {"the server": 0, "ChatSession": 0}
    with served(model, tokenizer) as port:
        for index, conversation in enumerate(conversations()):
            if asked >= args.questions:
                break
            chat, said = held(model, tokenizer, conversation), talked(port, f"m{index}", conversation)
            for question in conversation.questions[: args.questions - asked]:
                served_reply = ask(port, f"m{index}:ro", [*said, user(question.text)], _ANSWER)
                chat_reply = chat.fork().stream(question.text, _ANSWER, read_only=True)
                replies = served_reply, "".join(part.text for part in chat_reply)
                asked += 1
                same += replies[0] == replies[1]
                for name, reply in zip(right, replies, strict=True):
                    right[name] += (question.value or "").lower() in reply.lower()
    shown = ", ".join(f"{count} right through {name}" for name, count in right.items())
    print(f"{asked} questions: {shown}; {same} replies are the same")


def conversations() -> Iterator[Conversation]:
    """Conversations with questions that have an answer."""
    index = 0
    while True:
        yield make_conversation(_SETTINGS, "server", index)
        index += 1


@contextmanager
def served(model: nn.Module, tokenizer: TokenizerWrapper) -> Iterator[int]:
    """A running server in a thread: its port."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        memories = Memories(model, tokenizer, Path(folder), "none", "all", 1 << 30)
        engine = Engine(model, tokenizer, memories)
        app = make_app(LocalService(engine, "small"), Settings())
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        engine.start()
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()
        engine.stop(0)


def held(model: nn.Module, tokenizer: TokenizerWrapper, conversation: Conversation) -> ChatSession:
    """A conversation in a chat."""
    chat = ChatSession(model, tokenizer, history="none")
    for turn in conversation.turns:
        chat.send(turn.user, _REPLY)
    return chat


def talked(port: int, memory: str, conversation: Conversation) -> list[Message]:
    """A conversation through the server: its messages."""
    said: list[Message] = []
    for turn in conversation.turns:
        said.append(user(turn.user))
        said.append({"role": "assistant", "content": ask(port, memory, said, _REPLY)})
    return said


def user(text: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": text}


def ask(port: int, memory: str, messages: list[Message], tokens: int) -> str:
    """The server's reply."""
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    body = json.dumps({"messages": messages, "max_tokens": tokens, "temperature": 0})
    connection.request("POST", "/v1/chat/completions", body, {"X-Deltamem-Memory": memory})
    content = json.loads(connection.getresponse().read())
    connection.close()
    return content["choices"][0]["message"]["content"] or ""


if __name__ == "__main__":
    main()
