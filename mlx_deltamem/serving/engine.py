"""The engine: one thread that generates the replies of all requests and does all work on memories."""

import contextlib
import contextvars
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator

import mlx.nn as nn
from mlx_lm.generate import GenerationResponse
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.serving.asking import find_private, prepare, text_turn
from mlx_deltamem.serving.exchange import Done, Mode, RefusedError, ReplyRequest, refusal
from mlx_deltamem.serving.memories import Memories
from mlx_deltamem.serving.memory import Memory
from mlx_deltamem.serving.metrics import Metrics
from mlx_deltamem.serving.reply_job import ReplyJob
from mlx_deltamem.serving.sampling import processors_of, sampler_of
from mlx_deltamem.serving.saver import Saver
from mlx_deltamem.serving.watching import Watch
from mlx_deltamem.sessions.batch import ReplyBatch
from mlx_deltamem.sessions.batched_reply import BatchedReply, NewReply
from mlx_deltamem.sessions.place import turn_ids
from mlx_deltamem.sessions.reply import ReplySettings
from mlx_deltamem.sessions.turn import said_turns
from mlx_deltamem.sessions.writing import NONE

_LOG = logging.getLogger(__name__)
# While replies are generated, this many requests at most begin before the next step of the others.
_BEGIN_AT_A_TIME = 8
PREFILL_STEP = 512


