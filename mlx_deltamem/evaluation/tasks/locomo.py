"""The task `locomo`, LoCoMo: questions about conversations over months (facts 4.1).

Data: https://github.com/snap-research/locomo.
"""

import hashlib
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import ClassVar

from mlx_deltamem.evaluation.baselines.turns import parts_of
from mlx_deltamem.evaluation.question import Question, user_message
from mlx_deltamem.evaluation.task import Backbone, Sampling, Task
from mlx_deltamem.evaluation.tasks.answers import first_line, locomo_tokens, porter_stem, token_f1
from mlx_deltamem.evaluation.tasks.fitting import longest_prompt, prompt_tokens, text_tokens
from mlx_deltamem.evaluation.tasks.left_out import LeftOut
from mlx_deltamem.evaluation.tasks.locomo_data import (
    CATEGORIES,
    EXPECTED,
    Conversation,
    DialogQuestion,
    DialogSession,
    DialogTurn,
    downloaded,
    load_conversations,
    open_domain_answer,
)
from mlx_deltamem.evaluation.tasks.locomo_keys import is_audited, is_wrong
from mlx_deltamem.options.option import option
from mlx_deltamem.sessions.text.messages import Message

_NO_INFORMATION = "No information available"
_MAX_TOKENS = 50

# The wording of the benchmark, with its misspelling: scores are comparable only with the same prompts.
_SYSTEM = (
    "You are a helpful, respectful and honest assistant whose job is to understand the following conversation and "
    "answer questions based on the conversation. If you don't know the answer to a question, please don't share false "
    "information."
)
_INTRODUCTION = (
    "Below is a conversation between two people: {} and {}. The conversation takes place over multiple days and the "
    "date of each conversation is wriiten at the beginning of the conversation.\n\n"
)
_INSTRUCTION = (
    "Based on the above conversations, write a short answer for the following question in a few words. Do not write "
    "complete and lengthy sentences. Answer with exact words from the conversations whenever possible.\n\nQuestion: {}"
)
_TEMPORAL = " Use DATE of CONVERSATION to answer with an approximate date."
_LETTERS = re.compile(r"\([ab]\)|(?<!\w)[ab]\)|answer:")
# The label that tells whether a public audit found the answer in the file wrong.
_KEY, _WRONG, _SOUND = "answer key", "wrong", "sound"
_CHOICE = " (a) {} (b) {}. Select the correct answer by writing (a) or (b)."


