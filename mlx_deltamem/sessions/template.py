"""Which message and which sentence each token of a chat belongs to: for a chat as a whole, and turn by turn.

Turn by turn, a reply is never tokenised: its tokens stay as they were generated, and only the text that the chat
template puts around it is.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.messages import Message
from mlx_deltamem.sessions.template_text import TemplateText, described

# A sentence is cut off before what this matches: closing quotes and white space begin the next one.
_SENTENCE_BREAK = re.compile(r"""\n{2,}|(?<=[.!?;:])["')\]”’]*\s+""")


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

    A reply that was generated is given as its own text, the text of its tool calls too, without `tool_calls`: a
    template would write those in its own way.

    Args:
        tokenizer: mlx-lm's tokenizer.
        options: More for its `apply_chat_template`, such as `enable_thinking=False` or `tools=[...]`.

    Raises:
        ValueError: The tokenizer has no chat template, or an option is one that the chat sets itself. In every method:
            the template refuses the messages or fails, drops or repeats the content of one, takes back what it wrote
            at the end of one once another one follows, or the text is not UTF-8.
    """

    def __init__(self, tokenizer: TokenizerWrapper, **options: object):
        self._tokenizer = tokenizer
        self._text = TemplateText(tokenizer, options)

    def whole(self, messages: Sequence[Message], generation_prompt: bool = False) -> Segments:
        """All tokens of a chat, tokenised as one text.

        A token across the border of two messages belongs to the later one.

        Args:
            messages: The chat.
            generation_prompt: Whether the tokens that ask for a reply follow.
        """
        return self._segments(messages, 0, generation_prompt, 0)

    def ids(self, messages: Sequence[Message], generation_prompt: bool = False) -> list[int]:
        """The tokens of `whole` alone, which are found sooner."""
        return self._encode(self._text.added(messages, 0, generation_prompt))

    def opening(self, messages: Sequence[Message], first_sentence: int = 0, new: int = 1) -> Segments:
        """The tokens that new messages and the generation prompt add to a chat.

        Args:
            messages: All messages. The model has read those before the new ones, a reply with its `ending`; but where
                these are system prompts only, it has read nothing: the tokens are those of the whole chat then.
            first_sentence: The id of the new messages' first sentence: the number of sentences so far.
            new: How many of the messages, at the end, are new. None of them is a reply.
        """
        start = len(messages) - new
        if new < 1 or start < 0 or any(message["role"] == "assistant" for message in messages[start:]):
            wanted = "a new message" if new == 1 else f"{new} new messages"
            raise ValueError(f"opening got {described(messages)}; expected {wanted} at the end")
        if not _count(messages[:start]):
            start = 0
        return self._segments(messages, start, True, first_sentence)

    def ending(self, messages: Sequence[Message]) -> Segments:
        """The tokens that the template writes after a reply to end it; there may be none.

        Args:
            messages: All messages, the reply last.
        """
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f"ending got {described(messages)}; expected a reply at the end")
        ids = self._encode(self._text.ending(messages))
        return Segments(ids, [_count(messages) - 1] * len(ids), [-1] * len(ids))

    def _segments(self, messages: Sequence[Message], start: int, generation_prompt: bool, sentence: int) -> Segments:
        """The segments of what `messages[start:]`, and the generation prompt, add to the chat before them."""
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


def token_roles(segments: Segments, messages: Sequence[Message], first_message: int) -> list[str]:
    """The role of each token of an opening.

    Args:
        segments: The opening.
        messages: Its messages; system prompts may be among them.
        first_message: The message id of the first of them that is no system prompt.

    Returns:
        For tokens of a message, its role. For others, which have no message id: `system` before the last message,
        `assistant` (the generation prompt) after it. So system prompts at the very end, which cannot be told from the
        generation prompt, count as a part of it.

    Raises:
        ValueError: A token is of a message that is not among them.
    """
    roles = [message["role"] for message in messages if message["role"] != "system"]
    with_message = [place for place, index in enumerate(segments.message_ids) if index >= 0]
    found = []
    for place, index in enumerate(segments.message_ids):
        if index < 0:
            found.append("assistant" if with_message and place > with_message[-1] else "system")
        elif 0 <= index - first_message < len(roles):
            found.append(roles[index - first_message])
        else:
            raise ValueError(
                f"a token is of message {index}; expected one of the {len(roles)} messages from {first_message} on: "
                "give the messages of the opening"
            )
    return found


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
