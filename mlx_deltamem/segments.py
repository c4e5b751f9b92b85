"""Which message and which sentence each token of a chat belongs to: for a chat as a whole, and turn by turn.

Turn by turn, a reply is never tokenised: its tokens stay as they were generated, and only the text that the chat
template puts around it is. To find that text, the chat is rendered with a mark in the reply's place.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from jinja2 import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper

Message = dict[str, str]  # {"role": ..., "content": ...}

# A sentence is cut off before what this matches: closing quotes and white space begin the next one.
_SENTENCE_BREAK = re.compile(r"""\n{2,}|(?<=[.!?;:])["')\]”’]*\s+""")
_PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
_A_TURN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]


@dataclass(frozen=True)
class Segments:
    """Tokens and the spans they are in: three lists of one length.

    Attributes:
        ids: The tokens.
        message_ids: The index of each token's message, system prompts not counted; -1 for system prompts, for what
            the template writes before the first message, and for the generation prompt.
        sentence_ids: The index of each token's sentence in the chat; -1 outside the content of messages.
    """

    ids: list[int]
    message_ids: list[int]
    sentence_ids: list[int]

    def later(self, messages: int) -> "Segments":
        """The same tokens where so many more messages come before them."""
        moved = [index + messages if index >= 0 else index for index in self.message_ids]
        return Segments(self.ids, moved, self.sentence_ids)


