"""`ChatSession`: a chat with one memory across its turns."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Unpack

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, GenerationResponse
from mlx_lm.sample_utils import Sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import check_states
from mlx_deltamem.core.spread import world_of
from mlx_deltamem.core.use import attachment_of, is_writing
from mlx_deltamem.files.atomic import resolved
from mlx_deltamem.sessions.changing.editing import edit_message
from mlx_deltamem.sessions.changing.going_back import return_to
from mlx_deltamem.sessions.export.exported import chat_title, exported_chat, parse_export, read_export
from mlx_deltamem.sessions.export.notebook import chat_html
from mlx_deltamem.sessions.reading import remembering
from mlx_deltamem.sessions.reading.new_turn import turn_to_read, with_reply
from mlx_deltamem.sessions.reading.prefill import Progress, check_step
from mlx_deltamem.sessions.reading.running import run_again
from mlx_deltamem.sessions.reading.together import memory_is_empty
from mlx_deltamem.sessions.replies.reply import GenerateOptions, RegenerateOptions, ReplySettings, SendOptions
from mlx_deltamem.sessions.replies.replying import reply_again, reply_to
from mlx_deltamem.sessions.stored.file import delete_chat, write_chat
from mlx_deltamem.sessions.stored.saving import load_chat, stored_chat
from mlx_deltamem.sessions.template.chat_template import ChatTemplate, brought_template
from mlx_deltamem.sessions.template.options import DEFAULTS, parse_tools
from mlx_deltamem.sessions.text.messages import (
    GivenMessages,
    Message,
    ToolCall,
    is_utf8,
    parse_messages,
    said_messages,
    system_prompt,
)
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.sessions.turns.drift import Drift
from mlx_deltamem.sessions.turns.history import FULL, History, parse_history
from mlx_deltamem.sessions.turns.progression import Progression
from mlx_deltamem.sessions.turns.snapshot import Snapshot
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn, said_turns, segments_of
from mlx_deltamem.sessions.turns.writing import ALL, parse_write
from mlx_deltamem.sessions.turns.writing import NONE as NOTHING


class ChatSession:
    """A chat with one memory across its turns.

    A generated reply is kept as its tokens; it is never tokenised again. The memory between any two turns is kept too,
    so that turns can be taken back exactly.

    While a message or a text is read, or a reply is being generated, the chat cannot be changed, saved or copied, also
    not by a progress callback or another thread: such a call raises ValueError.

    Args:
        model: An attached model. It may serve several chats in turn.
        tokenizer: Its tokenizer, with a chat template.
        system: The system prompt.
        history: How much of the earlier turns the model sees beside its memory: `full`, their whole text; a number,
            that many tokens of it; `none`, nothing. The system prompt is always seen. Without `full`, each turn reads
            the system prompt and those tokens again, with the memory as it then is. So the cost of a turn does not
            grow with the chat.
        write: Which part of each turn is written into the memory: `all`, `after`, `user`, `assistant` or `none`. They
            are described in `mlx_deltamem.sessions.turns.writing.MEANINGS`.
        memory: The states to begin with, as in the attribute `memory`; None: an empty memory.
        tools: Tools for the chat template, in OpenAI's form.
        template_options: Further variables for the chat template. Thinking is off unless `enable_thinking=True`.

    Raises:
        ValueError: The model has no adapter, the tokenizer has no chat template, or an argument is not valid.

    Example:
        >>> chat = ChatSession(model, tokenizer, system="Be brief.", history="none")
        >>> chat.send("My name is Anna.", max_tokens=100)
        >>> for part in chat.stream("What is my name?"):
        ...     print(part.text, end="")
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        system: str | None = None,
        history: str | int = FULL,
        write: str = ALL,
        memory: Mapping[int, mx.array] | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        **template_options: object,
    ):
        attachment_of(model)
        self.model = model
        self.tokenizer = tokenizer
        prompt = None if system is None else system_prompt(system)
        parsed_tools = None if tools is None else parse_tools(tools)
        template = ChatTemplate(tokenizer, parsed_tools, **{**DEFAULTS, **template_options})
        self._write = parse_write(write)
        self._state = ChatState(model, template, prompt, parse_history(history))
        self._title = ""
        # The session files that this chat is in, with their ids. Other files are not overwritten.
        self._files: dict[Path, str] = {}
        if memory is not None:
            self.memory = memory

    @property
    def state(self) -> ChatState:
        """The turns and the memory of the chat, for modules that run turns in another way, as `ReplyBatch` does."""
        return self._state

    @property
    def system(self) -> str | None:
        """The system prompt, or None.

        May be set before the first turn. Later, use `edit(0, text)`, which runs again the turns that were read with it.

        Raises:
            ValueError: When set: it is not text, the chat has turns, or a reply is being generated.
        """
        return self._state.system

    @system.setter
    def system(self, system: str | None) -> None:
        self._state.check_idle()
        prompt = None if system is None else system_prompt(system)
        if self._state.turns:
            later = "make another chat" if self.system is None else "use edit(0, text), which runs them again"
            raise ValueError(
                f"the system prompt is set after turns that were read without it ({len(self._state.turns)}); "
                f"expected a chat without turns: {later}, or reset() the chat first"
            )
        self._state.system = prompt

    @property
    def history(self) -> History:
        """How much of the earlier turns the model sees: `full`, `none` or a number of tokens. May be set between turns.

        Raises:
            ValueError: When set: it is none of these, or a reply is being generated.
        """
        return self._state.history

    @history.setter
    def history(self, history: str | int) -> None:
        self._state.check_idle()
        self._state.history = parse_history(history)

    @property
    def write(self) -> str:
        """Which part of a turn is written into the memory. May be set between turns.

        Raises:
            ValueError: When set: it is none of `mlx_deltamem.sessions.turns.writing.WRITES`.
        """
        return self._write

    @write.setter
    def write(self, write: str) -> None:
        self._write = parse_write(write)

    @property
    def conversation(self) -> str:
        """The name of the conversation that goes on; at first, the empty text.

        A chat may hold several conversations, which share the memory. The model does not see the text of the others.
        Set it to begin a conversation or to go on with one. `undo` takes the last turn back, of any conversation.

        Raises:
            ValueError: When set: it is not text, or a reply is being generated.
        """
        return self._state.conversation

    @conversation.setter
    def conversation(self, name: str) -> None:
        self._state.check_idle()
        if not isinstance(name, str) or not is_utf8(name):
            raise ValueError(f"the name of the conversation is {name!r}; expected text")
        self._state.enter(name)

    @property
    def title(self) -> str:
        """The title of the chat, one line; empty for none. It may be set, and is saved with the chat.

        Raises:
            ValueError: When set: it is not text of one line with at most 200 characters.
        """
        return self._title

    @title.setter
    def title(self, title: str) -> None:
        self._title = chat_title(title)

    @property
    def messages(self) -> list[Message]:
        """The system prompt, messages and replies so far of the conversation that goes on, as copies.

        Remembered texts are not among them.
        """
        return self._state.text.messages(self._state.turns)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tool calls in the last reply of the conversation that goes on, in OpenAI's form, as copies.

        Answer them by messages of the role `tool`.
        """
        said = said_turns(self._state.turns, self.conversation)
        return copy.deepcopy(list(said[-1].tool_calls)) if said else []

    @property
    def memory(self) -> dict[int, mx.array]:
        """The states by layer index, `[1, H, r, r]` float32, as copies.

        With the adapter option `key_shift`, the shape is `[1, H, r + 1, r]`: the last row is the memory query of the
        token written last.

        The memory of some or all layers may be set between turns. The chat then goes on with it. To take back a turn
        or a reply also takes back a memory that was set after it.

        Raises:
            ValueError: When set: a layer has no memory, a state has another shape or is not finite, or a reply is
                being generated.
        """
        return {layer: mx.array(state) for layer, state in enumerate(self._state.states) if state.size}

    @memory.setter
    def memory(self, states: Mapping[int, mx.array]) -> None:
        self._state.check_idle()
        if not isinstance(states, Mapping) or not all(isinstance(state, mx.array) for state in states.values()):
            raise ValueError(
                f"the memory is a {type(states).__name__}; expected arrays by layer index, as `memory` has"
            )
        self._state.set_memory(check_states(self._state.states, states))

    @property
    def segments(self) -> Segments:
        """All tokens of the conversation, with their message and sentence indices. Remembered texts are left out."""
        return segments_of(self._state.turns, self.conversation)

    @property
    def drift(self) -> list[Drift | None]:
        """The effect of each turn on the memory; None for a turn of a session file that did not keep it."""
        return [turn.drift for turn in self._state.turns]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, the remembered texts among them. A turn never changes."""
        return tuple(self._state.turns)

    def send(
        self, text: GivenMessages, max_tokens: int = 256, read_only: bool = False, **options: Unpack[SendOptions]
    ) -> str:
        """Send a message and wait for the reply. The arguments are those of `stream`."""
        for _ in self.stream(text, max_tokens, read_only, **options):
            pass
        return self._state.turns[-1].reply

    def stream(
        self,
        text: GivenMessages,
        max_tokens: int = 256,
        read_only: bool = False,
        stop: str | Sequence[str] = (),
        sampler: Sampler | None = None,
        prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE,
        prompt_progress_callback: Progress | None = None,
        write: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[GenerationResponse]:
        """Send a message and get the reply as it is generated.

        If the iterator is closed early, or the loop over it is left, the reply ends there. If an error or Ctrl-C comes
        while the turn runs, the chat is unchanged.

        Args:
            text: The user's message; or messages in OpenAI's form, for example the results of tools.
            max_tokens: The longest reply, in tokens; -1 for no limit.
            read_only: Do not write this turn into the memory, as `write="none"`. `with read_only(model)` does the same.
            stop: A text that ends the reply, or several. It is not part of the reply, but its tokens have been run.
            sampler: A sampler of mlx-lm; None: the most likely token.
            prefill_step_size: The largest number of tokens of the message that run in one call of the model. It does
                not change the result.
            prompt_progress_callback: Called with the number of tokens of the message that are done, and of all.
            write: Which part of this turn is written; None: as the attribute `write`.
            options: Further options of `mlx_lm.stream_generate`. `kv_bits` quantises the keys and values of the whole
                text in view, as in mlx-lm. With history `full` they stay so: later turns go on with the quantised text,
                whatever their own `kv_bits`, until the text runs again. To take such a turn back is exact: the text
                before it runs again. The memory is never quantised.

        Yields:
            mlx-lm's `GenerationResponse`, one for each token.

        Raises:
            ValueError: The message is empty, refused by the chat template or longer than the model's window; an option
                is out of range; or another reply is being generated. The chat is unchanged.
        """
        self._state.check_idle()
        settings = ReplySettings(max_tokens, stop, sampler, prefill_step_size, prompt_progress_callback, options)
        turn = self.new_turn(text, NOTHING if read_only else write)
        return self._stream(reply_to(self._state, self.tokenizer, turn, settings), Progression.of(self._state))

    def new_turn(self, text: GivenMessages, write: str | None = None) -> Turn:
        """The turn that a message would begin. The chat is not changed, and nothing runs.

        Args:
            text: The user's message, or messages in OpenAI's form.
            write: Which part of the turn is written; None: as the attribute `write`. Within `read_only(model)`,
                nothing is.

        Raises:
            ValueError: The message is empty, refused by the chat template or longer than the model's window; or a
                reply is being generated.
        """
        self._state.check_idle()
        return turn_to_read(self._state, said_messages(text), self._write if write is None else parse_write(write))

    def read_exchange(
        self,
        text: GivenMessages,
        reply: str,
        write: str | None = None,
        tool_calls: Sequence[Mapping[str, object]] = (),
    ) -> None:
        """Add a turn with a reply that is known, for example one of a transcript.

        Args:
            text: The user's message, or messages in OpenAI's form.
            reply: The text of the reply.
            write: Which part of the turn is written; None: as the attribute `write`.
            tool_calls: The tool calls of the reply, in OpenAI's form. They are read behind the text.

        Raises:
            ValueError: As for `stream`; or the reply is not text or does not fit into the model's window, or a call has
                another form. The chat is unchanged.
        """
        turn = self.new_turn(text, write)
        [said] = parse_messages({"role": "assistant", "content": reply, "tool_calls": list(tool_calls)})
        turn = with_reply(self._state, turn, said)
        with self._state.all_or_nothing():
            run_again(self._state, turn)

    def remember(
        self,
        text: GivenMessages,
        write: str = ALL,
        prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE,
        progress: Progress | None = None,
        keep_read: bool = False,
    ) -> None:
        """Write a text into the memory without a reply: a document, a transcript, or notes.

        It becomes a turn that `undo` takes back, but is not part of `messages`, nor of the text that the model sees. A
        long text is read in stretches of 2,048 tokens, so it takes no more space than a short one. Adapters that write
        means write the means of its messages or sentences.

        Args:
            text: A text, which is written as a message of the user; or messages in OpenAI's form. If they begin with
                system messages, these replace the chat's system prompt while the text is read.
            write: The messages that are written: `all`, `user` or `assistant`. The others are read only.
            prefill_step_size: The largest number of tokens in one call of the model. It does not change the result.
            progress: Called with the number of tokens that are done, and of all.
            keep_read: Whether a KeyboardInterrupt (Ctrl-C) keeps the stretches that have been read, as a turn. If the
                same text is then remembered again, as the next turn, it goes on there: the memory is the same as
                without the interruption. This also works after `save` and `load`. Adapters that write means keep
                nothing, because a mean needs the whole span.

        Raises:
            KeyboardInterrupt: The user has interrupted it.
            ValueError: The text is empty or refused by the chat template, `write` is another one, a reply is being
                generated, or the model is read only (`with read_only(model)`). After any error the chat is unchanged.
        """
        self._state.check_idle()
        check_step(prefill_step_size)
        turn = remembering.turn_to_remember(self._state, text, write)
        with self._state.all_or_nothing():
            is_whole = remembering.remember(self._state, turn, prefill_step_size, progress, keep_read)
        if not is_whole:
            raise KeyboardInterrupt

    def undo(self) -> str:
        """Take the last turn back: its messages, its reply, and what both did to the memory; or a remembered text.

        Returns:
            The text of the messages that were taken back.

        Raises:
            ValueError: There is no turn, or a reply is being generated.
        """
        last = self._last_turn("take back")
        with self._state.all_or_nothing():
            return_to(self._state, len(self._state.turns) - 1)
        return last.text

    def regenerate(self, max_tokens: int = 256, **options: Unpack[RegenerateOptions]) -> str:
        """Take the last reply back and wait for another one. The arguments are those of `stream`."""
        for _ in self.stream_regenerate(max_tokens, **options):
            pass
        return self._state.turns[-1].reply

    def stream_regenerate(
        self,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        sampler: Sampler | None = None,
        prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE,
        prompt_progress_callback: Progress | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[GenerationResponse]:
        """Take the last reply back and get another one as it is generated. The arguments are those of `stream`.

        The message is run again only if the chat comes from a file, if the model's caches cannot be cut, if the turn
        was written when it had ended, or if it is now read only (`with read_only(model)`).

        Raises:
            ValueError: There is no turn, the last turn has no reply, an option is out of range, or a reply is being
                generated. After any error the reply is unchanged.
        """
        last = self._last_turn("regenerate")
        if last.remembered:
            raise ValueError("the last turn was remembered and has no reply to regenerate; undo() takes it back")
        settings = ReplySettings(max_tokens, stop, sampler, prefill_step_size, prompt_progress_callback, options)
        write = last.write if is_writing(self.model) else NOTHING
        return self._stream(reply_again(self._state, self.tokenizer, write, settings), Progression.of(self._state))

    def edit(self, index: int, text: str) -> None:
        """Change a message and run again what follows from it. The other messages and the replies stay as they are.

        Args:
            index: The place of the message in `messages`. It may be negative, as for a list.
            text: The new content.

        Raises:
            ValueError: There is no such message, the text is empty or does not fit into the model's window, or a reply
                is being generated. The chat is unchanged.
        """
        self._state.check_idle()
        edit_message(self._state, self.tokenizer, index, text)

    def fork(self, at: int | None = None) -> "ChatSession":
        """A second chat that goes on from here, or from an earlier reply. Later changes of one do not reach the other.

        Args:
            at: The place of a reply in `messages`, which may be negative as for a list; None: the end of the chat. The
                second chat is as if nothing had come after that reply, as after `undo`.

        Raises:
            ValueError: There is no reply at that place, or a reply is being generated.
        """
        self._state.check_idle()
        turns = self._state.turns
        kept = len(turns) if at is None else self._state.text.turns_up_to(turns, at)
        other = self._copy_with(self._state.fork())
        if kept < len(turns):
            return_to(other._state, kept)
        return other

    def fork_at(self, snapshot: Snapshot) -> "ChatSession":
        """A second chat that goes on from a snapshot of this one's `state`; also while a reply is being generated.

        The text runs again unless this chat is at the snapshot and no reply is being generated.
        """
        return self._copy_with(self._state.fork_at(snapshot))

    def take_over(self, other: "ChatSession") -> None:
        """Become a copy of another chat of the same model, with its title.

        The files that this chat was saved to stay its files.

        Raises:
            ValueError: A reply is being generated.
        """
        self._state.check_idle()
        other.state.check_idle()
        self._state, self._write, self._title = other.state.fork(), other.write, other.title

    def without_memory(self) -> "ChatSession":
        """A second chat that sees the same text, has an empty memory and writes nothing. It is the frozen model's."""
        self._state.check_idle()
        said = said_turns(self._state.turns, self.conversation)
        turns = [replace(turn, write=NOTHING, memory_set=False, before=None) for turn in said]
        other = self._copy_with(self._state.anew(turns))
        other._write = NOTHING
        return other

    def reset(self) -> None:
        """Forget all turns and the memory. The system prompt stays."""
        self._state.check_idle()
        self._state = self._state.anew()

    def save(self, path: str | Path, save_kv: bool = False) -> None:
        """Save the chat to a `.safetensors` file that only its owner may read.

        Args:
            path: The file. A file that this chat was loaded from, or saved to before, is replaced.
            save_kv: Whether the keys and values are saved too, so that no text has to run again when the chat goes on.
                This has an effect with history `full` only.

        Raises:
            FileNotFoundError: The folder does not exist.
            ValueError: The name has another ending, a reply is being generated, someone else has saved the file, or the
                chat could not be loaded again.
            OSError: The file cannot be written. An existing file is left unchanged.
        """
        self._state.check_idle()
        path = resolved(path)
        chat = stored_chat(self._state, self.tokenizer, self._write, save_kv, self._title)
        world = world_of(self.model)
        self._files[path] = world.first(lambda: write_chat(path, chat, self._files.get(path)))

    def delete(self, path: str | Path) -> None:
        """Delete a file that this chat was saved to. The chat itself stays. There may be no such file.

        Raises:
            ValueError: Someone else has saved the file.
            OSError: The file cannot be deleted.
        """
        path = resolved(path)
        world_of(self.model).first(lambda: delete_chat(path, self._files.get(path)))
        self._files.pop(path, None)

    def __repr__(self) -> str:
        """The size and the settings of the chat in one line, and whether a memory is held. No text of the chat."""
        facts = {**self._facts, "memory": "empty" if memory_is_empty(self._state.states) else "held"}
        return f"<{type(self).__name__}: {', '.join(f'{name} {value}' for name, value in facts.items())}>"

    def _repr_html_(self) -> str:
        """The chat as HTML, which notebooks show: its last messages, and its memory as heat maps."""
        return chat_html(self._title, self._facts, self.messages, self.memory)

    def to_dict(self) -> dict[str, object]:
        """The chat as a dict that JSON can hold: its settings, messages and replies, and what of each was written.

        The memory is not in it: `from_dict` makes it again by reading the chat, with this model or with another one.
        Save a session file to keep the memory as it is.

        Returns:
            A dict with the keys `format`, `version`, `title`, `system`, `history`, `write`, `template_options`,
            `conversation` and `turns`. Each turn has `messages` and `reply` in OpenAI's form, `reply_ids`,
            `reply_rest` (the text of these tokens behind a reply that a stop text ended), `tool_calls`, `write`,
            `remembered` and `conversation`. The settings are those that the chat has now.

        Raises:
            ValueError: A memory was set (`chat.memory = ...`): no reading of the chat leads to it. Or a reply is being
                generated.
        """
        self._state.check_idle()
        return exported_chat(self._state, self.tokenizer, self._title, self._write)

    @classmethod
    def from_dict(
        cls, model: nn.Module, tokenizer: TokenizerWrapper, content: object, progress: Progress | None = None
    ) -> "ChatSession":
        """Make a chat of a dict of `to_dict`, of a list of messages in OpenAI's form, or of a dict with `messages`.

        The model reads the whole chat again. With the same model, adapter and tokenizer, the memory is the same up to
        rounding. It is another one in two cases: the history, the tools or the system prompt of the chat changed
        between turns, because all turns are read with the last ones; or `remember` was interrupted and kept a part of
        a text, because the whole text is read.

        Args:
            model: An attached model. It need not be the one that the chat was made with.
            tokenizer: Its tokenizer.
            content: The dict or list. Anyone may have written it. A dict with `messages` may also have `title`,
                `history`, `write` and `template_options`.
            progress: Called with the number of turns that have been read, and of all.

        Raises:
            ValueError: It is something else, of a newer version, or does not fit into the model's window; a message
                has no reply; or it brings another chat template.
        """
        given = parse_export(content)
        template = brought_template("the exported chat", given.template_options, tokenizer, TAKEN_NAMES)
        chat = cls(model, tokenizer, given.system, given.history, given.write)
        chat._state.template, chat._title = template, given.title
        read_export(chat._state, tokenizer, given, progress)
        return chat

    @classmethod
    def load(cls, model: nn.Module, tokenizer: TokenizerWrapper, path: str | Path) -> "ChatSession":
        """Load a chat and go on with it.

        With history `full`, text that was saved without its keys and values runs again when the chat goes on.

        The chat may also be a session folder of the PyTorch reference, or the other MLX port's `.npz` file of states,
        which has a memory and no messages. Such files are never written to: `save` the chat under another name.

        Args:
            model: The attached model that the chat was made with.
            tokenizer: Its tokenizer.
            path: The file or folder.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a session; it is damaged, altered or of a newer format; it brings another chat
                template; or the chat was made with another backbone, adapter or tokenizer (the error names both
                fingerprints).
        """
        path = resolved(path)
        chat = cls(model, tokenizer)
        loaded = load_chat(path, model, tokenizer, TAKEN_NAMES)
        chat._state, chat._write, chat._title = loaded.state, loaded.write, loaded.title
        if loaded.file_id is not None:
            chat._files[path] = loaded.file_id
        return chat

    @property
    def _facts(self) -> dict[str, object]:
        return {"turns": len(self._state.turns), "history": self.history, "written": self.write}

    def _copy_with(self, state: ChatState) -> "ChatSession":
        """A second chat with another state. It is in no file."""
        other = copy.copy(self)
        other._state, other._files = state, {}
        return other

    def _stream(self, reply: Iterator[GenerationResponse], asked_at: Progression) -> Iterator[GenerationResponse]:
        """The responses of a reply that was asked for at that place of the chat. It begins with the first `next`.

        Raises:
            ValueError: The chat has gone on since then, or another reply is being generated.
        """
        self._state.check_idle()
        if not Progression.of(self._state).is_same(asked_at):
            raise ValueError("the chat has gone on since this reply was asked for; ask again")
        yield from reply

    def _last_turn(self, purpose: str) -> Turn:
        self._state.check_idle()
        if not self._state.turns:
            raise ValueError(f"there is no turn to {purpose}; the chat is empty")
        return self._state.turns[-1]


# The names that a template option cannot have.
TAKEN_NAMES = frozenset(signature(ChatSession.__init__).parameters) - {"tools", "template_options"}
