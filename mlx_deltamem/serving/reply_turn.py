"""The turn of a request in its memory: it holds the memory, begins, and is then kept or taken back."""

from collections.abc import Callable, Iterable

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.serving.asking import prepare, text_turn
from mlx_deltamem.serving.exchange import Done
from mlx_deltamem.serving.memory import Memory
from mlx_deltamem.serving.reply_job import ReplyJob
from mlx_deltamem.serving.sampling import processors_of, sampler_of
from mlx_deltamem.serving.saver import Saver
from mlx_deltamem.serving.watching import Watch
from mlx_deltamem.serving.work import free
from mlx_deltamem.sessions.batch.batched_reply import NewReply
from mlx_deltamem.sessions.replies.beginning import Beginning
from mlx_deltamem.sessions.replies.reply import ReplySettings
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.text.token_ids import token_ids
from mlx_deltamem.sessions.turns.place import turn_ids
from mlx_deltamem.sessions.turns.seen import read_tokens, seen_tokens
from mlx_deltamem.sessions.turns.turn import Turn
from mlx_deltamem.sessions.turns.writing import NONE

# Messages are read in parts of at most so many tokens. Other replies go on between two parts.
PREFILL_STEP = 512


def hold_memory(job: ReplyJob, memory: Memory) -> None:
    """Let other work on a memory wait for the turn of a request, which is added to it."""
    memory.is_busy, job.holds = True, memory


def leave_memory(job: ReplyJob) -> None:
    """Let the next work on the memory that a request holds begin."""
    memory, job.holds = job.holds, None
    if memory is not None:
        free(memory)


def begin_turn(
    job: ReplyJob, tokenizer: TokenizerWrapper, replay_limit: int, progress: Callable[[int, int], None]
) -> NewReply:
    """Bring the chat of a request to the place that it goes on from, and make the reply that it asks for.

    After an error, `take_back` takes the turn back.

    Args:
        job: The request, with its memory.
        tokenizer: The tokenizer.
        replay_limit: As in `prepare`.
        progress: Called between two parts of long messages with the numbers of tokens that were read, and of all; and
            between two earlier exchanges that have to be read, with their numbers.

    Raises:
        RefusedError: The memory has another revision than the request allows; or as from `prepare` and `text_turn`.
        ValueError: As from `prepare`.
    """
    request, memory = job.request, job.memory
    if memory is None:
        raise RuntimeError("the request has no memory")
    memory.check(request.match)
    if job.holds is None:
        job.reader = memory.reader(request)
    job.chat = chat = memory.chat if job.reader is None else job.reader.chat
    job.before = chat.state.snapshot()
    if job.reader is None:
        memory.settled = job.before
    turn = _placed_turn(job, chat, tokenizer, replay_limit, progress)
    settings = _settings(job, tokenizer, progress)
    if memory.listeners and job.holds is not None:
        job.watch = Watch(memory.listeners)
    return NewReply(chat, turn, settings, job.is_kept, job.watch)


def _placed_turn(
    job: ReplyJob,
    chat: ChatSession,
    tokenizer: TokenizerWrapper,
    replay_limit: int,
    progress: Callable[[int, int], None],
) -> Turn:
    """The turn, at its place in the chat. The tokens before the reply are counted."""
    request = job.request
    ran = 0 if job.reader is None else job.reader.tokens
    if request.text is not None:
        turn = text_turn(chat.model, tokenizer, request.text)
        chat.state.enter(turn.conversation)
    else:
        prepared = prepare(chat, request, replay_limit, progress)
        turn, job.note, ran = prepared.turn, prepared.note, ran + prepared.tokens
        if prepared.begun:
            job.begun = tuple(token_ids(tokenizer, prepared.begun))
            job.unsent = _streamed_length(tokenizer, job.begun)
    # What the client has given of the reply runs too.
    opening = len(turn.opening.ids) + len(job.begun)
    job.prompt_tokens = seen_tokens(chat.state, turn, chat.turns) + opening
    job.read_tokens = read_tokens(chat.state, turn) + opening + ran
    return turn


def _streamed_length(tokenizer: TokenizerWrapper, ids: Iterable[int]) -> int:
    """The number of characters that a stream has for tokens. mlx-lm leaves a space at the beginning of a reply out."""
    detokenizer = tokenizer.detokenizer
    for token in ids:
        detokenizer.add_token(token)
    detokenizer.finalize()
    return len(detokenizer.text)


def _settings(job: ReplyJob, tokenizer: TokenizerWrapper, progress: Callable[[int, int], None]) -> ReplySettings:
    request = job.request
    processors = processors_of(request.sampling) + ([Beginning(job.begun)] if job.begun else [])
    return ReplySettings(
        request.max_tokens if request.max_tokens < 0 else request.max_tokens + len(job.begun),
        request.stop,
        sampler_of(request.sampling, tokenizer),
        PREFILL_STEP,
        progress,
        {"logits_processors": processors},
        given=job.unsent,
    )


def keep_turn(job: ReplyJob, reason: str, saver: Saver, think_end: str | None) -> Done:
    """Keep the turn of a reply that has ended, in its memory or in the copy that it ran in.

    Args:
        job: The request.
        reason: Why the reply has ended, as in `Done.finish_reason`.
        saver: Saves the memory if the turn was added to it.
        think_end: The text that ends the reasoning of a reply, or None.

    Returns:
        The end of the reply, for the client.

    Raises:
        RefusedError: The memory cannot be saved. `take_back` then takes the turn back.
    """
    row, memory, chat = job.row, job.memory, job.chat
    if row is None or memory is None or chat is None:
        raise RuntimeError("the request has not begun")
    if job.note is not None and job.before is not None:
        # The next turn may have room for more.
        chat.history = job.before.history
    if job.holds is not None:
        saver.turned(memory)
    written = job.holds is not None and chat.turns[-1].write != NONE
    turn = turn_ids(chat.turns, think_end)[-1] if job.is_kept else ""
    if job.holds is not None:
        memory.changed(turn)
    elif job.reader is not None and job.is_kept:
        memory.readers.put_back(job.reader)
        memory.count()
    return Done(
        reason,
        job.prompt_tokens,
        # A reply that is ended early may lack some of the tokens that the client gave.
        max(0, len(row.tokens.ids) - len(job.begun)),
        job.read_tokens,
        turn,
        memory.name,
        len(memory.chat.turns),
        written,
        job.note,
        memory.is_saved,
        row.tokens.stop_text,
        None if memory.name is None else memory.revision,
    )


def take_back(job: ReplyJob) -> None:
    """Bring the chat of a request back to what it was before the turn."""
    if job.before is not None and job.chat is not None:
        job.chat.state.restore(job.before)
        if job.memory is not None and job.reader is not None:
            job.memory.readers.put_back(job.reader)
