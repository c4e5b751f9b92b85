"""The data of LoCoMo (facts 4.1): conversations of two people over months, in dated sessions, and questions."""

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from huggingface_hub import constants

from mlx_deltamem.evaluation.tasks.rows import expect_list, expect_object, expect_text, parse_json
from mlx_deltamem.files.atomic import new_file
from mlx_deltamem.files.jsonl import Json

# The licence is CC BY-NC 4.0: users download the file themselves, and it is not part of this project.
URL = "https://raw.githubusercontent.com/snap-research/locomo/main/data/locomo10.json"

CATEGORIES = {1: "multi_hop", 2: "temporal", 3: "open_domain", 4: "single_hop", 5: "adversarial"}

_EXPECTED = "expected LoCoMo's locomo10.json"
_SESSION = re.compile(r"session_(\d+)")
_DIALOG = re.compile(r"D(\d+):\d+")
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class DialogTurn:
    """A turn of a conversation.

    Attributes:
        speaker: The name of the speaker.
        text: The words of the speaker.
        caption: The caption of the picture that the speaker shared; "" if there is none.
    """

    speaker: str
    text: str
    caption: str


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
    """

    place: int
    text: str
    category: str
    answer: str
    sessions: tuple[int, ...]


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


def load_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; {_EXPECTED}, from {URL}")
    samples = parse_json(str(path), path.read_bytes())
    if not isinstance(samples, list) or not samples:
        raise ValueError(f"{path} is not a list of conversations; {_EXPECTED}")
    for number, sample in enumerate(samples, 1):
        try:
            yield _conversation(expect_object(sample))
        except (KeyError, ValueError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, conversation {number} is damaged ({problem}); {_EXPECTED}") from None


def downloaded() -> Path:
    """The file of LoCoMo, downloaded once from its public source into the folder of the Hugging Face caches.

    Raises:
        ValueError: The file cannot be downloaded.
    """
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


def _conversation(sample: dict[str, Json]) -> Conversation:
    content = expect_object(sample["conversation"])
    # The file also has dates of sessions that do not exist.
    numbers = sorted(int(match[1]) for key in content if (match := _SESSION.fullmatch(key)))
    sessions = tuple(session for number in numbers if (session := _session(content, number)).turns)
    if not sessions:
        raise ValueError("it has no turns")
    return Conversation(
        id=expect_text(sample["sample_id"]),
        speakers=(expect_text(content["speaker_a"]), expect_text(content["speaker_b"])),
        sessions=sessions,
        questions=tuple(
            _question(place, expect_object(question)) for place, question in enumerate(expect_list(sample["qa"]))
        ),
    )


def _session(content: dict[str, Json], number: int) -> DialogSession:
    turns = [expect_object(turn) for turn in expect_list(content[f"session_{number}"])]
    date = expect_text(content[f"session_{number}_date_time"])
    return DialogSession(number, date, tuple(map(_turn, turns)))


def _turn(turn: dict[str, Json]) -> DialogTurn:
    caption = turn.get("blip_caption") or ""
    return DialogTurn(expect_text(turn["speaker"]), expect_text(turn["text"]), expect_text(caption))


def _question(place: int, question: dict[str, Json]) -> DialogQuestion:
    number = question["category"]
    if not isinstance(number, int) or number not in CATEGORIES:
        raise ValueError(f"category {number!r}, expected 1 to 5")
    category = CATEGORIES[number]
    # Two adversarial questions also have a right answer, which the reference offers as the wrong one.
    answer = question.get("answer", question["adversarial_answer"]) if category == "adversarial" else question["answer"]
    evidence = [expect_text(text) for text in expect_list(question.get("evidence", []))]
    sessions = {int(number) for number in _DIALOG.findall(" ".join(evidence))}
    return DialogQuestion(place, expect_text(question["question"]), category, str(answer), tuple(sorted(sessions)))
