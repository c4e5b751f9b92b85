"""`Replies`: the requests for replies, from their arrival to their end."""

import contextvars
import logging
from collections.abc import Callable

from mlx_lm.generate import GenerationResponse

from mlx_deltamem.core.spread import world_of
from mlx_deltamem.serving.exchange import ending, refusal
from mlx_deltamem.serving.finding import adds_turn, find_memory
from mlx_deltamem.serving.memories import Memories
from mlx_deltamem.serving.memory import Memory
from mlx_deltamem.serving.metrics import Metrics
from mlx_deltamem.serving.reply_job import ReplyJob
from mlx_deltamem.serving.reply_turn import begin_turn, hold_memory, keep_turn, leave_memory, take_back
from mlx_deltamem.serving.saver import Saver
from mlx_deltamem.serving.work import when_free
from mlx_deltamem.sessions.batch.batched_reply import BatchedReply, NewReply
from mlx_deltamem.sessions.batch.reply_batch import ReplyBatch

_LOG = logging.getLogger(__name__)
# While replies are generated, this many requests at most begin before the next step of the others.
_BEGIN_AT_A_TIME = 8


class Replies:
    """The requests for replies: those that wait for their memory or for room, and those whose replies are generated.

    The engine's thread calls all methods. Another one may read the numbers.

    Args:
        batch: Generates the replies.
        memories: The memories.
        saver: Saves them.
        metrics: The figures of the server.
        replay_limit: The largest number of tokens that run again after an edit below other chats.
        progressed: Called after each part of the work to begin replies.

    Attributes:
        waiting: The number of requests that wait, those on their way to `arrive` among them: the engine counts these.
    """

    def __init__(
        self,
        batch: ReplyBatch,
        memories: Memories,
        saver: Saver,
        metrics: Metrics,
        replay_limit: int,
        progressed: Callable[[], None],
    ):
        self.waiting = 0
        self._batch = batch
        self._tokenizer = batch.tokenizer
        self._world = world_of(batch.model)
        self._memories = memories
        self._saver = saver
        self._metrics = metrics
        self._replay_limit = replay_limit
        self._progressed = progressed
        self._ready: list[ReplyJob] = []
        self._jobs: dict[BatchedReply, ReplyJob] = {}
        # Requests that are over. Their memories are given free when all responses of a step are sent: the work that
        # waits for a memory may be long, and lets other replies go on.
        self._over: list[ReplyJob] = []
        self._is_freeing = False

    @property
    def active(self) -> int:
        """The number of replies that are being generated."""
        return len(self._jobs)

    @property
    def can_go_on(self) -> bool:
        """Whether a reply is being generated or can begin."""
        return bool(self._jobs or self._ready)

    def arrive(self, job: ReplyJob) -> None:
        """Find the memory of a request, and let it begin when the memory is free."""
        try:
            memory = find_memory(self._memories, job.request, self._tokenizer.think_end)
        except Exception as error:
            self.waiting -= 1
            self._fail(job, error)
            return
        job.memory = memory
        if adds_turn(job.request, memory):
            when_free(memory, lambda: self._hold(job, memory), lambda: self.arrive(job))
        else:
            self._ready.append(job)

    def _hold(self, job: ReplyJob, memory: Memory) -> None:
        hold_memory(job, memory)
        self._ready.append(job)

    def begin_ready(self) -> None:
        """Begin some of the requests that can begin. The others go on before the next ones."""
        room = min(_BEGIN_AT_A_TIME if self._jobs else len(self._ready), self._batch.most - len(self._batch))
        starting, self._ready = self._ready[: max(0, room)], self._ready[max(0, room) :]
        prepared: dict[NewReply, ReplyJob] = {}
        for job in starting:
            self.waiting -= 1
            if job.outlet.is_closed:
                self._over.append(job)
                continue
            try:
                prepared[begin_turn(job, self._tokenizer, self._replay_limit, self._others_go_on)] = job
            except Exception as error:
                self._fail(job, error)
        self._progressed()
        for new, begun in self._batch.begin_all(list(prepared)):
            self._progressed()
            if isinstance(begun, Exception):
                self._fail(prepared[new], begun)
            else:
                self._begun(prepared[new], *begun)
        self._free_memories()

    def _begun(self, job: ReplyJob, row: BatchedReply, response: GenerationResponse | None) -> None:
        job.row = row
        self._jobs[row] = job
        self._metrics.prompt_tokens.inc(job.read_tokens)
        if response is not None:
            self._took(row, response)

    def _others_go_on(self, done: int, total: int) -> None:
        """Between two parts of a long prompt, generate a token of the other replies.

        The memories of replies that end here are given free after the prompt: the work that waits for them may take
        longer than the prompt does.
        """
        self._progressed()
        if done < total:
            was_freeing, self._is_freeing = self._is_freeing, True
            try:
                # How the prompt uses the memory is not how the others do.
                contextvars.Context().run(self.step)
            finally:
                self._is_freeing = was_freeing

    def step(self) -> None:
        """Generate a token of each reply."""
        if not self._jobs:
            return
        try:
            for row, response in self._batch.step():
                self._took(row, response)
        except Exception as error:
            self._world.check_common(error)
            _LOG.error("a step failed: %s; its replies run again, each alone", type(error).__name__)
            for row, failure in self._batch.rebuild():
                job = self._jobs.pop(row, None)
                if job is not None:
                    self._fail(job, failure)
        self._free_memories()

    def _free_memories(self) -> None:
        """Let the next work begin on the memories of the requests that are over."""
        if self._is_freeing:
            return
        self._is_freeing = True
        try:
            while self._over:
                leave_memory(self._over.pop(0))
        finally:
            self._is_freeing = False

    def _took(self, row: BatchedReply, response: GenerationResponse) -> None:
        job = self._jobs[row]
        if job.pieces >= len(job.begun):
            self._metrics.reply_tokens.inc()
        job.send(response, self._tokenizer)
        if job.watch is not None and response.finish_reason is None:
            job.watch.token(response.text, row.state)
        if response.finish_reason is not None:
            del self._jobs[row]
            self._finish(job, response.finish_reason)

    def end_closed(self) -> None:
        """End the replies that nobody waits for, at their last token. One of which nothing was sent is taken back."""
        for row, job in list(self._jobs.items()):
            if job.outlet.is_closed and row in self._jobs:
                if job.request.is_streamed and job.has_received:
                    self._end(row, job, "stop")
                else:
                    self._undo(row, job)
        self._free_memories()

    def end_all(self) -> None:
        """End all replies at their last token, and refuse the requests that wait."""
        # A reply that ends lets the next request for its memory begin.
        while self._ready or self._jobs:
            ready, self._ready = self._ready, []
            for job in ready:
                self.waiting -= 1
                self._over.append(job)
                job.fail(ending())
            for row, job in list(self._jobs.items()):
                self._end(row, job, "length")
            self._free_memories()

    def _end(self, row: BatchedReply, job: ReplyJob, reason: str) -> None:
        """End a reply at its last token."""
        del self._jobs[row]
        try:
            self._batch.end(row)
        except Exception as error:
            self._fail(job, error)
        else:
            self._finish(job, reason)

    def _undo(self, row: BatchedReply, job: ReplyJob) -> None:
        """End a reply, and take its turn back."""
        del self._jobs[row]
        self._metrics.requests.labels(outcome="left").inc()
        self._batch.abort(row)
        take_back(job)
        self._over.append(job)

    def _finish(self, job: ReplyJob, reason: str) -> None:
        """Keep the turn of a reply that has ended, and tell the client of the end."""
        try:
            done = keep_turn(job, reason, self._saver, self._tokenizer.think_end)
            self._metrics.requests.labels(outcome="done").inc()
            job.outlet.put(done)
        except Exception as error:
            self._fail(job, error)
        else:
            self._over.append(job)

    def _fail(self, job: ReplyJob, error: Exception) -> None:
        """Take the turn of a request back, and tell the client why."""
        self._world.check_common(error)
        self._metrics.requests.labels(outcome="failed").inc()
        take_back(job)
        self._over.append(job)
        job.fail(refusal(error))
