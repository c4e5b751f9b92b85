"""The tokens of histories and prompts."""

from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.sessions.template import ChatTemplate, Segments, shared_length
from mlx_deltamem.sessions.turn import NO_SEGMENTS, part

# The last tokens of a prompt are run with the question, however much of it its group shares.
_LEAST_OWN = 2


@dataclass(frozen=True)
class Prompt:
    """A prompt in two parts.

    Attributes:
        shared: What it begins with as all prompts of the question's group do; may be empty.
        own: The rest, at least 2 tokens.
    """

    shared: Segments
    own: Segments

    @property
    def length(self) -> int:
        return len(self.shared.ids) + len(self.own.ids)


class Prompts:
    """Makes prompts of questions, thinking off.

    Args:
        tokenizer: mlx-lm's tokenizer, with a chat template.
        by_token: Whether the adapter writes single tokens. One that writes the means of messages or sentences writes
            each pass as a whole, so that a pass may only end where a message does.

    Raises:
        ValueError: The tokenizer has no chat template.
    """

    def __init__(self, tokenizer: TokenizerWrapper, by_token: bool):
        self._template = ChatTemplate(tokenizer, enable_thinking=False)
        self._by_token = by_token
        # Questions of a group follow each other.
        self._group_text: tuple[str, list[int]] = ("", [])

    def history(self, question: Question) -> Segments:
        """A question's history, system prompts and all, as the memory reads it; nothing where nothing was told."""
        if len(question.history) == len(question.system):
            return NO_SEGMENTS
        return self._template.whole(question.history)

    def prompt(self, question: Question, with_history: bool, writing: bool) -> Prompt:
        """A question's prompt.

        Args:
            question: The question.
            with_history: Whether its history is in the text.
            writing: Whether the prompt is written.
        """
        whole = self._template.whole(question.messages(with_history), generation_prompt=True)
        cut = self._cut(question, whole, writing) if with_history and question.told else 0
        return Prompt(part(whole, slice(0, cut)), part(whole, slice(cut, None)))

    def _cut(self, question: Question, whole: Segments, writing: bool) -> int:
        """How many tokens of a prompt with its history do not depend on what is asked."""
        text = self._text_of_group(question)
        cut = min(shared_length(text, whole.ids), len(whole.ids) - _LEAST_OWN)
        if self._by_token or not writing:
            return cut
        return cut if not question.context and cut == len(text) else 0

    def _text_of_group(self, question: Question) -> list[int]:
        if self._group_text[0] != question.group:
            messages = question.history
            if question.context:
                messages = [*question.system, {"role": "user", "content": question.context}]
            self._group_text = (question.group, self._template.whole(messages).ids)
        return self._group_text[1]