class Engine:
    """Generates replies and changes memories, all in one thread.

    Work on one memory is done in the order in which it came. Work on different memories runs side by side, in one
    batch. A request that only reads a memory runs on a copy of it, at once.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        memories: The memories.
        most: The largest number of replies at a time.
        longest_queue: The largest number of requests that wait.
        replay_limit: The largest number of tokens that run again after an edit below other chats.
        save_after: As in `Saver`: the seconds that a turn may wait for its file.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        memories: Memories,
        most: int = 32,
        longest_queue: int = 256,
        replay_limit: int = 4096,
        save_after: float = 0.0,
    ):
        self.tokenizer = tokenizer
        self.memories = memories
        self.metrics = Metrics()
        self.is_accepting = True
        self._saver = Saver(save_after)
        self._batch = ReplyBatch(model, tokenizer, most)
        self._longest_queue = longest_queue
        self.replay_limit = replay_limit
        self._jobs: dict[BatchedReply, ReplyJob] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ready: list[ReplyJob] = []
        self._waiting = 0
        self._round_at = time.monotonic()
        self._is_working = False
        self._is_cut = False
        self._is_within = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way or waits."""
        return not (self._jobs or self._waiting or self._is_working)

    def cut(self) -> None:
        """End all replies at their last token, and refuse what waits. Any thread may call it."""
        self.is_accepting, self._is_cut = False, True
        self._inbox.put(self._end_all)

    def stop(self, grace: float) -> None:
        """Take no more requests, wait for those under way, and end the thread.

        Args:
            grace: The seconds to wait. Replies that have not ended by then end at their last token.
        """
        self.is_accepting = False
        end = time.monotonic() + grace
        while not self.is_idle and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.02)
        self.cut()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._ended.wait()
        self.memories.close()

    @property
    def active(self) -> int:
        """The number of replies that are being generated."""
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return self._waiting

    @property
    def unsaved(self) -> int:
        """The number of memories with turns that are not on disk."""
        return self._saver.unsaved

    @property
    def stalled_seconds(self) -> float:
        """The seconds since the thread last began a round, while it has work; else 0."""
        return time.monotonic() - self._round_at if self._is_working else 0.0

    def submit(self, job: ReplyJob) -> None:
        """Take a request for a reply. Any thread may call it.

        Raises:
            RefusedError: The server ends, or too many requests wait.
        """
        self._check_accepting()
        if self._waiting >= self._longest_queue:
            raise RefusedError(429, "queue_full", f"{self._waiting} requests wait; try again later")
        self._waiting += 1
        self._inbox.put(lambda: self._arrive(job))

    def call(self, work: Callable[[], None]) -> None:
        """Run a function in the engine's thread, between two steps. Any thread may call it.

        Raises:
            RefusedError: The server ends.
        """
        self._check_accepting()
        self._inbox.put(work)

    def when_free(self, memory: Memory, work: Callable[[], None]) -> None:
        """Run a function when no turn of a memory is under way. Call it in the engine's thread only."""
        if memory.is_busy:
            memory.waiting.append(work)
        else:
            work()
            self._go_on(memory)

    @contextlib.contextmanager
    def held(self, memory: Memory) -> Iterator[None]:
        """A context for long work on a memory, within which other work on it waits, and requests that read it do not.

        The work calls `others_go_on` from time to time. Use it in the engine's thread only.
        """
        memory.is_busy, memory.settled = True, memory.chat.state.snapshot()
        try:
            yield
        finally:
            memory.is_busy, memory.settled = False, None

    def others_go_on(self, done: int, total: int) -> None:
        """Between two parts of long work on a memory, let all other requests begin and go on.

        Raises:
            RefusedError: The server ends, and the work has to end too.
        """
        self._round_at = time.monotonic()
        if self._is_cut:
            raise _ending()
        if done < total:
            round_ = self._step if self._is_within else self._round_within
            # How the work uses the memory is not how the others do.
            contextvars.Context().run(round_)

    def _round_within(self) -> None:
        """A round while other work is under way. Work within it only lets replies go on, so that nothing piles up."""
        self._is_within = True
        try:
            while not self._inbox.empty():
                work = self._inbox.get()
                if work is None:
                    # The thread may not end here.
                    self._inbox.put(None)
                    break
                self._do(work)
            self._round()
        finally:
            self._is_within = False

    def _check_accepting(self) -> None:
        if not self.is_accepting:
            raise _ending()

    def _run(self) -> None:
        while True:
            self._round_at = time.monotonic()
            self._is_working = bool(self._jobs or self._ready)
            try:
                work = self._inbox.get(block=not self._is_working, timeout=self._saver.seconds_left())
            except queue.Empty:
                pass
            else:
                if work is None:
                    self._ended.set()
                    # MLX aborts the process if a thread that has computed ends before it.
                    threading.Event().wait()
                    return
                # In this order: the time in which nothing came is no stall.
                self._round_at = time.monotonic()
                self._is_working = True
                self._do(work)
                continue
            self._do(self._round)

    def _round(self) -> None:
        """Begin what can begin, generate a token of each reply, and save what has waited for it."""
        self._begin_ready()
        self._step()
        self._end_closed()
        self._saver.save_due()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            # The text of the error may have text of a message.
            _LOG.exception("work on a memory failed", exc_info=False)

    def _arrive(self, job: ReplyJob) -> None:
        """Find the memory of a request, and let it begin when the memory is free."""
        try:
            memory = self._memory_of(job)
        except Exception as error:
            self._waiting -= 1
            self.metrics.requests.labels(outcome="failed").inc()
            job.fail(refusal(error))
            return
        job.memory = memory
        if self._changes(job.request, memory):
            self._queue(job, memory)
        else:
            self._ready.append(job)

    def _changes(self, request: ReplyRequest, memory: Memory) -> bool:
        """Whether the turn of a request is added to its memory. A private memory that writes nothing has its chat."""
        if request.text is not None:
            return False
        return request.mode is Mode.WRITE or (memory.name is None and request.goes_on and memory.chat.write == NONE)

    def _queue(self, job: ReplyJob, memory: Memory) -> None:
        if memory.is_busy:
            memory.waiting.append(lambda: self._queue(job, memory))
        else:
            memory.is_busy = True
            job.waiting_for = memory
            self._ready.append(job)

    def _memory_of(self, job: ReplyJob) -> Memory:
        request = job.request
        if request.memory is not None and request.mode is not Mode.OFF:
            return self.memories.get(request.memory, make=True)
        if request.text is not None:
            return Memory(None, self.memories.new_chat(), None)
        writes = None if request.mode is Mode.WRITE else NONE
        known = [
            memory
            for memory in self.memories.private()
            if request.mode is Mode.READ or (memory.chat.write == NONE) == (writes == NONE)
        ]
        found = find_private(known, request, self.tokenizer.think_end)
        if found is not None:
            self.memories.used(found)
            return found
        if request.continues is not None:
            raise RefusedError(404, "turn_not_found", f"there is no turn {request.continues}")
        if not request.goes_on:
            return Memory(None, self.memories.new_chat(), None)
        return self.memories.new_private(writes)

    def _begin_ready(self) -> None:
        """Begin some of the requests that can begin. The others go on before the next ones."""
        room = min(_BEGIN_AT_A_TIME if self._jobs else len(self._ready), self._batch.most - len(self._batch))
        starting, self._ready = self._ready[: max(0, room)], self._ready[max(0, room) :]
        prepared: dict[NewReply, ReplyJob] = {}
        for job in starting:
            self._waiting -= 1
            if job.outlet.is_closed:
                self._free(job)
                continue
            try:
                prepared[self._prepared(job)] = job
            except Exception as error:
                self._fail(job, error)
        self._round_at = time.monotonic()
        for new, begun in self._batch.begin_all(list(prepared)):
            self._round_at = time.monotonic()
            if isinstance(begun, Exception):
                self._fail(prepared[new], begun)
            else:
                self._begun(prepared[new], *begun)

    def _prepared(self, job: ReplyJob) -> NewReply:
        """The reply that a request asks for, with its place in the chat."""
        request, memory = job.request, job.memory
        if memory is None:
            raise RuntimeError("the request has no memory")
        if job.waiting_for is None:
            job.reader = memory.reader(request)
        job.chat = chat = memory.chat if job.reader is None else job.reader.chat
        job.before = chat.state.snapshot()
        if job.reader is None:
            memory.settled = job.before
        ran = 0 if job.reader is None else job.reader.tokens
        if request.text is not None:
            turn = text_turn(chat.model, self.tokenizer, request.text)
            chat.state.enter(turn.conversation)
        else:
            prepared = prepare(chat, request, self.replay_limit)
            turn, job.note, ran = prepared.turn, prepared.note, ran + prepared.tokens
        earlier = said_turns(chat.turns, turn.conversation)
        known = sum(each.length for each in earlier) if chat.state.keeps_text else 0
        job.prompt_tokens = known + len(turn.opening.ids)
        job.read_tokens = job.prompt_tokens - (known if chat.state.cache is not None else 0) + ran
        settings = ReplySettings(
            request.max_tokens,
            request.stop,
            sampler_of(request.sampling, self.tokenizer),
            PREFILL_STEP,
            self._replies_go_on,
            {"logits_processors": processors_of(request.sampling)},
        )
        if memory.listeners and job.waiting_for is not None:
            job.watch = Watch(memory.listeners)
        return NewReply(chat, turn, settings, job.is_kept, job.watch)

    def _begun(self, job: ReplyJob, row: BatchedReply, response: GenerationResponse | None) -> None:
        job.row = row
        self._jobs[row] = job
        self.metrics.prompt_tokens.inc(job.read_tokens)
        if response is not None:
            self._took(row, response)

    def _replies_go_on(self, done: int, total: int) -> None:
        """Between two parts of a long prompt, generate a token of the other replies."""
        self._round_at = time.monotonic()
        if done < total:
            # How the prompt uses the memory is not how the others do.
            contextvars.Context().run(self._step)

    def _step(self) -> None:
        if not self._jobs:
            return
        try:
            for row, response in self._batch.step():
                self._took(row, response)
        except Exception as error:
            _LOG.error("a step failed: %s; its replies run again, each alone", type(error).__name__)
            for row, failure in self._batch.rebuild():
                job = self._jobs.pop(row, None)
                if job is not None:
                    self._fail(job, failure)

    def _took(self, row: BatchedReply, response: GenerationResponse) -> None:
        job = self._jobs[row]
        self.metrics.reply_tokens.inc()
        job.send(response, self.tokenizer)
        if job.watch is not None and response.finish_reason is None:
            job.watch.token(response.text, row.state)
        if response.finish_reason is not None:
            del self._jobs[row]
            self._finish(job, response.finish_reason)

    def _end_closed(self) -> None:
        """End the replies that nobody waits for, at their last token."""
        for row, job in list(self._jobs.items()):
            if job.outlet.is_closed and row in self._jobs:
                self._end(row, job, "stop")

    def _end_all(self) -> None:
        # A reply that ends lets the next request for its memory begin.
        while self._ready or self._jobs:
            ready, self._ready = self._ready, []
            for job in ready:
                self._waiting -= 1
                self._free(job)
                job.fail(_ending())
            for row, job in list(self._jobs.items()):
                self._end(row, job, "length")
        self._saver.save_all()

    def _end(self, row: BatchedReply, job: ReplyJob, reason: str) -> None:
        """End a reply at its last token."""
        del self._jobs[row]
        try:
            self._batch.end(row)
        except Exception as error:
            self._fail(job, error)
        else:
            self._finish(job, reason)

    def _finish(self, job: ReplyJob, reason: str) -> None:
        """Save the memory of a reply that has ended, and tell the client of the end."""
        row, memory, chat = job.row, job.memory, job.chat
        if row is None or memory is None or chat is None:
            raise RuntimeError("the request has not begun")
        try:
            if job.waiting_for is not None:
                if job.note is not None and job.before is not None:
                    chat.history = job.before.history
                self._saver.turned(memory)
            written = job.waiting_for is not None and chat.turns[-1].write != NONE
            turn = turn_ids(chat.turns, self.tokenizer.think_end)[-1] if job.is_kept else ""
            self.metrics.requests.labels(outcome="done").inc()
            if job.waiting_for is not None:
                memory.changed(turn)
            elif job.reader is not None and job.is_kept:
                memory.readers.put_back(job.reader)
                memory.count()
            job.outlet.put(
                Done(
                    reason,
                    job.prompt_tokens,
                    len(row.tokens.ids),
                    job.read_tokens,
                    turn,
                    memory.name,
                    len(memory.chat.turns),
                    written,
                    job.note,
                    memory.is_saved,
                    row.tokens.stop_text,
                )
            )
        except Exception as error:
            self._fail(job, error)
        else:
            self._free(job)

    def _fail(self, job: ReplyJob, error: Exception) -> None:
        """Take a request back from its memory, and tell the client why."""
        self.metrics.requests.labels(outcome="failed").inc()
        if job.before is not None and job.chat is not None:
            job.chat.state.restore(job.before)
            if job.memory is not None and job.reader is not None:
                job.memory.readers.put_back(job.reader)
        self._free(job)
        job.fail(refusal(error))

    def _free(self, job: ReplyJob) -> None:
        """Let the next work on a memory begin."""
        memory, job.waiting_for = job.waiting_for, None
        if memory is None:
            return
        memory.is_busy, memory.settled = False, None
        self._go_on(memory)

    def _go_on(self, memory: Memory) -> None:
        while memory.waiting and not memory.is_busy:
            self._do(memory.waiting.popleft())


def _ending() -> RefusedError:
    return RefusedError(503, "ending", "the server is ending; try again later")
