"""The data of LoCoMo (facts 4.1): conversations of two people over months, in dated sessions, and questions."""

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from mlx_deltamem.evaluation.tasks.left_out import LeftOut
from mlx_deltamem.evaluation.tasks.rows import parse_json
from mlx_deltamem.files.atomic import new_file
from mlx_deltamem.files.fields import (
    Row,
    as_answer,
    as_text,
    as_whole_number,
    given_fields,
    given_items,
    shown,
    text_field,
)
from mlx_deltamem.files.jsonl import Json, read_json

# The licence is CC BY-NC 4.0: users download the file themselves, and it is not part of this project.
URL = "https://raw.githubusercontent.com/snap-research/locomo/main/data/locomo10.json"

CATEGORIES = {1: "multi_hop", 2: "temporal", 3: "open_domain", 4: "single_hop", 5: "adversarial"}

EXPECTED = "LoCoMo's locomo10.json"
_SESSION = re.compile(r"session_([0-9]{1,6})")
# Some lists have several of them in one text, and one has a zero before a number.
_DIALOG = re.compile(r"D([0-9]{1,6}):([0-9]{1,6})")
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class DialogTurn:
    """A turn of a conversation.

    Attributes:
        speaker: The name of the speaker.
        text: The words of the speaker.
        caption: The caption of the picture that the speaker shared; "" if there is none.
        id: The name of the turn, for example "D1:3"; "" if it has none.
    """

    speaker: str
    text: str
    caption: str
    id: str = ""


@dataclass(frozen=True)
class DialogSession:
    """The part of a conversation on one day.

    Attributes:
        number: The place in the conversation, counted from 1.
        date: The date as LoCoMo writes it, for example "1:56 pm on 8 May, 2023".
        turns: The turns, in order.
    """

    number: int
    date: str
    turns: tuple[DialogTurn, ...]


@dataclass(frozen=True)
class DialogQuestion:
    """A question of the file.

    Attributes:
        place: The place among all questions about the conversation, counted from 0.
        text: The question.
        category: The name of the category.
        answer: The answer. For an adversarial question it is the wrong answer that the question offers.
        sessions: The numbers of the sessions that contain the answer, ascending; empty if the file does not say.
        evidence: The names of the turns that contain the answer, as the file says. Some are wrong or name no turn.
        usable: False for a question that is not asked. It only keeps the places of the others; its category is "" if
            that is unknown.
    """

    place: int
    text: str
    category: str
    answer: str
    sessions: tuple[int, ...]
    evidence: tuple[str, ...] = ()
    usable: bool = True


@dataclass(frozen=True)
class Conversation:
    """A conversation.

    Attributes:
        id: The name in the file, for example "conv-26".
        speakers: The names of both speakers.
        sessions: The sessions, oldest first.
        questions: The questions about the conversation.
    """

    id: str
    speakers: tuple[str, str]
    sessions: tuple[DialogSession, ...]
    questions: tuple[DialogQuestion, ...]