@dataclass(frozen=True)
class Locomo(Task):
    """Questions about ten long conversations, with answers of a few words."""

    name: ClassVar[str] = "locomo"
    title: ClassVar[str] = "LoCoMo"
    source: ClassVar[str] = "locomo10.json of snap-research/locomo (CC BY-NC 4.0), downloaded if --data names no file"
    outside_mean: ClassVar[tuple[str, ...]] = ("adversarial",)
    breakdowns: ClassVar[tuple[str, ...]] = (_KEY,)
    curves: ClassVar[tuple[str, ...]] = ("distance_sessions",)

    mode: str = option(
        "official",
        "The form of a history in the text: in the user's message, newest session first, as in the published runs "
        "(official), or as messages, oldest first (replay).",
        ("official", "replay"),
    )
    message: str = option(
        "session", "The part of a conversation that is one message of a history.", ("session", "turn")
    )
    categories: tuple[str, ...] = option(
        tuple(CATEGORIES.values()), "The kinds of questions to ask.", tuple(CATEGORIES.values())
    )

    @property
    def sampling(self) -> Sampling:
        return Sampling(temp=0.4, top_p=0.9, top_k=10)

    @property
    def differences(self) -> tuple[str, ...]:
        always = (
            "Published means are over categories 1 to 4, without the adversarial questions. So are ours.",
            "Published runs have one seed (42) and PyTorch's random numbers. mlx-lm cuts to top-p before it applies "
            "the temperature, the reference after it.",
            "No script of the published runs without the text is public. Ours asks with the same prompt without the "
            "conversation, and the memory reads the sessions as messages, oldest first.",
            "If the data are the file that a public audit examined (https://github.com/dial481/locomo-audit), the "
            "scores of answer key sound leave out the 99 questions that it found wrong. Published means are over all "
            "questions, and so is ours.",
            "If a conversation is longer than the model's window, the newest sessions are left out, as in the "
            "reference. Ours counts the headers of sessions too, and leaves out the same sessions for all questions.",
            "The letter of a choice counts only if it stands alone in the reply. The reference also takes the last two "
            'characters of "(Natarajasana)".',
        )
        return always if self.mode == "official" else (*always, "Published runs have the text in the user's message.")

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        """See `Task`.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is damaged or cannot be downloaded, or NLTK is not installed.
        """
        # Checked before the run, not only when the first reply is scored.
        porter_stem()
        path = self.data or downloaded()
        left_out = LeftOut(str(path), EXPECTED)
        conversations = load_conversations(path, left_out)
        yield from left_out.told(self._questions(conversations, backbone, is_audited(path)))

    def _questions(self, conversations: list[Conversation], backbone: Backbone, audited: bool) -> Iterator[Question]:
        for conversation in conversations:
            # A question without a readable category keeps its place, as one of these.
            categories = (*self.categories, "")
            in_order = enumerate(each for each in conversation.questions if each.category in categories)
            asked = [(index, each) for index, each in in_order if each.usable]
            if not asked:
                continue
            history = tuple(history_messages(conversation, self.message))
            prompts = [_INSTRUCTION.format(_wording(self.seed, conversation.id, *each)) for each in asked]
            shown = official_sessions(conversation, prompts, backbone) if self.mode == "official" else []
            context = official_context(conversation, shown) if self.mode == "official" else ""
            preface = len(_INTRODUCTION.format(*conversation.speakers)) if context else 0
            turns = _context_turns(shown) if context else _history_turns(conversation, self.message)
            known = {turn.id for session in conversation.sessions for turn in session.turns}
            for (index, each), prompt in zip(asked, prompts, strict=True):
                yield Question(
                    id=f"{conversation.id}/{each.place}",
                    group=conversation.id,
                    history=history,
                    question=prompt,
                    golds=_golds(self.seed, conversation.id, index, each),
                    category=each.category,
                    max_tokens=_MAX_TOKENS,
                    context=context,
                    preface=preface,
                    question_with_context="\n\n" + prompt if context else "",
                    query=each.text,
                    labels=_labels(conversation, each) | (_audit(conversation, each) if audited else {}),
                    index=index,
                    age_order=_oldest_first(shown),
                    evidence=tuple(sorted({turns[name] for name in each.evidence if name in turns})),
                    evidence_cut=len([name for name in each.evidence if name in known and name not in turns]),
                )

    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        """The F1 of stems. For an adversarial question, 1 if the reply says that there is no information."""
        line = first_line(reply).lower()
        if question.category == "adversarial":
            return {"f1": float(_finds_nothing(line, question.golds))}
        line, gold = _LETTERS.sub("", line), question.golds[0]
        return {"f1": _best_parts_f1(line, gold) if question.category == "multi_hop" else _f1(line, gold)}


def history_messages(conversation: Conversation, unit: str) -> Iterator[Message]:
    """A conversation as messages after the system prompt, oldest first. Each message has the date of its session.

    Args:
        conversation: The conversation.
        unit: The part of the conversation in one message: "session" or "turn".
    """
    yield {"role": "system", "content": _SYSTEM}
    for session in conversation.sessions:
        for turns in [session.turns] if unit == "session" else [(turn,) for turn in session.turns]:
            text = "".join(map(_turn_text, turns)).rstrip()
            yield user_message(f"DATE: {session.date}\nCONVERSATION:\n{text}")


def official_context(conversation: Conversation, shown: Sequence[DialogSession]) -> str:
    """The text at the beginning of the official prompt: an introduction, and sessions in the given order."""
    return _INTRODUCTION.format(*conversation.speakers) + "".join(map(_session_text, shown))


def official_sessions(conversation: Conversation, prompts: list[str], backbone: Backbone) -> list[DialogSession]:
    """The sessions of a conversation that the official prompt has, newest first.

    If the conversation is too long for the window, the newest sessions are left out. A session that fits in part keeps
    its last turns.

    Args:
        conversation: The conversation.
        prompts: The questions that follow the text. There is room for the longest.
        backbone: The window and the tokenizer.

    Raises:
        ValueError: There is no room for a history.
    """
    introduction = _INTRODUCTION.format(*conversation.speakers)
    last = "\n\n" + max(prompts, key=lambda prompt: text_tokens(backbone, prompt))

    def prompt(text: str) -> list[Message]:
        return [{"role": "system", "content": _SYSTEM}, user_message(introduction + text + last)]

    longest = longest_prompt(backbone, prompt(""), _MAX_TOKENS)
    if longest is None:
        return _newest_first(conversation, backbone, math.inf)
    budget = longest - prompt_tokens(backbone, prompt(""))
    while True:
        shown = _newest_first(conversation, backbone, budget)
        # The parts of a text may have fewer tokens than the whole.
        excess = prompt_tokens(backbone, prompt("".join(map(_session_text, shown)))) - longest
        if excess <= 0:
            return shown
        budget -= excess


