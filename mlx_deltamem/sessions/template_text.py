"""The text that a chat template writes for each message of a chat, and for what comes between them.

To find it, the chat is rendered with a mark in a message's place, or after it.
"""

import json
from collections.abc import Sequence
from itertools import takewhile

from jinja2 import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.messages import Message, is_utf8, quoted

_PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
_A_TURN: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
# What apply_chat_template is given here, and what would have it return something else than the text of the chat.
_OURS = (
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
)


class TemplateText:
    """A tokenizer's chat template as a writer of text.

    Args:
        tokenizer: mlx-lm's tokenizer.
        options: More for its `apply_chat_template`.

    Raises:
        ValueError: The tokenizer has no chat template, or an option is not the caller's to choose. In every method:
            the template refuses the messages or fails, drops or repeats the content of one, takes back what it wrote
            at the end of one once another one follows, or the text is not UTF-8.
    """

    def __init__(self, tokenizer: TokenizerWrapper, options: dict[str, object]):
        # mlx-lm does not notice a template that was set later.
        if not (tokenizer.has_chat_template or tokenizer.chat_template):
            raise ValueError("the tokenizer has no chat template; expected a chat model's: set tokenizer.chat_template")
        if clash := [name for name in _OURS if name in options]:
            raise ValueError(
                f"the template options name {', '.join(clash)}; expected options that the chat does not set itself, "
                "such as enable_thinking: leave them out"
            )
        self._tokenizer = tokenizer
        self._options = options

    def added(self, messages: Sequence[Message], start: int, generation_prompt: bool) -> str:
        """The text that `messages[start:]`, and the generation prompt, add to the chat before them."""
        return self._added(messages, start, generation_prompt, one_block=False)

    def head(self, text: str, messages: Sequence[Message], first: int, generation_prompt: bool) -> int:
        """The length of what a chat begins with before `messages[first]`, the first one that is no system prompt."""
        # In the middle of a chat, the same messages come without a BOS token, a date or a default system prompt.
        in_the_middle = [*messages[:first], *_A_TURN, *messages[first:]]
        added = self.added(in_the_middle, first + len(_A_TURN), generation_prompt)
        if text.endswith(added):
            return len(text) - len(added)
        # A first message is written in a way of its own: with the system prompt merged into it, for one.
        return len(text) - len(self._after(messages, first - 1, generation_prompt)) if first else 0

    def end_in(self, text: str, messages: Sequence[Message], index: int, generation_prompt: bool) -> int:
        """Where message `index` ends in a text that ends as the chat does.

        Between two tool messages, which some templates put into one block, it is where the block goes on instead of
        ending.
        """
        both = messages[index : index + 2]
        one_block = len(both) == 2 and all(message["role"] == "tool" for message in both)
        rest = self._added(messages, index + 1, generation_prompt, one_block)
        if not text.endswith(rest):
            raise ValueError(
                f"the chat template lets the content of message {index} decide what it writes later; expected that it "
                "does not: change the message, or give the tokenizer another chat template"
            )
        return len(text) - len(rest)

    def ending(self, messages: Sequence[Message]) -> str:
        """The text after the content of the last message that ends it, whatever follows."""
        return self._end(messages, self._after([*messages, _A_TURN[0]], len(messages) - 1, False), one_block=False)

    def _added(self, messages: Sequence[Message], start: int, generation_prompt: bool, one_block: bool) -> str:
        if start == 0:
            return self._rendered(messages, generation_prompt)
        after = self._after(messages, start - 1, generation_prompt)
        return after[len(self._end(messages[:start], after, one_block)) :]

    def _end(self, messages: Sequence[Message], after: str, one_block: bool) -> str:
        """The text that ends the last message.

        Args:
            messages: Those up to it.
            after: All that follows its content as the chat goes on.
            one_block: Whether the next message may be written into its block, so that only a part of the end is there.
        """
        end = self._after(messages, len(messages) - 1, False)
        # Some templates close a chat that asks for no reply with an EOS token: that is no part of the last message.
        for candidate in (end, end.removesuffix(self._tokenizer.eos_token or "")):
            if after.startswith(candidate):
                return candidate
        if one_block:
            shared = takewhile(lambda pair: pair[0] == pair[1], zip(end, after, strict=False))
            return "".join(character for character, _ in shared)
        raise ValueError(
            f"the chat template ends message {len(messages) - 1} with {quoted(end)}, but goes on with "
            f"{quoted(after)}; expected one to begin with the other: give the tokenizer another chat template"
        )

    def _after(self, messages: Sequence[Message], index: int, generation_prompt: bool) -> str:
        """The text after the content of message `index`."""
        # A single character that is nowhere else is not trimmed, and cannot arise where a message meets the template.
        known = json.dumps([messages, self._options], ensure_ascii=False, default=str, skipkeys=True)
        mark = next(mark for mark in map(chr, _PRIVATE_USE) if mark not in known)
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
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt, **self._options
            )
        # A template is a program that came with the model: it may fail with any exception.
        except Exception as error:
            raise ValueError(
                f"the chat template refuses {described(messages)} ({_reason(error)}); expected a chat it can write: "
                "change the messages or the template options, or give the tokenizer another chat template"
            ) from None
        if is_utf8(text):
            return text
        broken = (i for i, message in enumerate(messages) if not is_utf8(message["content"]))
        place = next((f"message {i} ({messages[i]['role']})" for i in broken), "what the chat template adds")
        raise ValueError(f"{place} is not UTF-8; expected text: replace the lone surrogates in it")


def described(messages: Sequence[Message]) -> str:
    """The number of messages, and the roles of the last ones, as an error message shows them."""
    roles = [message["role"] for message in messages]
    return f"{len(roles)} messages ({', '.join(['...'] * (len(roles) > 4) + roles[-4:])})"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else text[:200] + "..."
    # What a template itself raises is worded for its users.
    return text if type(error) is TemplateError else f"{type(error).__name__}: {text}".removesuffix(": ")
