"""The text that a chat template writes for each message of a chat, and between messages.

A template writes a whole chat at once. To find the text of one message, the chat is rendered with a mark (a character
that occurs nowhere else) in the place of the message's content, or after it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import cast

from jinja2 import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.template.guarded import guarded_template
from mlx_deltamem.sessions.template.limits import TemplateLimitError, limited
from mlx_deltamem.sessions.template.options import check_names
from mlx_deltamem.sessions.text.messages import Message, is_utf8, quoted

_PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
_A_TURN: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]


def has_template(tokenizer: TokenizerWrapper) -> bool:
    """Whether a tokenizer has a chat template."""
    # mlx-lm looks for one when it makes the wrapper. It does not notice one that is set later.
    return bool(tokenizer.has_chat_template or tokenizer.chat_template)


class TemplateText:
    """A tokenizer's chat template as a writer of text.

    Args:
        tokenizer: mlx-lm's tokenizer.
        options: Further arguments of its `apply_chat_template`.

    Raises:
        ValueError: As `ChatTemplate` says.
    """

    def __init__(self, tokenizer: TokenizerWrapper, options: Mapping[str, object]):
        if not has_template(tokenizer):
            raise ValueError("the tokenizer has no chat template; expected a chat model's: set tokenizer.chat_template")
        check_names(options)
        self._tokenizer = tokenizer
        self._options = options

    def added(self, messages: Sequence[Message], start: int, generation_prompt: bool) -> str:
        """The text that `messages[start:]`, and the generation prompt, add to the chat before them."""
        return self._added(messages, start, generation_prompt, one_block=False)

    def head(self, text: str, messages: Sequence[Message], first: int, generation_prompt: bool) -> int:
        """The length of the text before `messages[first]`, the first message that is not a system prompt."""
        # In the middle of a chat, the same messages come without a BOS token, a date or a default system prompt.
        in_the_middle = [*messages[:first], *_A_TURN, *messages[first:]]
        added = self.added(in_the_middle, first + len(_A_TURN), generation_prompt)
        if text.endswith(added):
            return len(text) - len(added)
        # The template writes a first message in another way, for example with the system prompt merged into it.
        return len(text) - len(self._after(messages, first - 1, generation_prompt)) if first else 0

    def end_in(self, text: str, messages: Sequence[Message], index: int, generation_prompt: bool) -> int:
        """The place where message `index` ends in a text that ends as the chat does.

        Some templates put tool messages into one block. Between two such messages, it is the place where the block
        goes on instead of ending.
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

    def calls(self, messages: Sequence[Message]) -> str:
        """The text of the tool calls of the last message, a reply, which follows its content.

        Raises:
            ValueError: As `ChatTemplate` says; or the template writes the calls in another place.
        """
        *before, reply = messages
        plain: Message = {"role": "assistant", "content": reply["content"]}
        after, end = (self._after([*before, each, _A_TURN[0]], len(before), False) for each in (reply, plain))
        if not after.endswith(end):
            raise ValueError(
                f"the chat template writes {quoted(after)} after a reply with tool calls, and {quoted(end)} after one "
                "without; expected that the first ends with the second: give the tokenizer another chat template"
            )
        # The content is never empty here, because the mark stands for it.
        text = after.removesuffix(end)
        return text if reply["content"] else text.lstrip("\n")

    def _added(self, messages: Sequence[Message], start: int, generation_prompt: bool, one_block: bool) -> str:
        if start == 0:
            return self._rendered(messages, generation_prompt)
        after = self._after(messages, start - 1, generation_prompt)
        return after[len(self._end(messages[:start], after, one_block)) :]

    def _end(self, messages: Sequence[Message], after: str, one_block: bool) -> str:
        """The text that ends the last message.

        Args:
            messages: The messages up to it.
            after: All text after its content, as the chat goes on.
            one_block: Whether the next message may be in the same block, so that only a part of the end is written.
        """
        end = self._after(messages, len(messages) - 1, False)
        # Some templates close a chat that asks for no reply with an EOS token, which does not belong to the message.
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
        # The mark is one character, so that templates cannot trim it, and it cannot arise where a message's text meets
        # the template's.
        known = json.dumps([messages, self._options], ensure_ascii=False, default=str, skipkeys=True)
        mark = next(mark for mark in map(chr, _PRIVATE_USE) if mark not in known)
        # The mark replaces a reply, because templates rewrite replies. It follows other content, because some templates
        # look for switches in that.
        content = mark if messages[index]["role"] == "assistant" else messages[index]["content"] + mark
        marked: list[Message] = [*messages]
        marked[index] = {**messages[index], "content": content}
        text = self._rendered(marked, generation_prompt)
        if text.count(mark) != 1:
            raise ValueError(
                f"the chat template writes the content of message {index} ({messages[index]['role']}) "
                f"{text.count(mark)} times; expected once: give the tokenizer another chat template"
            )
        return text.partition(mark)[2]

    def _rendered(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        text = rendered(self._tokenizer, messages, generation_prompt, self._options)
        if is_utf8(text):
            return text
        broken = (i for i, message in enumerate(messages) if not is_utf8(message["content"]))
        place = next((f"message {i} ({messages[i]['role']})" for i in broken), "what the chat template adds")
        raise ValueError(f"{place} is not UTF-8; expected text: replace the lone surrogates in it")


def rendered(
    tokenizer: TokenizerWrapper, messages: Sequence[Message], generation_prompt: bool, options: Mapping[str, object]
) -> str:
    """The text that a tokenizer's chat template writes for a chat.

    Args:
        tokenizer: mlx-lm's tokenizer.
        messages: The chat.
        generation_prompt: Whether the text that asks for a reply follows.
        options: Further arguments of `apply_chat_template`.

    Raises:
        ValueError: The template refuses the messages or fails, or takes too long, or writes too much.
    """
    try:
        # mlx-lm's own renderers, and those that come with a model, are not templates and have no limits.
        template = guarded_template(tokenizer, options.get("chat_template"), options.get("tools"))
        further = dict(options) if template is None else {**options, "chat_template": template}
        render = cast(Callable[..., str], tokenizer.apply_chat_template)
        with limited([messages, options.get("tools")]) as checked:
            return checked(render(messages, tokenize=False, add_generation_prompt=generation_prompt, **further))
    except TemplateLimitError as error:
        raise ValueError(
            f"the chat template was ended at {described(messages)}: {error}; give the tokenizer another chat template"
        ) from None
    # A template is a program that came with the model: it may raise any exception.
    except Exception as error:
        raise ValueError(
            f"the chat template refuses {described(messages)} ({_reason(error)}); expected a chat it can write: "
            "change the messages or the template options, or give the tokenizer another chat template"
        ) from None


def described(messages: Sequence[Message]) -> str:
    """The number of messages and the roles of the last ones, for an error message."""
    roles = [message["role"] for message in messages]
    counted = "1 message" if len(roles) == 1 else f"{len(roles)} messages"
    return f"{counted} ({', '.join(['...'] * (len(roles) > 4) + roles[-4:])})"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else text[:200] + "..."
    # The text of a TemplateError comes from the template itself: it needs no type in front of it.
    return text if type(error) is TemplateError else f"{type(error).__name__}: {text}".removesuffix(": ")
