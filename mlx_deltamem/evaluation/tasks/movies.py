"""Recommended films by their names: recall@5 of MemoryAgentBench's ReDial dialogues (facts 4.2)."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download

from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.evaluation.tasks.extras import evaluate_extra
from mlx_deltamem.evaluation.tasks.rows import parsed

FILE = "entity2id.json"

_BRACKETS = re.compile(r"\([^()]*\)")
# Names that begin with a number ("12 Angry Men") keep it.
_NUMBERING = re.compile(r"\s*\d+[.)、]\s*(?:[-—–]\s*)?")
_RECOMMENDED = 5
_PURPOSE = "recall@5 of films"


@functools.cache
def load_films(folder: Path | None, repo: str) -> Mapping[str, str]:
    """The names of films by their numbers.

    Args:
        folder: Where the file `entity2id.json` is; None: it is downloaded.
        repo: The data set on the Hub that has it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or the package that measures how near names are is not installed.
    """
    # Not only when the first reply is scored.
    evaluate_extra("rapidfuzz", _PURPOSE)
    if folder is None:
        with hub_errors(repo):
            path = Path(hf_hub_download(repo, FILE, repo_type="dataset"))
    else:
        path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}, which has the names of the films; expected it beside the data"
        )
    numbers = parsed(str(path), path.read_bytes())
    if not isinstance(numbers, dict) or not numbers:
        raise ValueError(f"{path} holds no numbers of films by name; expected MemoryAgentBench's {FILE}")
    return {str(number): film_name(entity) for entity, number in numbers.items()}


def film_name(entity: str) -> str:
    """A film's name from that of its entity: ".../Heat_(1995_film)>" is "Heat"."""
    name = entity.rpartition("/")[2]
    return " ".join(_BRACKETS.sub("", re.sub("[_>-]", " ", name)).split())


def as_list(names: Sequence[str]) -> str:
    """Films as the numbered list that is asked for."""
    return "\n".join(f"{number}. {name}" for number, name in enumerate(names, 1))


def from_list(text: str) -> list[str]:
    """The films of a list that `as_list` made."""
    return [line.partition(". ")[2] for line in text.split("\n")]


def listed(reply: str) -> list[str]:
    """What a reply lists: the lines from "1." on; without numbers, what is between its commas and line ends."""
    start = reply.find("1.")
    lines = (reply[start:] if start >= 0 else reply.replace(",", "\n")).splitlines()
    items = (" ".join(_BRACKETS.sub("", _without_number(line)).split()) for line in lines)
    return [item for item in items if item]


def _without_number(line: str) -> str:
    match = _NUMBERING.match(line)
    return line[match.end() :] if match else line


def recall_at_5(reply: str, gold: Sequence[str], films: Sequence[str]) -> float:
    """The share of the right films that is among the first five of a reply, each read as the film it is nearest to.

    Args:
        reply: The model's.
        gold: The names of the right films.
        films: The names of all films.
    """
    process = evaluate_extra("rapidfuzz.process", _PURPOSE)
    distance = evaluate_extra("rapidfuzz.distance.Levenshtein", _PURPOSE).distance
    lowered = [name.lower() for name in films]
    guesses = [process.extractOne(item.lower(), lowered, scorer=distance)[0] for item in listed(reply)[:_RECOMMENDED]]
    return sum(name.lower() in guesses for name in gold) / len(gold)
