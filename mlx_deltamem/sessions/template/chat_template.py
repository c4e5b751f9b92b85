"""A tokenizer's chat template: the tokens of messages, with the message and the sentence of each token."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.template.options import DEFAULTS, Tools, check_trusted, parse_tools
from mlx_deltamem.sessions.template.text import TemplateText, described
from mlx_deltamem.sessions.text.json_text import json_text
from mlx_deltamem.sessions.text.messages import Message, ToolCall
from mlx_deltamem.sessions.text.segments import Segments, shared_length
from mlx_deltamem.sessions.text.token_ids import token_ids

# Sentences are split before a match: closing quotes and white space go to the next sentence.
_SENTENCE_BREAK = re.compile(r"""\n{2,}|(?<=[.!?;:])["')\]”’]*\s+""")


class ChatTemplate:
    """A tokenizer's chat template, for a whole chat or turn by turn.

    A message ends where the chat would end if it were the last message. Text that the template writes only because
    another message follows belongs to that other message.

    Turn by turn, a chat is made of three kinds of tokens: the `opening` of new messages, the reply as it was generated
    (never tokenised), and the `ending` of the reply. The template may rewrite earlier turns, for example leave out
    their thoughts; `opening` and `ending` do not depend on that, and the chat keeps the tokens that it has. Both
    tokenise their text separately. The result equals the tokens of the whole chat if the text begins and ends with
    special tokens.

    Give a generated reply as its text, with the text of its tool calls and without `tool_calls`: the template would
    write the calls in another way.

    Args:
        tokenizer: mlx-lm's tokenizer.
        tools: The tools that the model is offered, in OpenAI's form.
        options: Further arguments of its `apply_chat_template`, such as `enable_thinking=False`.

    Attributes:
        tools: As given.
        options: All arguments of `apply_chat_template` that the chat does not set itself, the tools included.

    Raises:
        ValueError: The tokenizer has no chat template, or an option is one that the chat sets itself. All methods
            raise it if the template refuses the messages or fails, takes too long or writes too much, leaves out or
            repeats the content of a message, ends a message in another way once another one follows, or if the text is
            not UTF-8.
    """

    # The slash: an option may have the name of one of the first two.
    def __init__(self, tokenizer: TokenizerWrapper, /, tools: Tools | None = None, **options: object):
        self.tools = tools
        self.options: dict[str, object] = options if tools is None else {**options, "tools": tools}
        self._tokenizer = tokenizer
        self._text = TemplateText(tokenizer, self.options)

    def whole(self, messages: Sequence[Message], generation_prompt: bool = False) -> Segments:
        """All tokens of a chat, tokenised as one text.

        A token with text of two messages belongs to the later one.

        Args:
            messages: The chat.
            generation_prompt: Whether the tokens that ask for a reply follow.
        """
        return self._segments(messages, 0, generation_prompt, 0)

    def ids(self, messages: Sequence[Message], generation_prompt: bool = False) -> list[int]:
        """The token ids of `whole`. This is faster than `whole`."""
        return self._encode(self._text.added(messages, 0, generation_prompt))

    def opening(self, messages: Sequence[Message], first_sentence: int = 0, new: int = 1) -> Segments:
        """The tokens that new messages and the generation prompt add to a chat.

        Args:
            messages: All messages, the new ones last. The model has read the earlier ones, and the `ending` of each
                reply. If all earlier ones are system prompts, it has read nothing: the result is then the whole chat.
            first_sentence: The sentence index of the first new sentence.
            new: The number of new messages. None of them is a reply.

        Raises:
            ValueError: As the class says; or there are fewer messages, or a new message is a reply.
        """
        start = len(messages) - new
        if new < 1 or start < 0 or any(message["role"] == "assistant" for message in messages[start:]):
            wanted = "a new message" if new == 1 else f"{new} new messages"
            raise ValueError(f"opening got {described(messages)}; expected {wanted} at the end")
        if not _count(messages[:start]):
            start = 0
        return self._segments(messages, start, True, first_sentence)

    def ending(self, messages: Sequence[Message]) -> Segments:
        """The tokens that the template writes after a reply to end it. There may be none.

        Args:
            messages: All messages, the reply last.

        Raises:
            ValueError: As the class says; or the last message is not a reply.
        """
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f"ending got {described(messages)}; expected a reply at the end")
        ids = self._encode(self._text.ending(messages))
        return Segments(ids, [_count(messages) - 1] * len(ids), [-1] * len(ids))

    def reply_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a reply that was not generated: its content and its tool calls.

        The calls are as the template writes them; as JSON, if it writes none or not behind the content.

        Args:
            messages: All messages, the reply last. It may have `tool_calls`.
        """
        reply = messages[-1]
        calls = reply.get("tool_calls")
        return self._encode(reply["content"] + (self._calls(messages, calls) if calls else ""))

    def _calls(self, messages: Sequence[Message], calls: Sequence[ToolCall]) -> str:
        try:
            text = self._text.calls(messages)
        except ValueError:
            text = ""
        return text or "".join("\n" + json_text(call["function"]) for call in calls)

    def _segments(self, messages: Sequence[Message], start: int, generation_prompt: bool, sentence: int) -> Segments:
        """The tokens that `messages[start:]`, and the generation prompt, add to the messages before them."""
        text = self._text.added(messages, start, generation_prompt)
        first = start or _leading_system_prompts(messages)
        head = 0 if start else self._text.head(text, messages, first, generation_prompt)
        ends = [self._text.end_in(text, messages, index, generation_prompt) for index in range(first, len(messages))]
        ids = self._encode(text)
        borders = self._token_borders(ids, text, [head, *ends])
        message_ids, sentence_ids = [-1] * len(ids), [-1] * len(ids)
        message_id = _count(messages[:first])
        for message, (begin, end) in zip(messages[first:], pairwise(borders), strict=True):
            if message["role"] != "system":
                message_ids[begin:end] = [message_id] * (end - begin)
                sentence_ids[begin:end] = self._sentence_ids(message["content"], ids[begin:end], sentence)
                message_id += 1
                sentence = max([sentence - 1, *sentence_ids[begin:end]]) + 1
        return Segments(ids, message_ids, sentence_ids)

    def _encode(self, text: str) -> list[int]:
        # The template has already written a BOS token if there is one.
        return token_ids(self._tokenizer, text)

    def _token_borders(self, ids: list[int], text: str, borders: list[int]) -> list[int]:
        """For each border in the text (a number of characters), the number of tokens before it."""
        counts, begin, count, exact = [], 0, 0, True
        for border in borders:
            piece = self._encode(text[begin:border])
            if exact and ids[count : count + len(piece)] == piece:
                count += len(piece)
            else:  # The tokens of the piece depend on the text before it: encode that text as well, which is slower.
                before = self._encode(text[:border])
                count = shared_length(before, ids)
                exact = count == len(before)
            counts.append(count)
            begin = border
        return counts

    def _sentence_ids(self, content: str, ids: list[int], first: int) -> list[int]:
        """The sentence index of each token of a message, counted from `first`; -1 for tokens around the content."""
        sentence_ids = [-1] * len(ids)
        content_ids = self._encode(content)
        places = range(len(ids) - len(content_ids) + 1)
        place = next((i for i in places if ids[i : i + len(content_ids)] == content_ids), None)
        if place is None:
            return sentence_ids
        pieces = [tokens for piece in sentences(content) if (tokens := self._encode(piece))]
        if list(chain.from_iterable(pieces)) != content_ids:
            # As in the reference, the content then counts as one sentence (facts.md 2.4).
            pieces = [content_ids]
        for sentence, tokens in enumerate(pieces, first):
            sentence_ids[place : place + len(tokens)] = [sentence] * len(tokens)
            place += len(tokens)
        return sentence_ids


def brought_template(
    path: Path | str, brought: Mapping[str, object], tokenizer: TokenizerWrapper, taken: Collection[str]
) -> ChatTemplate:
    """The tokenizer's chat template with the options that a file brings.

    Args:
        path: The file, or a name for the place of the options, for messages.
        brought: The options, by name. The tools are one of them.
        tokenizer: mlx-lm's tokenizer.
        taken: Names that an option cannot have.

    Raises:
        ValueError: The file brings another chat template, or an option is not valid.
    """
    check_trusted(path, brought, tokenizer, taken)
    options = {**DEFAULTS, **brought}
    tools = parse_tools(options.pop("tools")) if "tools" in options else None
    return ChatTemplate(tokenizer, tools, **options)


def sentences(text: str) -> list[str]:
    """Split a text into sentences. Joined, they are the text again."""
    cuts = [match.start() for match in _SENTENCE_BREAK.finditer(text)]
    return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)]) if begin < end]


def _count(messages: Iterable[Message]) -> int:
    """The number of messages that are not system prompts."""
    return sum(message["role"] != "system" for message in messages)


def _leading_system_prompts(messages: Sequence[Message]) -> int:
    return next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
