"""From the state of a chat to the content of a session file, and back."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.fingerprint import fingerprint_with_added_ends, origin_of
from mlx_deltamem.core.cache import MemoryLayout
from mlx_deltamem.core.spread import spread_of, world_of
from mlx_deltamem.sessions.foreign.folder import foreign_format, read_foreign_session
from mlx_deltamem.sessions.foreign.states import fitted_states
from mlx_deltamem.sessions.foreign.turns import foreign_turns
from mlx_deltamem.sessions.stored.chat import StoredChat
from mlx_deltamem.sessions.stored.file import read_chat
from mlx_deltamem.sessions.template.chat_template import ChatTemplate, brought_template
from mlx_deltamem.sessions.template.options import DEFAULTS, has_other_template
from mlx_deltamem.sessions.turns.history import FULL
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.writing import ALL


@dataclass(frozen=True)
class LoadedChat:
    """A chat that was loaded.

    Attributes:
        state: Its state.
        write: Which part of the next turns is written, one of `WRITES`.
        title: Its title; empty for none.
        file_id: The id of its session file; None for a chat of another implementation, whose files are never written.
    """

    state: ChatState
    write: str = ALL
    title: str = ""
    file_id: str | None = None


def stored_chat(
    state: ChatState, tokenizer: TokenizerWrapper, write: str, save_kv: bool, title: str = ""
) -> StoredChat:
    """The content of a chat's session file.

    Args:
        state: The chat.
        tokenizer: The model's tokenizer.
        write: Which part of the next turns is written, one of `WRITES`.
        save_kv: Whether the keys and values are in it. They are, if the chat keeps its text.
        title: The title of the chat; empty for none.

    Raises:
        ValueError: Keys and values are wanted, and the model is spread over several processes; or the chat has a chat
            template of its own.
    """
    if has_other_template(state.template.options, tokenizer):
        raise ValueError(
            "the chat has another chat template than the tokenizer (the template option chat_template), and could not "
            "be loaded again; set tokenizer.chat_template to it, and make the chat without the option"
        )
    if save_kv and spread_of(state.model) is not None:
        raise ValueError(
            "the keys and values are spread over several processes and cannot be saved; expected save_kv=False "
            "(without --save-kv), after which the text runs again when the chat goes on"
        )
    kept = state.cache if save_kv and state.keeps_text else None
    return StoredChat(
        origin=origin_of(state.model, tokenizer),
        system=state.system,
        history=state.history,
        write=write,
        template_options=state.template.options,
        turns=state.turns,
        states=state.states,
        memory_set=state.memory_set,
        text=None if kept is None else kept[:-1],
        conversation=state.conversation,
        title=title,
    )


def load_chat(path: Path, model: nn.Module, tokenizer: TokenizerWrapper, taken: Collection[str]) -> LoadedChat:
    """Load a chat from a session file, or from files of another implementation.

    Args:
        path: The file or folder.
        model: The attached model that the chat goes on with.
        tokenizer: Its tokenizer.
        taken: Names that a template option cannot have.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: `ChatSession.load` says when.
    """
    world = world_of(model)
    if world.first(lambda: foreign_format(path) is not None):
        _check_whole(model, path)
        return LoadedChat(_load_foreign(path, model, tokenizer))
    with world.file(path) as readable:
        stored, file_id = read_chat(readable)
    return LoadedChat(_load_stored(path, stored, model, tokenizer, taken), stored.write, stored.title, file_id)


def _load_stored(
    path: Path, stored: StoredChat, model: nn.Module, tokenizer: TokenizerWrapper, taken: Collection[str]
) -> ChatState:
    """The state of a chat from the content of its session file.

    Args:
        path: The file, for messages.
        stored: Its content.
        model: The attached model that the chat goes on with.
        tokenizer: Its tokenizer.
        taken: Names that a template option cannot have.

    Raises:
        ValueError: The chat was made with another backbone, adapter or tokenizer; the file was altered; or it brings
            another chat template.
    """
    template = brought_template(path, stored.template_options, tokenizer, taken)
    origin_of(model, tokenizer).check(path, stored.origin, fingerprint_with_added_ends(tokenizer))
    if spread_of(model) is not None:
        # They are those of a whole model. The text runs again.
        stored = replace(stored, text=None)
    stored.check_fits(path, model.memory_layout)
    state = ChatState(model, template, stored.system, stored.history, stored.turns, stored.states)
    state.enter(stored.conversation)
    state.memory_set = stored.memory_set
    if stored.text is not None:
        state.restore_text(stored.text)
    return state


def _check_whole(model: nn.Module, path: Path) -> None:
    """Check that a chat of another implementation can be read: each process would have to read its files.

    Raises:
        ValueError: The model is spread over several processes.
    """
    if spread_of(model) is not None:
        raise ValueError(
            f"{path} is a chat of another implementation, which several processes cannot load; convert it with "
            "mlx_deltamem.convert first"
        )


def _load_foreign(path: Path, model: nn.Module, tokenizer: TokenizerWrapper) -> ChatState:
    """The state of a chat that another implementation saved.

    Args:
        path: The file or folder.
        model: The attached model that the chat goes on with.
        tokenizer: Its tokenizer.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or something else, or its memory is not of this model.
    """
    foreign = read_foreign_session(path)
    template = ChatTemplate(tokenizer, None, **DEFAULTS)
    layout: MemoryLayout = model.memory_layout
    states = fitted_states(path, foreign.states, layout.shapes)
    state = ChatState(model, template, foreign.system, FULL, states=states)
    state.turns = foreign_turns(foreign, state.text, tokenizer)
    # Without messages, the memory counts as set: no turn has led to it.
    state.memory_set = not state.turns
    return state
