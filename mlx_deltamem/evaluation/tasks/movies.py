"""Score recommended films by their names: recall@5 of MemoryAgentBench's ReDial dialogues (facts 4.2)."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlx_deltamem.evaluation.tasks.left_out import LeftOut
from mlx_deltamem.evaluation.tasks.rows import evaluate_extra
from mlx_deltamem.files.fields import as_answer, as_text, is_absent, shown
from mlx_deltamem.files.jsonl import read_json

FILE = "entity2id.json"

_BRACKETS = re.compile(r"\([^()]*\)")
# The numbering of a list. It must not match a number in a name ("12 Angry Men").
_NUMBERING = re.compile(r"\s*\d+[.)、]\s*(?:[-—–]\s*)?")
_RECOMMENDED = 5
_PURPOSE = "recall@5 of films"


@functools.cache
def load_films(folder: Path | None, repo: str) -> Mapping[str, str]:
    """The names of films by their numbers.

    Args:
        folder: The folder of the file `entity2id.json`; None: the file is downloaded.
        repo: The data set on the Hub that contains the file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged or has no films, or the package rapidfuzz, which compares names, is not
            installed.
    """
    # Checked before the run, not only when the first reply is scored.
    evaluate_extra("rapidfuzz", _PURPOSE)
    if folder is None:
        from huggingface_hub import hf_hub_download

        from mlx_deltamem.adapters.hub_errors import hub_errors

        with hub_errors(repo):
            path = Path(hf_hub_download(repo, FILE, repo_type="dataset"))
    else:
        path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path} with the names of the films; put MemoryAgentBench's {FILE} beside the data"
        )
    numbers = read_json(path)
    if not isinstance(numbers, dict) or not numbers:
        raise ValueError(f"{path} does not map names of films to numbers; expected MemoryAgentBench's {FILE}")
    films: dict[str, str] = {}
    left_out = LeftOut(str(path), f"MemoryAgentBench's {FILE}")
    for entity, number in numbers.items():
        if is_absent(number):
            continue
        try:
            films[as_answer(number, "its number").strip()] = film_name(as_text(entity, "its name"))
        except ValueError as error:
            left_out.add(f"film {shown(entity)}: {error}")
    left_out.tell(len(films))
    return films


def film_name(entity: str) -> str:
    """The name of a film from the name of its entity: ".../Heat_(1995_film)>" gives "Heat"."""
    name = entity.rpartition("/")[2]
    return " ".join(_BRACKETS.sub("", re.sub("[_>-]", " ", name)).split())


def as_list(names: Sequence[str]) -> str:
    """Write films as a numbered list, the form that the benchmark asks for."""
    return "\n".join(f"{number}. {name}" for number, name in enumerate(names, 1))


def from_list(text: str) -> list[str]:
    """Read the films from a list that `as_list` wrote."""
    return [line.partition(". ")[2] for line in text.split("\n")]


def listed(reply: str) -> list[str]:
    """The items of a reply: the lines from "1." on or, without numbers, the parts between commas and line ends."""
    start = reply.find("1.")
    lines = (reply[start:] if start >= 0 else reply.replace(",", "\n")).splitlines()
    items = (" ".join(_BRACKETS.sub("", _without_number(line)).split()) for line in lines)
    return [item for item in items if item]


def _without_number(line: str) -> str:
    match = _NUMBERING.match(line)
    return line[match.end() :] if match else line


def recall_at_5(reply: str, gold: Sequence[str], films: Sequence[str]) -> float:
    """The share of the right films among the first five items of a reply.

    Each item counts as the film with the nearest name, by edit distance.

    Args:
        reply: The reply of the model.
        gold: The names of the right films.
        films: The names of all films.

    Raises:
        ValueError: The package rapidfuzz is not installed.
    """
    process = evaluate_extra("rapidfuzz.process", _PURPOSE)
    distance = evaluate_extra("rapidfuzz.distance.Levenshtein", _PURPOSE).distance
    lowered = [name.lower() for name in films]
    guesses = [process.extractOne(item.lower(), lowered, scorer=distance)[0] for item in listed(reply)[:_RECOMMENDED]]
    return sum(name.lower() in guesses for name in gold) / len(gold)
