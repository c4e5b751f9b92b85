"""What two adapters, or two chats, differ in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx

from mlx_deltamem.core.adapter import Adapter, dtype_name
from mlx_deltamem.inspection.adapter import tensors_by_name
from mlx_deltamem.inspection.distance import Comparison, compare
from mlx_deltamem.inspection.session import chat_memory, read_session
from mlx_deltamem.sessions.stored import StoredChat
from mlx_deltamem.sessions.template import shared_length
from mlx_deltamem.sessions.turn import Turn, segments_of


@dataclass(frozen=True)
class AdapterDiff:
    """What two adapters differ in.

    Attributes:
        kind: "adapter diff".
        a, b: Where they were read from.
        identical: Whether their configs are the same and their tensors the same in names, types and numbers.
        fields: By name, the values that differ in their configs, of a and of b.
        tensors: By name (`*` for the layer), their tensors.
        types: By name, the types of those whose types differ, of a and of b.
    """

    kind: str
    a: str
    b: str
    identical: bool
    fields: dict[str, tuple[object, object]]
    tensors: dict[str, Comparison]
    types: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Parting:
    """Where two chats part.

    Attributes:
        shared_turns: How many turns at the beginning have the same texts in both.
        shared_tokens: How many tokens at the beginning are the same in both.
        where: What differs first: "system prompt", "message", "reply" (of the turn after the shared ones), "a ends",
            "b ends"; None where all texts are the same.
    """

    shared_turns: int
    shared_tokens: int
    where: str | None


@dataclass(frozen=True)
class SessionDiff:
    """What two chats differ in.

    Attributes:
        kind: "session diff".
        a, b: Their files.
        identical: Whether their memories, texts, tokens and settings are the same.
        fields: By name, what differs in their settings, fingerprints and sizes, of a and of b.
        parting: Where they part.
        states: Their memories.
    """

    kind: str
    a: str
    b: str
    identical: bool
    fields: dict[str, tuple[object, object]]
    parting: Parting
    states: Comparison


def adapter_diff(a: Adapter, b: Adapter) -> AdapterDiff:
    """Compare two adapters."""
    tensors_a, tensors_b = tensors_by_name(a), tensors_by_name(b)
    names = sorted(tensors_a.keys() | tensors_b.keys())
    comparisons = {name: compare(tensors_a.get(name, {}), tensors_b.get(name, {})) for name in names}
    types = {name: _different_types(tensors_a.get(name, {}), tensors_b.get(name, {})) for name in names}
    types = {name: pair for name, pair in types.items() if pair is not None}
    fields = _differing(asdict(a.config), asdict(b.config))
    identical = not fields and not types and all(each.is_identical for each in comparisons.values())
    return AdapterDiff("adapter diff", a.source, b.source, identical, fields, comparisons, types)


def session_diff(a: Path, b: Path) -> SessionDiff:
    """Compare two chats.

    Raises:
        As `read_session`.
    """
    chat_a, chat_b = read_session(a)[0], read_session(b)[0]
    fields = _differing(_settings(chat_a), _settings(chat_b))
    parting = _parting(chat_a, chat_b)
    states = compare(chat_memory(chat_a), chat_memory(chat_b))
    same_tokens = _tokens(chat_a) == _tokens(chat_b)
    identical = not fields and parting.where is None and same_tokens and states.is_identical
    return SessionDiff("session diff", str(a), str(b), identical, fields, parting, states)


def _different_types(a: Mapping[int, mx.array], b: Mapping[int, mx.array]) -> tuple[str, str] | None:
    """The types of two sets of tensors, where those of a layer that both have differ."""
    layers = a.keys() & b.keys()
    if all(a[layer].dtype == b[layer].dtype for layer in layers):
        return None
    return _types(a), _types(b)


def _types(tensors: Mapping[int, mx.array]) -> str:
    return ", ".join(sorted({dtype_name(tensor.dtype) for tensor in tensors.values()}))


def _differing(a: dict[str, object], b: dict[str, object]) -> dict[str, tuple[object, object]]:
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


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
    shared_tokens = shared_length(_tokens(a), _tokens(b))
    if a.system != b.system:
        return Parting(0, shared_tokens, "system prompt")
    turns = shared_length([_texts(turn) for turn in a.turns], [_texts(turn) for turn in b.turns])
    ends = {len(a.turns): "a ends", len(b.turns): "b ends"}
    if len(a.turns) == len(b.turns) == turns:
        where = None
    elif turns in ends:
        where = ends[turns]
    else:
        where = "message" if a.turns[turns].messages != b.turns[turns].messages else "reply"
    return Parting(turns, shared_tokens, where)


def _texts(turn: Turn) -> tuple[str, str]:
    return turn.text, turn.reply


def _tokens(chat: StoredChat) -> list[int]:
    return segments_of(chat.turns).ids
