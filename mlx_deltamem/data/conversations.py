"""Read conversations from a file of `mlx_deltamem.data speech`."""

from dataclasses import fields
from pathlib import Path

from mlx_deltamem.files.atomic import one_line
from mlx_deltamem.files.fields import Row, as_text, given_fields, given_items
from mlx_deltamem.files.jsonl import JsonRecord, json_records
from mlx_deltamem.speech import Conversation, Question
from mlx_deltamem.speech.conversation import LISTS

# The fields that a conversation in a file may leave out.
_TURN: Row = {"assistant": None, **{name: [] for name in LISTS}}
_QUESTION: Row = {each.name: None for each in fields(Question)}


def read_conversations(path: Path) -> list[Conversation]:
    """Read all conversations of a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not a conversation, or there is none.
    """
    found = [_conversation(record, path) for record in json_records(path)]
    if not found:
        raise ValueError(f"{path} has no conversations; expected a file of `mlx_deltamem.data speech`")
    return found


def _conversation(record: JsonRecord, path: Path) -> Conversation:
    """The conversation of a record.

    Raises:
        ValueError: The record is of another kind.
    """
    problem = record.problem
    if not problem:
        try:
            found = given_fields(record.value)
            turns = [_TURN | given_fields(turn) for turn in given_items(found["turns"])]
            turns = [turn | {name: given_items(turn[name]) for name in LISTS} for turn in turns]
            questions = [_QUESTION | given_fields(question) for question in given_items(found["questions"])]
            conversation = Conversation.from_json({"turns": turns, "questions": questions})
            _check_texts(conversation)
            return conversation
        except (KeyError, TypeError, ValueError) as error:
            problem = f"not a conversation ({one_line(error)})"
    raise ValueError(f"{path} {record.place} is {problem}; expected a file of `mlx_deltamem.data speech`")


def _check_texts(conversation: Conversation) -> None:
    """Check all texts of a conversation.

    Raises:
        ValueError: A text is missing or not a text.
    """
    for turn in conversation.turns:
        for name in ("user", "assistant", "kind"):
            if name != "assistant" or turn.assistant is not None:
                as_text(getattr(turn, name), f"the {name!r} of a turn")
        for name in LISTS:
            for text in getattr(turn, name):
                as_text(text, f"a text of the {name!r} of a turn")
    for question in conversation.questions:
        for name in ("text", "answer", "kind", "value"):
            if name != "value" or question.value is not None:
                as_text(getattr(question, name), f"the {name!r} of a question")
