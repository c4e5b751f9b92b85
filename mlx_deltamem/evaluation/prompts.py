"""The tokens of histories and prompts, made with the chat template."""

from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.evaluation.question import Question, user_message
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS, Segments, part, shared_length

# At least this many tokens of a prompt are run with the question, even if the group shares all of them.
_LEAST_OWN = 2


@dataclass(frozen=True)
class Prompt:
    """A prompt in two parts.

    Attributes:
        shared: The beginning, the same in all prompts of the question's group. It may be empty.
        own: The rest, at least 2 tokens.
    """

    shared: Segments
    own: Segments

    @property
    def length(self) -> int:
        """The number of tokens."""
        return len(self.shared.ids) + len(self.own.ids)


class Prompts:
    """Makes the prompts of questions, with thinking switched off in the chat template.

    Args:
        tokenizer: mlx-lm's tokenizer, with a chat template.
        by_token: Whether the adapter writes single tokens. An adapter that writes the means of messages or sentences
            writes a pass as a whole. Its passes may end only where a message ends.

    Raises:
        ValueError: The tokenizer has no chat template.
    """

    def __init__(self, tokenizer: TokenizerWrapper, by_token: bool):
        self._template = ChatTemplate(tokenizer, enable_thinking=False)
        self._by_token = by_token
        # Of the last group only, because the questions of a group follow each other.
        self._group_text: tuple[str, list[int]] = ("", [])

    def history(self, question: Question) -> Segments:
        """The history of a question with its system prompts, as the memory reads it; empty if there is no history."""
        if len(question.history) == len(question.system):
            return NO_SEGMENTS
        return self._template.whole(question.history)

    def prompt(self, question: Question, with_history: bool, writing: bool, shared: bool = True) -> Prompt:
        """The prompt of a question.

        Args:
            question: The question.
            with_history: Whether the prompt contains the history as text.
            writing: Whether the prompt is written into the memory.
            shared: Whether the question has the history of its group. If not, no part of the prompt is shared.
        """
        whole = self._template.whole(question.messages(with_history), generation_prompt=True)
        cut = self._cut(question, whole, writing) if shared and with_history and question.told else 0
        return Prompt(part(whole, slice(0, cut)), part(whole, slice(cut, None)))

    def _cut(self, question: Question, whole: Segments, writing: bool) -> int:
        """The number of tokens at the beginning of a prompt that do not depend on the question."""
        text = self._text_of_group(question)
        cut = min(shared_length(text, whole.ids), len(whole.ids) - _LEAST_OWN)
        if self._by_token or not writing:
            return cut
        return cut if not question.context and cut == len(text) else 0

    def _text_of_group(self, question: Question) -> list[int]:
        if self._group_text[0] != question.group:
            messages = list(question.history)
            if question.context:
                messages = [*question.system, user_message(question.context)]
            self._group_text = (question.group, self._template.whole(messages).ids)
        return self._group_text[1]