def load_conversations(path: Path, left_out: LeftOut) -> list[Conversation]:
    """The conversations of a file.

    Args:
        path: The file.
        left_out: Counts the conversations, sessions, turns and questions that cannot be used.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a list of conversations.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected {EXPECTED}, from {URL}")
    samples = read_json(path)
    if not isinstance(samples, list) or not samples:
        raise ValueError(f"{path} is not a list of conversations; expected {EXPECTED}")
    found: dict[str, Conversation] = {}
    for number, sample in enumerate(samples, 1):
        place = f"conversation {number}"
        try:
            conversation = _conversation(place, given_fields(sample), left_out)
            if conversation.id in found:
                raise ValueError(f"its name {shown(conversation.id)} is that of an earlier one")
        except (KeyError, ValueError) as error:
            left_out.add(f"{place} is damaged ({_problem(error)})")
        else:
            found[conversation.id] = conversation
    return list(found.values())


def downloaded() -> Path:
    """The file of LoCoMo, downloaded once from its public source into the folder of the Hugging Face caches.

    Raises:
        ValueError: The file cannot be downloaded.
    """
    from huggingface_hub import constants

    path = Path(constants.HF_HOME) / "mlx_deltamem" / "locomo10.json"
    if not path.exists():
        try:
            with urllib.request.urlopen(URL, timeout=_TIMEOUT_SECONDS) as answer:
                content = answer.read()
        except (OSError, HTTPException) as error:
            raise ValueError(
                f"cannot download {URL} ({error}); download it in another way, and name it with --data locomo=PATH"
            ) from None
        parse_json(URL, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            temporary.write_bytes(content)
    return path


def _problem(error: KeyError | ValueError) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _conversation(place: str, sample: Row, left_out: LeftOut) -> Conversation:
    content = given_fields(sample["conversation"])
    speakers = text_field(content, "speaker_a"), text_field(content, "speaker_b")
    name = text_field(sample, "sample_id")
    sessions = tuple(session for session in _sessions(place, content, left_out) if session.turns)
    if not sessions:
        raise ValueError("it has no turns")
    if not isinstance(asked := sample["qa"], list):
        raise ValueError("'qa' is not a list")
    questions = tuple(_question(place, number, each, left_out) for number, each in enumerate(asked))
    return Conversation(name, speakers, sessions, questions)


def _sessions(place: str, content: Row, left_out: LeftOut) -> Iterator[DialogSession]:
    # The file also has dates of sessions that do not exist.
    for number, name in sorted((int(match[1]), name) for name in content if (match := _SESSION.fullmatch(name))):
        within = f"{place}, {name},"
        try:
            items = given_items(content[name])
            if items:
                date = text_field(content, f"{name}_date_time")
                yield DialogSession(number, date, tuple(_turns(within, items, left_out)))
        except (KeyError, ValueError) as error:
            left_out.add(f"{within} is damaged ({_problem(error)})")


def _turns(place: str, items: list[Json], left_out: LeftOut) -> Iterator[DialogTurn]:
    for number, item in enumerate(items, 1):
        try:
            turn = given_fields(item)
            caption = as_text(turn.get("blip_caption", ""), "'blip_caption'")
            name = turn.get("dia_id")
            spoken = text_field(turn, "speaker"), text_field(turn, "text")
            yield DialogTurn(*spoken, caption, name if isinstance(name, str) else "")
        except (KeyError, ValueError) as error:
            left_out.add(f"{place} turn {number}, is damaged ({_problem(error)})")


def _question(conversation: str, place: int, found: Json, left_out: LeftOut) -> DialogQuestion:
    category = ""
    try:
        question = given_fields(found)
        number = as_whole_number(question["category"])
        if number is None or number not in CATEGORIES:
            raise ValueError(f"category {shown(question['category'])}, expected 1 to 5")
        category = CATEGORIES[number]
        text = text_field(question, "question")
        if not text.strip():
            raise ValueError("'question' is blank")
        answer = _answer(question, category)
        evidence = [as_text(each, "'evidence'") for each in given_items(question.get("evidence", []))]
    except (KeyError, ValueError) as error:
        left_out.add(f"{conversation}, question {place + 1}, is damaged ({_problem(error)})")
        return DialogQuestion(place, "", category, "", (), usable=False)
    places = [(int(session), int(turn)) for session, turn in _DIALOG.findall(" ".join(evidence))]
    sessions = tuple(sorted({session for session, _ in places}))
    turns = tuple(dict.fromkeys(f"D{session}:{turn}" for session, turn in places))
    return DialogQuestion(place, text, category, answer, sessions, turns)


def _answer(question: Row, category: str) -> str:
    # Two adversarial questions also have a right answer, which the reference offers as the wrong one.
    name = "adversarial_answer" if category == "adversarial" and "answer" not in question else "answer"
    answer = as_answer(question[name], f"{name!r}")
    if category == "open_domain" and not open_domain_answer(answer):
        raise ValueError(f"{name!r} has nothing before a semicolon; expected an answer")
    return answer


def open_domain_answer(answer: str) -> str:
    """The answer without the reason for it, which follows a semicolon."""
    return answer.partition(";")[0].strip()
