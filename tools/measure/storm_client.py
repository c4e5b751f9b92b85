"""The clients of `tools.measure.server_storm`: what they ask, and what they know of their memories."""

import asyncio
import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx2

from mlx_deltamem.sessions.turns.turn import Turn
from tools.measure.storm_malformed import MALFORMED, ODD, TOO_LARGE

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SHARED = "shared"
# How often each is done, in shares of all requests.
SHARES = {
    "new": 0.22,
    "go on": 0.27,
    "again": 0.06,
    "edit": 0.04,
    "shared": 0.05,
    "read only": 0.07,
    "off": 0.03,
    "private": 0.03,
    "text": 0.03,
    "messages": 0.02,
    "response": 0.01,
    "remember": 0.01,
    "undo": 0.01,
    "left": 0.10,
    "malformed": 0.05,
}
_LONGEST_CHAT = 5
_NUMBERS = itertools.count()


@dataclass
class Ledger:
    """The turns of a memory that its clients have seen.

    Attributes:
        name: The name of the memory.
        turns: The messages and replies that were acknowledged, in order; a shared memory has another order.
        maybe: By message, the text that came before the client left. The turn has it and may have more, or there is
            no such turn.
        most_turns: The memory is emptied when it has so many turns; None: it grows.
    """

    name: str
    turns: list[tuple[str, str]] = field(default_factory=list)
    maybe: dict[str, str] = field(default_factory=dict)
    most_turns: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether the memory has to be emptied."""
        return self.most_turns is not None and len(self.turns) >= self.most_turns

    def fault(self, turns: Sequence[Turn], special: re.Pattern[str]) -> str:
        """Compare with the turns of the memory.

        Args:
            turns: The turns.
            special: Finds special tokens, which clients see and turns leave out.

        Returns:
            The fault, or an empty text.
        """
        known = []
        for turn in turns:
            # mlx-lm's detokenizer gives byte 0 as the letter that stands for it in the vocabulary.
            said, reply = turn.messages[-1]["content"], turn.reply.replace("\0", "\u0100").strip()
            if said not in self.maybe:
                known.append((said, reply))
            elif not reply.startswith(special.sub("", self.maybe[said]).strip()):
                return f"{said!r}: {self.maybe[said]!r} was received, and the turn has {reply!r}"
        expected = [(said, special.sub("", reply).strip()) for said, reply in self.turns]
        if self.name == SHARED:
            known, expected = sorted(known), sorted(expected)
        if known == expected:
            return ""
        found, wanted = next(pair for pair in itertools.zip_longest(known, expected) if pair[0] != pair[1])
        return f"{len(known)} turns are there, {len(expected)} are known; the first fault is {found}, not {wanted}"


@dataclass
class Chat:
    """A chat as its client shows it.

    Attributes:
        name: The id that the client gives; "": none.
        texts: The messages and replies by turns. They are empty for what is no chat, and cannot be gone on with.
    """

    name: str = ""
    texts: list[str] = field(default_factory=list)


class Client:
    """A client that waits for each answer before it asks the next thing.

    Args:
        port: The port of the server.
        ledgers: Its memories.
        shared: The memory of all clients. It is not used if memories are emptied.
        counts: Counts what was done, of all clients.
        chance: Decides what is done.
        timeout: A request that takes longer hangs, in seconds.
        greedy: Whether all replies are the likeliest ones. Else some are sampled.
    """

    def __init__(
        self,
        port: int,
        ledgers: Sequence[Ledger],
        shared: Ledger,
        counts: Counter[str],
        chance: random.Random,
        timeout: float,
        greedy: bool,
    ):
        self._ledgers = ledgers
        self._chats: dict[str, list[Chat]] = {ledger.name: [] for ledger in ledgers}
        self._shared, self._counts, self._chance, self._greedy = shared, counts, chance, greedy
        self._http = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=timeout)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def step(self) -> None:
        """Do one thing.

        Raises:
            AssertionError: The answer is not the expected one, or there is none in time.
        """
        [kind] = self._chance.choices(list(SHARES), list(SHARES.values()))
        ledger = self._chance.choice(self._ledgers)
        if kind == "shared" and ledger.most_turns is not None:
            kind = "new"
        begun = time.monotonic()
        try:
            done = await (self._reset(ledger) if ledger.is_full else self._do(kind, ledger))
        except (httpx2.HTTPError, TimeoutError) as error:
            seconds = time.monotonic() - begun
            raise AssertionError(f"{kind!r} got no answer: {type(error).__name__} after {seconds:.1f} s") from None
        self._counts[done] += 1

    async def _reset(self, ledger: Ledger) -> str:
        await self._expect(await self._http.post(f"/v1/memories/{ledger.name}/reset"), "reset", 200)
        for each in (ledger.turns, ledger.maybe, self._chats[ledger.name]):
            each.clear()
        return "reset"

    async def _do(self, kind: str, ledger: Ledger) -> str:
        chats = self._chats[ledger.name]
        last = chats[-1].texts if chats else []
        if kind in ("go on", "again", "edit", "undo") and not last:
            kind = "new"
        if kind == "go on" and len(last) >= 2 * _LONGEST_CHAT:
            kind = "new"
        if kind == "again" and len(last) == 2 and not chats[-1].name:
            # It would begin another chat with the same words, and the server cannot tell the two apart.
            kind = "new"
        if kind in ("new", "go on", "again", "edit"):
            await self._say(kind, ledger, chats)
        elif kind == "undo":
            await self._expect(await self._http.post(f"/v1/memories/{ledger.name}/undo"), kind, 200)
            ledger.turns.pop()
            del last[-2:]
            if not last:
                chats.pop()
        elif kind == "remember":
            text = self._text()
            await self._expect(await self._post(f"/v1/memories/{ledger.name}/remember", {"text": text}), kind, 200)
            ledger.turns.append((text, ""))
            # What was remembered is taken back before the turns of the last chat.
            chats.append(Chat())
        elif kind == "left":
            await self._leave(ledger, chats)
        elif kind == "malformed":
            return await self._malformed()
        else:
            await self._other(kind, ledger, last)
        return kind

    async def _say(self, kind: str, ledger: Ledger, chats: list[Chat]) -> None:
        """Say something in a new chat or in the last one, or ask for its last reply again, or edit its last message."""
        if kind == "new":
            chats.append(Chat(f"chat-{next(_NUMBERS)}" if self._chance.random() < 0.5 else ""))
        chat = chats[-1]
        before = chat.texts if kind in ("new", "go on") else chat.texts[:-2]
        text = chat.texts[-2] if kind == "again" else self._text()
        reply = await self._reply(_roles([*before, text]), ledger.name, chat.name)
        # Without an id of the chat, another first message begins another chat.
        if kind in ("again", "edit") and (before or chat.name):
            ledger.turns.pop()
        ledger.turns.append((text, reply.strip()))
        chat.texts[len(before) :] = [text, reply]

    async def _reply(self, messages: list[dict[str, str]], memory: str, chat: str = "") -> str:
        """Ask for a reply, with or without a stream."""
        body = {"messages": messages, "max_tokens": self._chance.randint(1, 8)}
        if not self._greedy and self._chance.random() < 0.3:
            body |= {"temperature": 1.0, "seed": self._chance.getrandbits(32)}
        headers = {"X-Deltamem-Memory": memory, **({"X-Session-ID": chat} if chat else {})}
        if self._chance.random() < 0.5:
            answer = (await self._expect(await self._post(CHAT, body, headers), "reply", 200)).json()
            assert answer["usage"]["memory"]["saved"] is not None
            return str(answer["choices"][0]["message"]["content"])
        answer = await self._expect(await self._post(CHAT, {**body, "stream": True}, headers), "stream", 200)
        assert answer.text.endswith("data: [DONE]\n\n"), f"a stream ends with {answer.text[-200:]!r}"
        events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
        assert not any("error" in each for each in events), f"a stream has an error: {events[-1]}"
        return "".join(each["choices"][0]["delta"].get("content", "") for each in events)

    async def _leave(self, ledger: Ledger, chats: list[Chat]) -> None:
        """Ask for something and leave: before the answer, or in the middle of a stream."""
        text, headers = self._text(), {"X-Deltamem-Memory": ledger.name}
        body = {"messages": _roles([text]), "max_tokens": 40, "stream": self._chance.random() < 0.7}
        ledger.maybe[text] = ""
        request = self._http.build_request("POST", CHAT, json=body, headers=headers)
        try:
            if not body["stream"]:
                async with asyncio.timeout(self._chance.expovariate(20)):
                    await self._http.send(request)
            else:
                ledger.maybe[text] = await self._first_events(request, self._chance.randint(0, 6))
        except TimeoutError:
            pass
        # This waits until the turn has ended, if the server has received the message.
        await self._expect(await self._http.patch(f"/v1/memories/{ledger.name}", json={}), "settled", 200, 404)
        chats.append(Chat())

    async def _first_events(self, request: httpx2.Request, events: int) -> str:
        """Read the first events of a stream, and close the connection; returns the text in them."""
        answer, text = await self._http.send(request, stream=True), ""
        try:
            assert answer.status_code == 200, f"status {answer.status_code} for a stream"
            async for line in answer.aiter_lines():
                if events <= 0:
                    break
                if line.startswith("data: {"):
                    events -= 1
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        finally:
            await answer.aclose()
        return text

    async def _malformed(self) -> str:
        if self._chance.random() < 0.5:
            path, body = self._chance.choice(ODD)
            await self._expect(await self._post(path, body), f"odd {path} {body}", 200)
            return "odd"
        if self._chance.random() < 0.02:
            await self._expect(await self._post(CHAT, {"messages": TOO_LARGE}), "a large body", 413)
            return "too large"
        method, wrong_path, wrong, status = self._chance.choice(MALFORMED)
        content = wrong if isinstance(wrong, bytes) else json.dumps(wrong).encode()
        answer = await self._http.request(method, wrong_path, content=content)
        named = f"{method} {wrong_path} {content[:100]!r}"
        error = (await self._expect(answer, named, status)).json()["error"]
        assert wrong_path == MESSAGES or set(error) == {"message", "type", "param", "code"}, f"{named}: {error}"
        return "malformed"

    async def _other(self, kind: str, ledger: Ledger, last: list[str]) -> None:
        """Things that write nothing into the client's memory in a chat's form, or in another API's form."""
        text = self._text()
        chat, short = {"messages": _roles([text]), "max_tokens": 4}, {"max_tokens": 4, "memory": {"name": ledger.name}}
        if kind == "shared":
            self._shared.turns.append((text, (await self._reply(_roles([text]), SHARED)).strip()))
        elif kind == "read only":
            messages, headers = _roles([*last, text]), {"X-Deltamem-Memory": f"{ledger.name}:ro"}
            await self._expect(await self._post(CHAT, {**chat, "messages": messages}, headers), kind, 200)
        elif kind == "off":
            await self._expect(await self._post(CHAT, {**chat, "memory": {"mode": "off"}}), kind, 200)
        elif kind == "private":
            answer = await self._expect(await self._post(CHAT, chat), kind, 200)
            reply = answer.json()["choices"][0]["message"]["content"] or ""
            await self._expect(await self._post(CHAT, {**chat, "messages": _roles([text, reply, text])}), kind, 200)
        elif kind == "text":
            await self._expect(await self._post(TEXT, {**short, "prompt": [text, "And"]}), kind, 200)
        elif kind == "messages":
            answer = await self._expect(await self._post(MESSAGES, {**chat, **short}), kind, 200)
            reply = "".join(block["text"] for block in answer.json()["content"])
            self._told(ledger, text, reply)
        else:
            body = {"input": text, "max_output_tokens": 4, "memory": {"name": ledger.name}}
            answer = await self._expect(await self._post(RESPONSES, body), kind, 200)
            self._told(ledger, text, answer.json()["output"][0]["content"][0]["text"])

    def _told(self, ledger: Ledger, text: str, reply: str) -> None:
        ledger.turns.append((text, reply.strip()))
        self._chats[ledger.name].append(Chat("", [text, reply]))

    async def _post(self, path: str, body: object, headers: dict[str, str] | None = None) -> httpx2.Response:
        return await self._http.post(path, content=json.dumps(body).encode(), headers=headers)

    async def _expect(self, answer: httpx2.Response, named: str, *statuses: int) -> httpx2.Response:
        assert answer.status_code in statuses, f"{named} got {answer.status_code}: {answer.text[:500]}"
        return answer

    def _text(self) -> str:
        """A text that nobody else says."""
        return f"Number {next(_NUMBERS)} is {'rather ' * self._chance.randint(0, 6)}mine."


def _roles(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
