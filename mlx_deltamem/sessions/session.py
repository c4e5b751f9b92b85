"""Chats with one memory across turns: undo, edit, regenerate, fork, and text that may be dropped."""

import copy
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, GenerationResponse
from mlx_lm.sample_utils import Sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.fingerprint import origin_of
from mlx_deltamem.core.cache import check_states
from mlx_deltamem.core.use import attachment_of, is_writing
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.sessions.drift import Drift
from mlx_deltamem.sessions.file import read_chat, write_chat
from mlx_deltamem.sessions.foreign.chat import foreign_turns
from mlx_deltamem.sessions.foreign.folder import foreign_format, read_foreign_session
from mlx_deltamem.sessions.foreign.states import fitted_states
from mlx_deltamem.sessions.history import FULL, History, parse_history
from mlx_deltamem.sessions.messages import Message, ToolCall, parse_messages
from mlx_deltamem.sessions.read import Progress
from mlx_deltamem.sessions.reply import Reply, ReplySettings, check_count, finish_reply
from mlx_deltamem.sessions.state import ChatState
from mlx_deltamem.sessions.stored import StoredChat
from mlx_deltamem.sessions.template import ChatTemplate, Segments
from mlx_deltamem.sessions.text import (
    ChatText,
    Said,
    check_options,
    parse_tools,
    said_messages,
    said_turns,
    system_prompt,
)
from mlx_deltamem.sessions.tool_calls import find_tool_calls
from mlx_deltamem.sessions.turn import Turn, segments_of
from mlx_deltamem.sessions.writing import ALL, parse_write
from mlx_deltamem.sessions.writing import NONE as NOTHING


@dataclass(frozen=True)
class _Point:
    """The place in a chat at which a reply was asked for, with the settings that its text depends on."""

    state: ChatState
    turns: tuple[Turn, ...]
    system: str | None
    history: History

    def is_same(self, other: "_Point") -> bool:
        # Turns are told apart by identity: they hold arrays, and the same may be said twice.
        same_turns = len(self.turns) == len(other.turns) and all(map(operator.is_, self.turns, other.turns))
        return self.state is other.state and same_turns and (self.system, self.history) == (other.system, other.history)


