"""Chats with one memory across turns: undo, edit, regenerate, fork, and text that may be dropped."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, GenerationResponse
from mlx_lm.sample_utils import Sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.chat_state import ChatState
from mlx_deltamem.drift import Drift
from mlx_deltamem.files import user_path
from mlx_deltamem.fingerprint import origin_of
from mlx_deltamem.history import FULL, NONE, parse_history
from mlx_deltamem.reply import Reply, ReplySettings, finish_reply
from mlx_deltamem.runner import Progress, window
from mlx_deltamem.segments import ChatTemplate, Message, Segments
from mlx_deltamem.session_file import read_chat, write_chat
from mlx_deltamem.stored_chat import StoredChat
from mlx_deltamem.turn import Turn, segments_of
from mlx_deltamem.use import attachment_of, is_writing

_RECENT_TURNS = 2


class ChatSession:
    """A chat whose memory goes on from turn to turn.

    A generated reply is kept as its tokens and never tokenised again. At every border between messages the memory is
    kept too, so that a turn can be taken back exactly.

    Args:
        model: An attached model. It may serve several chats in turn.
        tokenizer: Its tokenizer, with a chat template.
        system: A system prompt.
        history: What the model sees of earlier turns beside its memory: `full`, their whole text; a number, that many
            tokens of it; `none`, nothing. The system prompt is always seen. Without `full`, a turn costs the same
            however long the chat is.
        template_options: More for the chat template; thinking is off unless `enable_thinking=True`.

    Raises:
        ValueError: The model has no adapter, the tokenizer no chat template, or `history` is none of the above.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        system: str | None = None,
        history: str | int = FULL,
        **template_options: object,
    ):
        attachment_of(model)
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self._template_options = {"enable_thinking": False, **template_options}
        self._template = ChatTemplate(tokenizer, **self._template_options)
        self._state = ChatState(model, parse_history(history))
        self._replying = False
        # The ids of the files that this chat is in, so that nobody else's is overwritten.
        self._files: dict[Path, str] = {}

    @property
    def history(self) -> str | int:
        """What of the text is kept: `full`, `none` or a number of tokens."""
        return self._state.history

    @property
    def messages(self) -> list[Message]:
        """The chat so far, in the form of chat templates; a copy."""
        return self._messages_of(self._state.turns)

    @property
    def memory(self) -> dict[int, mx.array]:
        """The states by layer index, `[1, H, r, r]` float32; copies."""
        return {layer: mx.array(state) for layer, state in enumerate(self._state.states) if state.size}

    @property
    def segments(self) -> Segments:
        """All tokens of the chat, with the message and the sentence each is of."""
        return segments_of(self._state.turns)

    @property
    def drift(self) -> list[Drift | None]:
        """For each turn, how much of the memory it kept and overwrote (None where a session file did not keep it)."""
        return [turn.drift for turn in self._state.turns]

    def send(self, text: str, max_tokens: int = 256, read_only: bool = False, **options: object) -> str:
        """Say something and wait for the reply; options as in `stream`."""
        for _ in self.stream(text, max_tokens, read_only, **options):
            pass
        return self._state.turns[-1].reply

    def stream(
        self,
        text: str,
        max_tokens: int = 256,
        read_only: bool = False,
        stop: Sequence[str] = (),
        sampler: Sampler | None = None,
        prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE,
        prompt_progress_callback: Progress | None = None,
        **options: object,
    ) -> Iterator[GenerationResponse]:
        """Say something and get the reply as it is generated.

        Whoever stops early (by closing the iterator, or by leaving the loop) has a chat in which the reply ended there.
        When an error or Ctrl-C comes out of the model, the chat is as if nothing had been said.

        Args:
            text: The message.
            max_tokens: The longest reply, in tokens; -1 for no limit.
            read_only: Leave the memory as it is in this turn; so does `with read_only(model)`.
            stop: Texts that end the reply; they are no part of it, though their tokens have been run.
            sampler: As for mlx-lm; default: the likeliest token.
            prefill_step_size: The most tokens of the message to run at a time; it has no effect on the result.
            prompt_progress_callback: Told how many tokens of the message are done, and of how many.
            options: More for `mlx_lm.stream_generate`, such as `logits_processors` or `kv_bits`.

        Yields:
            mlx-lm's `GenerationResponse`, one for each token.

        Raises:
            ValueError: The message is empty or longer than the model's window, `max_tokens` is 0, or another reply is
                under way; the chat is as it was.
        """
        self._check_idle()
        _require_text(text)
        opening = self._opening(text)
        self._check_window(opening)
        if options.get("kv_bits") is not None and isinstance(self.history, int):
            raise ValueError(f"kv_bits does not work with a history of {self.history} tokens; use full or none")
        turn = Turn(text, opening, writing=is_writing(self.model) and not read_only)
        settings = ReplySettings(max_tokens, tuple(stop), sampler, options)
        return self._stream(turn, settings, len(self._state.turns), prefill_step_size, prompt_progress_callback)

    def undo(self) -> str:
        """Take the last turn back: its message, the reply, and what both did to the memory.

        Returns:
            The message that was taken back.

        Raises:
            ValueError: There is no turn, or a reply is under way.
        """
        last = self._last_turn("take back")
        with self._state.all_or_nothing():
            self._state.return_to(len(self._state.turns) - 1)
        return last.user

    def regenerate(self, max_tokens: int = 256, **options: object) -> str:
        """Take the last reply back and wait for another; options as in `stream`."""
        for _ in self.stream_regenerate(max_tokens, **options):
            pass
        return self._state.turns[-1].reply

    def stream_regenerate(
        self,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        sampler: Sampler | None = None,
        prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE,
        prompt_progress_callback: Progress | None = None,
        **options: object,
    ) -> Iterator[GenerationResponse]:
        """Take the last reply back and get another as it is generated; arguments as in `stream`.

        The message is not run again, unless the chat comes from a file or the model's caches cannot be cut.

        Raises:
            ValueError: There is no turn, or a reply is under way; after an error, the reply is as it was.
        """
        last = self._last_turn("regenerate")
        settings = ReplySettings(max_tokens, tuple(stop), sampler, options)
        with self._state.all_or_nothing():
            if last.logits is not None and self._state.return_to_reply(len(self._state.turns) - 1):
                yield from self._reply(last, settings, 0.0)
            else:
                self._state.return_to(len(self._state.turns) - 1)
                turn, index = Turn(last.user, last.opening, last.writing), len(self._state.turns)
                yield from self._stream(turn, settings, index, prefill_step_size, prompt_progress_callback)

    def edit(self, index: int, text: str) -> None:
        """Change a message and run again what follows from it; the other messages stay, the replies too.

        Args:
            index: The message's place in `messages`.
            text: Its new content.

        Raises:
            ValueError: There is no such message, the text is empty, or a reply is under way; the chat is as it was.
        """
        self._check_idle()
        _require_text(text)
        messages = self.messages
        if not -len(messages) <= index < len(messages):
            raise ValueError(f"there is no message {index}; the chat has {len(messages)}")
        system = self.system
        try:
            with self._state.all_or_nothing():
                self._edit(index % len(messages) - (system is not None), text)
        except BaseException:
            self.system = system
            raise

    def fork(self) -> "ChatSession":
        """A second chat that goes on from here; neither sees what becomes of the other."""
        self._check_idle()
        other = copy.copy(self)
        other._state, other._files = self._state.fork(), {}
        return other

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self._check_idle()
        self._state = ChatState(self.model, self.history)

    def save(self, path: str | Path, save_kv: bool = False) -> None:
        """Save the chat to a `.safetensors` file that only its owner may read.

        Args:
            path: The file; one that this chat was loaded from or saved to before is replaced.
            save_kv: Keep the keys and values too, so that going on needs no text to be run again. With history `none`
                there is nothing to keep.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: The name ends otherwise, a reply is under way, or someone else has saved to the file.
            OSError: It cannot be written; what was there is still there.
        """
        self._check_idle()
        path = user_path(path).resolve()
        kept = self._state.cache if save_kv and self.history != NONE else None
        chat = StoredChat(
            origin=origin_of(self.model, self.tokenizer),
            system=self.system,
            history=self.history,
            template_options=self._template_options,
            turns=self._state.turns,
            states=self._state.states,
            text=None if kept is None else kept[:-1],
        )
        self._files[path] = write_chat(path, chat, self._files.get(path))

    @classmethod
    def load(cls, model: nn.Module, tokenizer: TokenizerWrapper, path: str | Path) -> "ChatSession":
        """Go on with a saved chat. Text that was not saved with it is run again when the chat goes on.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no session, damaged or altered, of a newer format, or was made with another backbone,
                adapter or tokenizer; both fingerprints are named.
        """
        path = user_path(path).resolve()
        stored, file_id = read_chat(path)
        chat = cls(model, tokenizer, stored.system, stored.history, **stored.template_options)
        origin_of(model, tokenizer).check(path, stored.origin)
        chat._state = ChatState(model, stored.history, stored.turns, stored.states)
        if stored.text is not None:
            chat._state.restore_cache(stored.text)
        chat._files[path] = file_id
        return chat

    def _messages_of(self, turns: Sequence[Turn]) -> list[Message]:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in turns:
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.reply}]
        return messages

    def _edit(self, place: int, text: str) -> None:
        """Change the message at `place` (-1: the system prompt; even: a message; odd: a reply)."""
        first = max(place, 0) // 2
        later = self._state.turns[first:]
        if not later:
            self.system = text
            return
        if place % 2 and place > 0:
            reply_ids = self.tokenizer.encode(text, add_special_tokens=False)
            changed = replace(later.pop(0), reply=text, reply_ids=tuple(reply_ids))
            if self._state.return_to_reply(first):
                self._state.finish_again(changed)
            else:
                self._state.return_to(first)
                self._state.run_again(changed)
        else:
            self._state.return_to(first)
            self.system = text if place < 0 else self.system
            user = later[0].user if place < 0 else text
            self._state.run_again(replace(later.pop(0), user=user, opening=self._opening(user)))
        for turn in later:
            self._state.run_again(turn)

    def _stream(
        self,
        turn: Turn,
        settings: ReplySettings,
        index: int,
        step: int = DEFAULT_PREFILL_STEP_SIZE,
        progress: Progress | None = None,
    ) -> Iterator[GenerationResponse]:
        """Run the message of turn `index` and generate the reply to it."""
        self._check_idle()
        if len(self._state.turns) != index:
            raise ValueError("the chat has gone on since this reply was asked for; ask again")
        start = time.perf_counter()
        with self._state.turn_or_nothing():
            turn = self._state.begin(turn, step, progress)
            yield from self._reply(turn, settings, time.perf_counter() - start)

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
        recent, earlier = self._recent_messages()
        said = [{"role": "user", "content": turn.user}, {"role": "assistant", "content": reply.text}]
        ending = self._template.ending([*recent, *said]).later(earlier)
        finish_reply(self._state, replace(turn, ending=ending), reply)

    def _opening(self, text: str) -> Segments:
        """The tokens of a message that is new at the end of the chat."""
        recent, earlier = self._recent_messages()
        sentences = self._state.turns[-1].reply_sentence + 1 if self._state.turns else 0
        return self._template.opening([*recent, {"role": "user", "content": text}], sentences).later(earlier)

    def _recent_messages(self) -> tuple[list[Message], int]:
        """The messages that what the template writes next can depend on, and how many come before them.

        So that a turn costs the same however long the chat is.
        """
        turns = self._state.turns
        return self._messages_of(turns[-_RECENT_TURNS:]), 2 * max(0, len(turns) - _RECENT_TURNS)

    def _check_window(self, opening: Segments) -> None:
        longest = window(self.model)
        seen = len(self.segments.ids) if self.history == FULL else 0
        if longest is not None and seen + len(opening.ids) > longest:
            raise ValueError(
                f"the message is {len(opening.ids)} tokens on top of {seen} in view; the model's window is {longest}: "
                "shorten it, or use a history of fewer tokens"
            )

    def _check_idle(self) -> None:
        if self._replying:
            raise ValueError("a reply is under way; wait for its end or close it first")

    def _last_turn(self, purpose: str) -> Turn:
        self._check_idle()
        if not self._state.turns:
            raise ValueError(f"there is no turn to {purpose}; the chat is empty")
        return self._state.turns[-1]


def _require_text(text: object) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the message is empty; expected some text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the message is not UTF-8; expected text") from None
