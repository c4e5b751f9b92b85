"""LoCoMo's conversations: two people over months, in dated sessions, and questions about them (facts 4.1)."""

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from huggingface_hub import constants

from mlx_deltamem.evaluation.tasks.rows import Json, parsed
from mlx_deltamem.files.atomic import new_file

# CC BY-NC 4.0: downloaded by its user, and no part of this project.
URL = "https://raw.githubusercontent.com/snap-research/locomo/main/data/locomo10.json"

CATEGORIES = {1: "multi_hop", 2: "temporal", 3: "open_domain", 4: "single_hop", 5: "adversarial"}

_EXPECTED = "expected LoCoMo's locomo10.json"
_SESSION = re.compile(r"session_(\d+)")
_DIALOG = re.compile(r"D(\d+):\d+")
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Turn:
    """What somebody said, and the caption of the picture that came with it, or ""."""

    speaker: str
    text: str
    caption: str


@dataclass(frozen=True)
class Session:
    """A talk on one day.

    Attributes:
        number: Its place in the conversation, counted from 1.
        date: When it was, as LoCoMo writes it: "1:56 pm on 8 May, 2023".
        turns: What was said, in order.
    """

    number: int
    date: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Asked:
    """A question as it stands in the file.

    Attributes:
        place: Its place among all questions about the conversation, counted from 0.
        text: The question.
        category: By name.
        answer: The answer; of an adversarial question, the wrong one that is offered.
        sessions: The sessions that the answer is found in, ascending; empty if the file does not tell.
    """

    place: int
    text: str
    category: str
    answer: str
    sessions: tuple[int, ...]


@dataclass(frozen=True)
class Conversation:
    """One of the ten conversations, its sessions oldest first."""

    id: str
    speakers: tuple[str, str]
    sessions: tuple[Session, ...]
    questions: tuple[Asked, ...]


def load_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; {_EXPECTED}, from {URL}")
    samples = parsed(str(path), path.read_bytes())
    if not isinstance(samples, list) or not samples:
        raise ValueError(f"{path} holds no list of conversations; {_EXPECTED}")
    for number, sample in enumerate(samples, 1):
        try:
            yield _conversation(sample)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, conversation {number} is damaged ({problem}); {_EXPECTED}") from None


def downloaded() -> Path:
    """LoCoMo from its public source, downloaded once into the folder of the Hugging Face caches.

    Raises:
        ValueError: It cannot be downloaded.
    """
    path = Path(constants.HF_HOME) / "mlx_deltamem" / "locomo10.json"
    if not path.exists():
        try:
            with urllib.request.urlopen(URL, timeout=_TIMEOUT_SECONDS) as answer:
                content = answer.read()
        except (OSError, HTTPException) as error:
            raise ValueError(f"{URL} cannot be read ({error}); download it otherwise, and name the file") from None
        parsed(URL, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            temporary.write_bytes(content)
    return path


def _conversation(sample: Json) -> Conversation:
    told = sample["conversation"]
    # The file also has dates of sessions that never were.
    numbers = sorted(int(match[1]) for key in told if (match := _SESSION.fullmatch(key)))
    read = [
        Session(number, told[f"session_{number}_date_time"], _turns(told[f"session_{number}"])) for number in numbers
    ]
    sessions = tuple(session for session in read if session.turns)
    if not sessions:
        raise ValueError("nothing was said in it")
    return Conversation(
        id=sample["sample_id"],
        speakers=(told["speaker_a"], told["speaker_b"]),
        sessions=sessions,
        questions=tuple(_asked(place, question) for place, question in enumerate(sample["qa"])),
    )


def _turns(turns: Json) -> tuple[Turn, ...]:
    return tuple(Turn(turn["speaker"], turn["text"], turn.get("blip_caption") or "") for turn in turns)


def _asked(place: int, question: Json) -> Asked:
    category = CATEGORIES[question["category"]]
    # Two adversarial questions have an answer of their own, which the reference offers as the wrong one.
    answer = question.get("answer", question["adversarial_answer"]) if category == "adversarial" else question["answer"]
    sessions = {int(number) for number in _DIALOG.findall(" ".join(question.get("evidence", ())))}
    return Asked(place, question["question"], category, str(answer), tuple(sorted(sessions)))
