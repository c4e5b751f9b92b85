"""Make training records of QASPER: `mlx_deltamem.data qasper qasper-train-v0.3.json train.jsonl`.

QASPER has questions about research papers (https://allenai.org/data/qasper, CC BY 4.0). Each question becomes a record.
Its history is the paper in chunks, one in each turn of the user. The file is the public one, an object of papers by
their id, or has the rows of the Hugging Face form, as JSON or JSONL.
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.data.episode_files import BAD, EMPTY, Found, Unusable, add_file_options, shown, write_episodes
from mlx_deltamem.data.qasper_papers import (
    JsonObject,
    Paragraph,
    answer_text,
    entries,
    paper_of,
    paragraphs,
    question_text,
    questions,
)
from mlx_deltamem.options.rule import POSITIVE
from mlx_deltamem.sessions.text.messages import Message

NO_QUESTION = "a paper without questions"
UNANSWERABLE = "unanswerable questions"

ACKNOWLEDGEMENT = "Noted."
NO_ANSWER = "Unanswerable"

_DEFAULT_CHUNK_WORDS = 300


def episodes(path: Path, chunk_words: int, answerable_only: bool) -> Iterator[Found | Unusable]:
    """Yield a chat for each question of a file. The questions about one paper follow each other.

    Args:
        path: A .json or .jsonl file.
        chunk_words: See `chunks`.
        answerable_only: Leave out questions that the paper does not answer.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is a single JSON text that is not valid.
    """
    for entry in entries(path):
        if entry.problem:
            yield Unusable(entry.place, BAD, entry.problem)
            continue
        try:
            paper = paper_of(entry.value)
            told, asked = paragraphs(paper), questions(paper)
        except ValueError as error:
            yield Unusable(entry.place, BAD, str(error))
            continue
        if told and asked:
            history = [message for chunk in chunks(told, chunk_words) for message in _turn(chunk)]
            yield from (_episode(entry.place, history, question, answerable_only) for question in asked)
        else:
            yield Unusable(entry.place, NO_QUESTION if told else EMPTY)


def chunks(told: Iterable[Paragraph], words: int) -> Iterator[str]:
    """Cut a paper into chunks, each with the names of its sections.

    Args:
        told: The paragraphs of the paper. A paragraph is never cut.
        words: The most words in a chunk, unless one paragraph has more.
    """
    chunk: list[Paragraph] = []
    size = 0
    for paragraph in told:
        length = len(paragraph.text.split())
        if chunk and size + length > words:
            yield _chunk(chunk)
            chunk, size = [], 0
        chunk.append(paragraph)
        size += length
    if chunk:
        yield _chunk(chunk)


def _chunk(told: list[Paragraph]) -> str:
    blocks = []
    for section, group in groupby(told, key=lambda paragraph: paragraph.section):
        blocks += [section] if section else []
        blocks += [paragraph.text for paragraph in group]
    return "\n\n".join(blocks)


def _turn(chunk: str) -> tuple[Message, Message]:
    return {"role": "user", "content": chunk}, {"role": "assistant", "content": ACKNOWLEDGEMENT}


def _episode(place: str, history: list[Message], question: JsonObject, answerable_only: bool) -> Found | Unusable:
    place = f"{place}, question {shown(question.get('question_id'))}"
    try:
        answer = answer_text(question)
        asked: Message = {"role": "user", "content": question_text(question)}
    except ValueError as error:
        return Unusable(place, BAD, str(error))
    if answer is None and answerable_only:
        return Unusable(place, UNANSWERABLE)
    return Found(place, [*history, asked, {"role": "assistant", "content": answer or NO_ANSWER}])


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="mlx_deltamem.data qasper", description=__doc__)
    add_file_options(parser, "A file of QASPER.")
    parser.add_argument(
        "--chunk-words",
        type=POSITIVE,
        default=_DEFAULT_CHUNK_WORDS,
        help=f"Most words of a turn, cut between paragraphs (default: {_DEFAULT_CHUNK_WORDS}).",
    )
    parser.add_argument(
        "--answerable-only",
        action="store_true",
        help=f"Leave out questions that the paper does not answer (default: their answer is '{NO_ANSWER}').",
    )
    return parser


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    write_episodes(episodes(args.input, args.chunk_words, args.answerable_only), args)


if __name__ == "__main__":
    main()
