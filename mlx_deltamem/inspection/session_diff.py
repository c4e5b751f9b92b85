"""The differences between two chats."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from mlx_deltamem.inspection.distance import Comparison, compare, distance_charts, fields_that_differ
from mlx_deltamem.inspection.session import chat_memory, read_session
from mlx_deltamem.sessions.stored.chat import StoredChat
from mlx_deltamem.sessions.turns.turn import segments_of
from mlx_deltamem.show.plot import LayerCharts
from mlx_deltamem.show.tables import columns, difference_table, facts, number


@dataclass(frozen=True)
class Parting:
    """The place where two chats stop being the same.

    Attributes:
        shared_turns: The number of turns at the beginning that have the same texts in both.
        shared_tokens: The number of tokens at the beginning that are the same in both.
        where: The first difference in the texts: "system prompt", "message" or "reply" (of the turn after the shared
            ones), "a ends" or "b ends"; None if all texts are the same.
    """

    shared_turns: int
    shared_tokens: int
    where: str | None


@dataclass(frozen=True)
class SessionDiff:
    """The differences between two chats.

    Attributes:
        kind: "session diff".
        a, b: Their files.
        identical: Whether their memories, texts, tokens and settings are the same.
        fields: By name, the values of a and b for the settings, fingerprints and sizes that differ.
        parting: The place where their texts stop being the same.
        states: The comparison of their states, with the rows that a key shift adds.
    """

    kind: str
    a: str
    b: str
    identical: bool
    fields: dict[str, tuple[object, object]]
    parting: Parting
    states: Comparison

    def tables(self) -> list[RenderableType]:
        """The diff as tables."""
        names = {"A": self.a, "B": self.b}
        if self.identical:
            return [facts("Identical chats", names | {"same": "settings, texts, tokens and memory"})]
        rows = {"texts": _in_words(self.parting), "same tokens": f"the first {self.parting.shared_tokens:,}"}
        memory = columns("The memory by layer", "layer", "relative distance", "cosine")
        for layer, distance in self.states.distances.items():
            memory.add_row(str(layer), number(distance.relative), number(distance.cosine))
        problems = self.states.problems
        return [
            facts("Two chats", names | rows),
            difference_table("Settings, fingerprints and sizes", self.fields),
            memory,
            *([facts("Not compared", dict.fromkeys(problems, ""))] if problems else []),
        ]

    def charts(self) -> LayerCharts:
        """The content of the figure: the distances of the states by layer."""
        return distance_charts(self.a, self.b, self.identical, {"states": self.states.relative})


def session_diff(a: Path, b: Path) -> SessionDiff:
    """Compare two chats.

    Raises:
        FileNotFoundError, ValueError: As in `read_session`.
    """
    chat_a, chat_b = read_session(a)[0], read_session(b)[0]
    fields = fields_that_differ(_settings(chat_a), _settings(chat_b))
    parting = _parting(chat_a, chat_b)
    states = compare(chat_memory(chat_a), chat_memory(chat_b))
    same_tokens = _tokens(chat_a) == _tokens(chat_b)
    identical = not fields and parting.where is None and same_tokens and states.is_identical
    return SessionDiff("session diff", str(a), str(b), identical, fields, parting, states)


def _settings(chat: StoredChat) -> dict[str, object]:
    return {
        "backbone_name": chat.origin.name,
        "backbone": chat.origin.backbone,
        "adapter": chat.origin.adapter,
        "tokenizer": chat.origin.tokenizer,
        "history": chat.history,
        "write": chat.write,
        "template_options": chat.template_options,
        "has_system_prompt": chat.system is not None,
        "turns": len(chat.turns),
        "turns_written": [turn.write for turn in chat.turns],
        "turns_remembered": [number for number, turn in enumerate(chat.turns, 1) if turn.remembered],
        "tokens": len(_tokens(chat)),
    }


def _parting(a: StoredChat, b: StoredChat) -> Parting:
    shared_tokens = _shared_length(_tokens(a), _tokens(b))
    if a.system != b.system:
        return Parting(0, shared_tokens, "system prompt")
    turns = _shared_length(*([(turn.text, turn.reply) for turn in chat.turns] for chat in (a, b)))
    ends = {len(a.turns): "a ends", len(b.turns): "b ends"}
    where: str | None
    if len(a.turns) == len(b.turns) == turns:
        where = None
    elif turns in ends:
        where = ends[turns]
    else:
        where = "message" if a.turns[turns].messages != b.turns[turns].messages else "reply"
    return Parting(turns, shared_tokens, where)


def _shared_length(a: Sequence[object], b: Sequence[object]) -> int:
    """The number of items at the beginning that are the same in both."""
    different = (index for index, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
    return next(different, min(len(a), len(b)))


def _tokens(chat: StoredChat) -> list[int]:
    return segments_of(chat.turns).ids


def _in_words(parting: Parting) -> str:
    match parting.where:
        case None:
            return f"the same, {parting.shared_turns} turns"
        case "system prompt":
            return "part at the system prompt"
        case "a ends":
            return f"A ends after turn {parting.shared_turns}, B goes on"
        case "b ends":
            return f"B ends after turn {parting.shared_turns}, A goes on"
        case where:
            return f"part in turn {parting.shared_turns + 1}, at its {where}"