class ChatSession:
    """A chat whose memory goes on from turn to turn.

    A generated reply is kept as its tokens and never tokenised again. At every border between turns the memory is kept
    too, so that a turn can be taken back exactly.

    Args:
        model: An attached model. It may serve several chats in turn.
        tokenizer: Its tokenizer, with a chat template.
        system: A system prompt.
        history: What the model sees of earlier turns beside its memory: `full`, their whole text; a number, that many
            tokens of it; `none`, nothing. The system prompt is always seen. Without `full`, the system prompt and those
            tokens are read anew in each turn, with the memory of now, so that a turn costs the same however long the
            chat is.
        write: What of a turn is written into the memory: `all`, `after`, `user`, `assistant` or `none`, as in
            `mlx_deltamem.sessions.writing`.
        memory: The states to begin from, by layer index, `[1, H, r, r]` float32, as `memory` gives them; default: none.
        tools: Tools for the chat template, as OpenAI's API has them.
        template_options: More for the chat template; thinking is off unless `enable_thinking=True`.

    Raises:
        ValueError: The model has no adapter, the tokenizer no chat template, or an argument is none of the above.
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
        self.system = None if system is None else system_prompt(system)
        tools_option = {} if tools is None else {"tools": parse_tools(tools)}
        self._template_options = {"enable_thinking": False, **tools_option, **template_options}
        self._template = ChatTemplate(tokenizer, **self._template_options)
        self._write = parse_write(write)
        self._state = ChatState(model, parse_history(history))
        self._replying = False
        # The ids of the files that this chat is in, so that nobody else's is overwritten.
        self._files: dict[Path, str] = {}
        if memory is not None:
            self.memory = memory

    @property
    def history(self) -> History:
        """What the model sees of earlier turns: `full`, `none` or a number of tokens. May be set between turns."""
        return self._state.history

    @history.setter
    def history(self, history: str | int) -> None:
        self._check_idle()
        self._state.history = parse_history(history)

    @property
    def write(self) -> str:
        """The part of a turn that is written, one of `WRITES` (sessions/writing.py). May be set between turns."""
        return self._write

    @write.setter
    def write(self, write: str) -> None:
        self._write = parse_write(write)

    @property
    def messages(self) -> list[Message]:
        """The chat so far, as OpenAI's API has it; a copy. What was remembered is no part of it."""
        return self._text.messages(self._state.turns)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls in the last reply, as OpenAI's API has them; a copy. Their results are messages of role `tool`."""
        return copy.deepcopy(list(self._state.turns[-1].tool_calls)) if self._state.turns else []

    @property
    def memory(self) -> dict[int, mx.array]:
        """The states by layer index, `[1, H, r, r]` float32; copies.

        May be set between turns, some layers or all; the chat then goes on from these states. Taking back a turn, or
        a reply, also takes back a memory that was set after it.

        Raises:
            ValueError: When set, a layer has no memory, or a state has another shape or numbers that are not finite.
        """
        return {layer: mx.array(state) for layer, state in enumerate(self._state.states) if state.size}

    @memory.setter
    def memory(self, states: Mapping[int, mx.array]) -> None:
        self._check_idle()
        if not isinstance(states, Mapping) or not all(isinstance(state, mx.array) for state in states.values()):
            raise ValueError(
                f"the memory is a {type(states).__name__}; expected arrays by layer index, as `memory` has"
            )
        self._state.set_memory(check_states(self._state.states, states))

    @property
    def segments(self) -> Segments:
        """All tokens of the chat, with the message and the sentence each is of; none of what was remembered."""
        return segments_of(self._state.turns)

    @property
    def drift(self) -> list[Drift | None]:
        """For each turn, how much of the memory it kept and overwrote (None where a session file did not keep it)."""
        return [turn.drift for turn in self._state.turns]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns: what was said and replied, and what was remembered. Nothing in them is ever changed."""
        return tuple(self._state.turns)

    def send(self, text: Said, max_tokens: int = 256, read_only: bool = False, **options: object) -> str:
        """Say something and wait for the reply; options as in `stream`."""
        for _ in self.stream(text, max_tokens, read_only, **options):
            pass
        return self._state.turns[-1].reply

    def stream(
        self,
        text: Said,
        max_tokens: int = 256,
        read_only: bool = False,
        stop: str | Sequence[str] = (),
        sampler: Sampler | None = None,
        prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE,
        prompt_progress_callback: Progress | None = None,
        write: str | None = None,
        **options: object,
    ) -> Iterator[GenerationResponse]:
        """Say something and get the reply as it is generated.

        Whoever stops early (by closing the iterator, or by leaving the loop) has a chat in which the reply ended there.
        When an error or Ctrl-C comes out of the model, the chat is as if nothing had been said.

        Args:
            text: The message of the user; or messages as OpenAI's API has them, such as the results of tools.
            max_tokens: The longest reply, in tokens; -1 for no limit.
            read_only: Leave the memory as it is in this turn, as `write="none"`; so does `with read_only(model)`.
            stop: A text that ends the reply, or several; they are no part of it, though their tokens have been run.
            sampler: As for mlx-lm; default: the likeliest token.
            prefill_step_size: The most tokens of the message to run at a time; it has no effect on the result.
            prompt_progress_callback: Told how many tokens of the message are done, and of how many.
            write: What of this turn is written, where it is not `self.write`.
            options: More for `mlx_lm.stream_generate`, such as `logits_processors` or `kv_bits`.

        Yields:
            mlx-lm's `GenerationResponse`, one for each token.

        Raises:
            ValueError: The message is empty, refused by the chat template or longer than the model's window, an option
                is out of range, or another reply is under way; the chat is as it was.
        """
        self._check_idle()
        settings = ReplySettings(max_tokens, stop, sampler, options)
        check_count("prefill_step_size", prefill_step_size, least=1)
        messages = said_messages(text)
        write = self._write if write is None else parse_write(write)
        if read_only or not is_writing(self.model):
            write = NOTHING
        turn = Turn(messages, self._text.opening(self._state.turns, messages), write)
        self._state.check_fits(turn)
        return self._stream(turn, settings, self._point(), prefill_step_size, prompt_progress_callback)

    def remember(
        self,
        text: Said,
        write: str = ALL,
        prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE,
        progress: Progress | None = None,
    ) -> None:
        """Write something into the memory without a reply: a document, a transcript, notes that were looked up.

        It is a turn that `undo` takes back, but no part of `messages` and of the text that the model sees. A long text
        is read in stretches of 2,048 tokens, so that it takes no more memory than a short one. Adapters that write
        means write those of its messages or sentences.

        Args:
            text: A text, which is written as a message of the user; or messages as OpenAI's API has them. System
                messages at their beginning stand in for the chat's system prompt while they are read.
            write: Whose messages are written: `all`, `user` or `assistant`; the others are read only.
            prefill_step_size: The most tokens to run at a time; it has no effect on the result.
            progress: Told how many tokens are done, and of how many.

        Raises:
            ValueError: There is nothing to remember, the chat template refuses it, a reply is under way, or the model
                is only read (`with read_only(model)`). After an error the chat is as it was.
        """
        self._check_idle()
        check_count("prefill_step_size", prefill_step_size, least=1)
        if not is_writing(self.model):
            raise ValueError("nothing can be remembered while the model is only read; leave read_only(model) for it")
        if parse_write(write) not in (ALL, "user", "assistant"):
            raise ValueError(f"write is {write!r} for what is to be remembered; expected all, user or assistant")
        messages = parse_messages(text)
        turn = Turn(messages, self._text.remembered(messages), write, remembered=True)
        with self._state.all_or_nothing():
            self._state.remember(turn, prefill_step_size, progress)

    def undo(self) -> str:
        """Take the last turn back: its message, the reply, and what both did to the memory; or what was remembered.

        Returns:
            The message that was taken back.

        Raises:
            ValueError: There is no turn, or a reply is under way.
        """
        last = self._last_turn("take back")
        with self._state.all_or_nothing():
            self._state.return_to(len(self._state.turns) - 1)
        return last.text

    def regenerate(self, max_tokens: int = 256, **options: object) -> str:
        """Take the last reply back and wait for another; options as in `stream`."""
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
        **options: object,
    ) -> Iterator[GenerationResponse]:
        """Take the last reply back and get another as it is generated; arguments as in `stream`.

        The message is not run again, unless the chat comes from a file, the model's caches cannot be cut, the turn was
        written when it had ended, or it is to leave the memory as it is from now on (`with read_only(model)`).

        Raises:
            ValueError: There is no last turn, it has no reply, an option is out of range, or a reply is under way.
                After an error the reply is as it was.
        """
        last = self._last_turn("regenerate")
        if last.remembered:
            raise ValueError("the last turn was remembered and has no reply to regenerate; undo() takes it back")
        settings = ReplySettings(max_tokens, stop, sampler, options)
        check_count("prefill_step_size", prefill_step_size, least=1)
        write = last.write if is_writing(self.model) else NOTHING
        return self._stream_regenerate(write, settings, self._point(), prefill_step_size, prompt_progress_callback)

    def edit(self, index: int, text: str) -> None:
        """Change a message and run again what follows from it; the other messages stay, the replies too.

        Args:
            index: The message's place in `messages`.
            text: Its new content.

        Raises:
            ValueError: There is no such message, the text is empty or does not fit into the model's window, or a reply
                is under way; the chat is as it was.
        """
        self._check_idle()
        count = len(self.messages)
        if type(index) is not int or not -count <= index < count:
            raise ValueError(f"there is no message {index!r}; the chat has {count}")
        place = index % count - (self.system is not None)
        text = system_prompt(text) if place < 0 else said_messages(text)[0]["content"]
        system, set_memory = self.system, self._state.states if self._state.memory_set else None
        try:
            with self._state.all_or_nothing():
                if place < 0:
                    self._edit_system(text)
                else:
                    self._edit(*self._place(place), text)
        except BaseException:
            self.system = system
            raise
        if set_memory is not None:
            self._state.set_memory(set_memory)

    def fork(self) -> "ChatSession":
        """A second chat that goes on from here; neither sees what becomes of the other."""
        self._check_idle()
        other = copy.copy(self)
        other._state, other._files = self._state.fork(), {}
        return other

    def without_memory(self) -> "ChatSession":
        """A second chat that sees the same text, has an empty memory, and writes nothing: the frozen model's chat."""
        other = self.fork()
        turns = [replace(turn, write=NOTHING, memory_set=False, before=None) for turn in said_turns(self._state.turns)]
        other._state, other._write = ChatState(self.model, self.history, turns), NOTHING
        return other

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self._check_idle()
        self._state = ChatState(self.model, self.history)

    def save(self, path: str | Path, save_kv: bool = False) -> None:
        """Save the chat to a `.safetensors` file that only its owner may read.

        Args:
            path: The file; one that this chat was loaded from or saved to before is replaced.
            save_kv: Keep the keys and values too, so that going on needs no text to be run again. Only with history
                `full` is there anything to keep.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: The name ends otherwise, a reply is under way, or someone else has saved to the file.
            OSError: It cannot be written; what was there is still there.
        """
        self._check_idle()
        path = user_path(path).resolve()
        kept = self._state.cache if save_kv and self.history == FULL else None
        chat = StoredChat(
            origin=origin_of(self.model, self.tokenizer),
            system=self.system,
            history=self.history,
            write=self._write,
            template_options=self._template_options,
            turns=self._state.turns,
            states=self._state.states,
            memory_set=self._state.memory_set,
            text=None if kept is None else kept[:-1],
        )
        self._files[path] = write_chat(path, chat, self._files.get(path))

    @classmethod
    def load(cls, model: nn.Module, tokenizer: TokenizerWrapper, path: str | Path) -> "ChatSession":
        """Go on with a saved chat. With history `full`, text that was not saved with it is run again when it goes on.

        It may be a chat of others: a session folder of the PyTorch reference, or the other MLX port's `.npz` of states,
        which has a memory and no messages. Their file is read only; `save` the chat to a file of our own.

        Args:
            model: The attached model that it was made with.
            tokenizer: Its tokenizer.
            path: The file, or a folder.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no session, damaged or altered, of a newer format, brings a chat template of its own, or
                was made with another backbone, adapter or tokenizer; both fingerprints are named.
        """
        path = user_path(path).resolve()
        if foreign_format(path) is not None:
            return cls._load_foreign(model, tokenizer, path)
        stored, file_id = read_chat(path)
        check_options(path, stored.template_options, tokenizer, taken=_PARAMETERS)
        chat = cls(model, tokenizer, stored.system, stored.history, stored.write, **stored.template_options)
        origin_of(model, tokenizer).check(path, stored.origin)
        stored.check_fits(path, model.memory_layout)
        chat._state = ChatState(model, stored.history, stored.turns, stored.states)
        chat._state.memory_set = stored.memory_set
        if stored.text is not None:
            chat._state.restore_text(stored.text)
        chat._files[path] = file_id
        return chat

    @classmethod
    def _load_foreign(cls, model: nn.Module, tokenizer: TokenizerWrapper, path: Path) -> "ChatSession":
        foreign = read_foreign_session(path)
        chat = cls(model, tokenizer, foreign.system)
        states = fitted_states(path, foreign.states, model.memory_layout.shapes)
        chat._state = ChatState(model, FULL, foreign_turns(foreign, chat._text, tokenizer), states)
        # Without messages, nothing but the file tells where the memory came from.
        chat._state.memory_set = not chat._state.turns
        return chat

    @property
    def _text(self) -> ChatText:
        return ChatText(self._template, self.system, self.history)

    def _place(self, place: int) -> tuple[int, int]:
        """The turn of the message at `place` in the chat, the system prompt not counted, and its place in the turn."""
        for index, turn in enumerate(self._state.turns):
            if turn.remembered:
                continue
            if place <= len(turn.messages):
                return index, place
            place -= len(turn.messages) + 1
        raise IndexError(place)

    def _edit(self, index: int, place: int, text: str) -> None:
        """Change message `place` of turn `index`; the one after its messages is the reply."""
        turn, *later = self._state.turns[index:]
        if place == len(turn.messages):
            reply_ids = self.tokenizer.encode(text, add_special_tokens=False)
            changed = replace(turn, reply=text, reply_ids=tuple(reply_ids), tool_calls=())
            self._state.check_fits_edited(index, changed)
            if self._state.return_to_reply(index):
                self._state.finish_again(changed)
            else:
                self._state.return_to(index)
                self._state.run_again(changed)
        else:
            self._state.return_to(index)
            messages = (*turn.messages[:place], turn.messages[place] | {"content": text}, *turn.messages[place + 1 :])
            self._state.run_again(
                replace(turn, messages=messages, opening=self._text.opening(self._state.turns, messages))
            )
        for each in later:
            self._state.run_again(each)

    def _edit_system(self, text: str) -> None:
        """Change the system prompt, and run again everything that was read with it."""
        self.system, turns = text, self._state.turns
        if turns:
            self._state.return_to(0)
        for turn in turns:
            opening = turn.opening
            if turn.remembered:
                opening = self._text.remembered(turn.messages)
            elif not said_turns(self._state.turns):
                opening = self._text.opening(self._state.turns, turn.messages)
            self._state.run_again(replace(turn, opening=opening))

    def _stream(
        self,
        turn: Turn,
        settings: ReplySettings,
        asked_at: _Point,
        step: int = DEFAULT_PREFILL_STEP_SIZE,
        progress: Progress | None = None,
    ) -> Iterator[GenerationResponse]:
        """Run the messages of a turn and generate the reply to them."""
        self._check_is_at(asked_at)
        start = time.perf_counter()
        with self._state.turn_or_nothing():
            turn = self._state.begin(turn, step, progress)
            yield from self._reply(turn, settings, time.perf_counter() - start)

    def _stream_regenerate(
        self, write: str, settings: ReplySettings, asked_at: _Point, step: int, progress: Progress | None
    ) -> Iterator[GenerationResponse]:
        """Generate another reply to the last turn, of which `write` is written."""
        self._check_is_at(asked_at)
        index = len(self._state.turns) - 1
        last = self._state.turns[index]
        with self._state.all_or_nothing():
            if last.logits is not None and write == last.write and self._state.return_to_reply(index):
                yield from self._reply(last, settings, 0.0)
            else:
                self._state.return_to(index)
                turn = Turn(last.messages, last.opening, write)
                yield from self._stream(turn, settings, self._point(), step, progress)

    def _reply(self, turn: Turn, settings: ReplySettings, seconds: float) -> Iterator[GenerationResponse]:
        """Generate the reply to a message that has been run."""
        reply = Reply(self.model, self.tokenizer, self._state.cache, turn, settings)
        self._replying = True
        try:
            yield from reply.stream(seconds)
            self._end(turn, reply)
        except GeneratorExit:
            self._end(turn, reply)
            raise
        finally:
            self._replying = False

    def _end(self, turn: Turn, reply: Reply) -> None:
        """Run what the template ends a reply with, and add the turn to the chat."""
        text, calls = reply.text, []
        if tools := self._template_options.get("tools"):
            # Markers of calls may be special tokens, which the text does not have.
            text, calls = find_tool_calls(self.tokenizer, text if reply.is_stopped else reply.ids, tools)
        ending = self._text.ending(self._state.turns, turn.messages, text)
        finish_reply(self._state, replace(turn, reply=text, tool_calls=tuple(calls), ending=ending), reply)

    def _point(self) -> _Point:
        """Where the chat is now."""
        return _Point(self._state, tuple(self._state.turns), self.system, self.history)

    def _check_is_at(self, point: _Point) -> None:
        """Raise ValueError where the chat is not at the point where a reply was asked for."""
        self._check_idle()
        if not self._point().is_same(point):
            raise ValueError("the chat has gone on since this reply was asked for; ask again")

    def _check_idle(self) -> None:
        if self._replying:
            raise ValueError("a reply is under way; wait for its end or close it first")

    def _last_turn(self, purpose: str) -> Turn:
        self._check_idle()
        if not self._state.turns:
            raise ValueError(f"there is no turn to {purpose}; the chat is empty")
        return self._state.turns[-1]


# The names that a template option cannot have.
_PARAMETERS = frozenset(signature(ChatSession.__init__).parameters) - {"tools", "template_options"}