class ChatTemplate:
    """A tokenizer's chat template, for a chat that goes on.

    A message ends where the chat would end if it were the last one: what the template writes only because another one
    follows belongs to that other one. `opening` and `ending` depend on what it writes after the last reply alone: it
    may rewrite earlier turns (leave out their thoughts, say), and the chat keeps the tokens that it has. Both tokenise
    their text by itself, which gives the tokens of the whole chat where special tokens are at its borders.

    Args:
        tokenizer: mlx-lm's tokenizer.
        options: More for its `apply_chat_template`, such as `enable_thinking=False`.

    Raises:
        ValueError: The tokenizer has no chat template. In every method: the template refuses the messages, drops or
            repeats the content of one, or takes back what it wrote at the end of one once another one follows.
    """

    def __init__(self, tokenizer: TokenizerWrapper, **options: object):
        # mlx-lm does not notice a template that was set later.
        if not (tokenizer.has_chat_template or tokenizer.chat_template):
            raise ValueError("the tokenizer has no chat template; expected a chat model's: set tokenizer.chat_template")
        self._tokenizer = tokenizer
        self._options = options

    def whole(self, messages: Sequence[Message], generation_prompt: bool = False) -> Segments:
        """All tokens of a chat, tokenised as one text.

        A token across the border of two messages belongs to the later one.

        Args:
            messages: The chat.
            generation_prompt: Whether the tokens that ask for a reply follow.
        """
        return self._segments(messages, 0, generation_prompt, 0)

    def opening(self, messages: Sequence[Message], first_sentence: int = 0) -> Segments:
        """The tokens that the last message and the generation prompt add to a chat.

        Args:
            messages: All messages. The model has read those before the last one, a reply with its `ending`; but where
                these are system prompts only, it has read nothing: the tokens are those of the whole chat then.
            first_sentence: The id of the new message's first sentence: the number of sentences so far.
        """
        if not messages or messages[-1]["role"] == "assistant":
            raise ValueError(f"opening got {_described(messages)}; expected a new message at the end")
        start = len(messages) - 1 if _count(messages[:-1]) else 0
        return self._segments(messages, start, True, first_sentence)

    def ending(self, messages: Sequence[Message]) -> Segments:
        """The tokens that the template writes after a reply to end it; there may be none.

        Args:
            messages: All messages, the reply last.
        """
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f"ending got {_described(messages)}; expected a reply at the end")
        after = self._after([*messages, _A_TURN[0]], len(messages) - 1, False)
        ids = self._encode(self._end(messages, after))
        return Segments(ids, [_count(messages) - 1] * len(ids), [-1] * len(ids))

    def _segments(self, messages: Sequence[Message], start: int, generation_prompt: bool, sentence: int) -> Segments:
        """The segments of what `messages[start:]`, and the generation prompt, add to the chat before them."""
        text = self._added(messages, start, generation_prompt)
        first = start or _leading_system_prompts(messages)
        head = 0 if start else self._head(text, messages, first, generation_prompt)
        ends = [self._end_in(text, messages, index, generation_prompt) for index in range(first, len(messages))]
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

    def _head(self, text: str, messages: Sequence[Message], first: int, generation_prompt: bool) -> int:
        """The length of what a chat begins with before its first message that is no system prompt."""
        # In the middle of a chat, the same messages come without a BOS token, a date or a default system prompt.
        in_the_middle = [*messages[:first], *_A_TURN, *messages[first:]]
        added = self._added(in_the_middle, first + len(_A_TURN), generation_prompt)
        if text.endswith(added):
            return len(text) - len(added)
        # A first message is written in a way of its own: with the system prompt merged into it, for one.
        return len(text) - len(self._after(messages, first - 1, generation_prompt)) if first else 0

    def _end_in(self, text: str, messages: Sequence[Message], index: int, generation_prompt: bool) -> int:
        """Where message `index` ends in the text of the chat."""
        rest = self._added(messages, index + 1, generation_prompt)
        if not text.endswith(rest):
            raise ValueError(
                f"the chat template lets the content of message {index} decide what it writes later; expected that it "
                "does not: change the message, or give the tokenizer another chat template"
            )
        return len(text) - len(rest)

    def _added(self, messages: Sequence[Message], start: int, generation_prompt: bool) -> str:
        """The text that `messages[start:]`, and the generation prompt, add to the chat before them."""
        if start == 0:
            return self._rendered(messages, generation_prompt)
        after = self._after(messages, start - 1, generation_prompt)
        return after[len(self._end(messages[:start], after)) :]

    def _end(self, messages: Sequence[Message], after: str) -> str:
        """The text that ends the last message; `after` is all that follows its content as the chat goes on."""
        end = self._after(messages, len(messages) - 1, False)
        # Some templates close a chat that asks for no reply with an EOS token: that is no part of the last message.
        for candidate in (end, end.removesuffix(self._tokenizer.eos_token or "")):
            if after.startswith(candidate):
                return candidate
        raise ValueError(
            f"the chat template ends message {len(messages) - 1} with {_quoted(end)}, but goes on with "
            f"{_quoted(after)}; expected one to begin with the other: give the tokenizer another chat template"
        )

    def _after(self, messages: Sequence[Message], index: int, generation_prompt: bool) -> str:
        """The text after the content of message `index`."""
        # A single character that no message has is not trimmed, and cannot arise where a message meets the template.
        mark = next(mark for mark in map(chr, _PRIVATE_USE) if not any(mark in each["content"] for each in messages))
        marked = [*messages]
        # A reply gives way to the mark, since templates rewrite replies. Other content stays, since some look for
        # switches in it.
        content = mark if messages[index]["role"] == "assistant" else messages[index]["content"] + mark
        marked[index] = {**messages[index], "content": content}
        text = self._rendered(marked, generation_prompt)
        if text.count(mark) != 1:
            raise ValueError(
                f"the chat template writes the content of message {index} ({messages[index]['role']}) "
                f"{text.count(mark)} times; expected once: give the tokenizer another chat template"
            )
        return text.partition(mark)[2]

    def _rendered(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt, **self._options
            )
        except TemplateError as error:
            raise ValueError(
                f"the chat template refuses {_described(messages)} ({error}); expected a chat it can write: "
                "change the messages, or give the tokenizer another chat template"
            ) from None

    def _encode(self, text: str) -> list[int]:
        # The template has written a BOS token already where there is to be one.
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _token_borders(self, ids: list[int], text: str, borders: list[int]) -> list[int]:
        """The number of tokens before each border in the text."""
        counts, begin, count, exact = [], 0, 0, True
        for border in borders:
            piece = self._encode(text[begin:border])
            if exact and ids[count : count + len(piece)] == piece:
                count += len(piece)
            else:  # Slower, for a piece whose tokens depend on the text before it.
                before = self._encode(text[:border])
                count = shared_length(before, ids)
                exact = count == len(before)
            counts.append(count)
            begin = border
        return counts

    def _sentence_ids(self, content: str, ids: list[int], first: int) -> list[int]:
        """The sentence ids of a message's tokens, counted from `first`."""
        sentence_ids = [-1] * len(ids)
        content_ids = self._encode(content)
        places = range(len(ids) - len(content_ids) + 1)
        place = next((i for i in places if ids[i : i + len(content_ids)] == content_ids), None)
        if place is None:
            return sentence_ids
        pieces = [tokens for piece in sentences(content) if (tokens := self._encode(piece))]
        if list(chain.from_iterable(pieces)) != content_ids:
            pieces = [content_ids]
        for sentence, tokens in enumerate(pieces, first):
            sentence_ids[place : place + len(tokens)] = [sentence] * len(tokens)
            place += len(tokens)
        return sentence_ids


def sentences(text: str) -> list[str]:
    """The sentences of a text; joined, they are the text."""
    cuts = [match.start() for match in _SENTENCE_BREAK.finditer(text)]
    return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)]) if begin < end]


def _count(messages: Iterable[Message]) -> int:
    """The number of messages that are no system prompts."""
    return sum(message["role"] != "system" for message in messages)


def _leading_system_prompts(messages: Sequence[Message]) -> int:
    return next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))


def shared_length(one: list[int], other: list[int]) -> int:
    """The length of what two lists begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _described(messages: Sequence[Message]) -> str:
    roles = [message["role"] for message in messages]
    return f"{len(roles)} messages ({', '.join(['...'] * (len(roles) > 4) + roles[-4:])})"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