def _newest_first(conversation: Conversation, backbone: Backbone, budget: float) -> list[DialogSession]:
    """The oldest sessions that fit into `budget` tokens, and the last turns of the next one; newest first."""
    shown: list[DialogSession] = []
    for session in conversation.sessions:
        budget -= text_tokens(backbone, _header(session))
        for fitting, turn in enumerate(reversed(session.turns)):
            budget -= text_tokens(backbone, _turn_text(turn))
            if budget < 0:
                cut = [replace(session, turns=session.turns[-fitting:])] if fitting else []
                return cut + shown
        shown.insert(0, session)
    return shown


def _header(session: DialogSession) -> str:
    return f"\nDATE: {session.date}\nCONVERSATION:\n"


def _session_text(session: DialogSession) -> str:
    return _header(session) + "".join(map(_turn_text, session.turns))


def _context_turns(shown: Sequence[DialogSession]) -> dict[str, int]:
    """By the name of a turn, the part of the official text between blank lines that has it."""
    text, starts = "", {}
    for session in shown:
        text += _header(session)
        for turn in session.turns:
            starts[turn.id] = len(text)
            text += _turn_text(turn)
    ends = list(accumulate(map(len, parts_of(text))))
    return {name: bisect_right(ends, start) for name, start in starts.items() if name}


def _oldest_first(shown: Sequence[DialogSession]) -> tuple[int, ...]:
    """The parts of the official text between blank lines, from the oldest to the newest; `shown` is newest first."""
    ends = accumulate((len(parts_of(_session_text(session))) for session in shown), initial=0)
    return tuple(chain(*(range(*each) for each in reversed([*pairwise(ends)]))))


def _history_turns(conversation: Conversation, unit: str) -> dict[str, int]:
    """By the name of a turn, the message of `history_messages` that has it, counted after the system prompt."""
    units = (
        [session.turns] if unit == "session" else [(turn,) for turn in session.turns]
        for session in conversation.sessions
    )
    return {turn.id: number for number, turns in enumerate(chain(*units)) for turn in turns if turn.id}


def _turn_text(turn: DialogTurn) -> str:
    shared = f" and shared {turn.caption}." if turn.caption else ""
    return f'{turn.speaker} said, "{turn.text}"\n{shared}\n'


def _no_information_first(seed: int, conversation: str, index: int) -> bool:
    """Whether (a) is the right choice of an adversarial question, by the hash of the reference."""
    digest = hashlib.sha256(f"{seed}|{conversation}|{index}|cat5".encode()).digest()
    return int.from_bytes(digest[:8]) % 2 == 0


def _wording(seed: int, conversation: str, index: int, asked: DialogQuestion) -> str:
    if asked.category == "temporal":
        return asked.text + _TEMPORAL
    if asked.category == "adversarial":
        choices = (_NO_INFORMATION, asked.answer)
        if not _no_information_first(seed, conversation, index):
            choices = choices[::-1]
        return asked.text + _CHOICE.format(*choices)
    return asked.text


def _golds(seed: int, conversation: str, index: int, asked: DialogQuestion) -> tuple[str, ...]:
    if asked.category == "adversarial":
        return _NO_INFORMATION, "(a)" if _no_information_first(seed, conversation, index) else "(b)"
    return (open_domain_answer(asked.answer) if asked.category == "open_domain" else asked.answer,)


def _labels(conversation: Conversation, asked: DialogQuestion) -> dict[str, float | str]:
    """The distance of the answer: the number of sessions after the oldest session that contains it."""
    last = conversation.sessions[-1].number
    return {"distance_sessions": float(last - asked.sessions[0])} if asked.sessions else {}


def _audit(conversation: Conversation, asked: DialogQuestion) -> dict[str, float | str]:
    """The label for the answer by the audit. Adversarial questions were not audited and get none."""
    if asked.category == "adversarial":
        return {}
    return {_KEY: _WRONG if is_wrong(conversation.id, asked.place) else _SOUND}


def _finds_nothing(line: str, golds: tuple[str, ...]) -> bool:
    for letter in "ab":
        if f"({letter})" in line or line == letter or line.startswith(f"{letter})"):
            return f"({letter})" in golds
    return _NO_INFORMATION.lower() in line or "not mentioned" in line


def _f1(predicted: str, gold: str) -> float:
    return token_f1(locomo_tokens(predicted), locomo_tokens(gold))


def _best_parts_f1(predicted: str, gold: str) -> float:
    """The F1 of an answer whose parts are separated by commas.

    For each part of the answer the best part of the reply counts. The result is the mean over the parts of the answer.
    """
    guesses, parts = _parts(predicted), _parts(gold)
    if not guesses or not parts:
        return 0.0
    return sum(max(_f1(guess, part) for guess in guesses) for part in parts) / len(parts)


def _parts(text: str) -> list[str]:
    return [part for part in text.split(",") if part.strip()]
